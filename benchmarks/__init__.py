"""Studies and measurements of the package; what they found stands in `results`."""

from importlib import import_module
from pathlib import Path

import_module("envs.processor")  # before PyTorch loads NumPy, as in commands

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""
