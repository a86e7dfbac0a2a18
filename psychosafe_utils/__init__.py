"""Thin module behind the PsychoSafe workbook: a file a noun, functions, data in and data out."""

import warnings

# Progress is printed as lines, so the widget that tqdm misses in a notebook is not needed.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"
