"""Which library multiplies small matrices, decided before NumPy is loaded.

PyTorch multiplies by MKL, which on AMD's processors leaves half of their width unused and is slow
where a matrix is narrow. NumPy multiplies by OpenBLAS, which takes all processors alike, but every
product on all cores, unless an environment variable that it reads when it is loaded says otherwise.
"""

import os
import sys
from pathlib import Path

THREADS = "OPENBLAS_NUM_THREADS"


def prefers_numpy(cpu: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether small products are to be NumPy's: on AMD's processors, one thread each.

    Sets the variable if it can still take effect. Not if NumPy was loaded before without it, nor if
    it says otherwise.
    """
    if not _is_amd(cpu):
        return False
    if "numpy" not in sys.modules:
        os.environ.setdefault(THREADS, "1")
    return os.environ.get(THREADS) == "1"


def _is_amd(cpu: Path) -> bool:
    """Return what Linux says of the processor; False where it is not Linux."""
    try:
        with cpu.open() as file:
            return any("AuthenticAMD" in line for line in file if line.startswith("vendor_id"))
    except OSError:
        return False


PREFERS_NUMPY = prefers_numpy()
