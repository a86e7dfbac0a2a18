"""Thin module behind the PsychoSafe workbook: a file a noun, functions, data in and data out."""

__version__ = "0.1.0"
