"""Thin module behind the PsychoSafe workbook: a file a noun, functions, data in and data out."""

import logging
import warnings

# Set before any library is imported. Progress is printed as lines, so the widget that tqdm misses is not needed;
# peft still asks transformers by an old name; bitsandbytes offers a faster CPU kernel from the hub, and works without.
warnings.filterwarnings("ignore", message="IProgress not found")
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.CRITICAL)

__version__ = "0.1.0"
