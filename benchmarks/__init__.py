"""Studies and measurements of the package; what they found stands in `results`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""
