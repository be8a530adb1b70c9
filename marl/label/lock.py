"""One page at a time for each person and set."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from marl.config import ConfigError

if sys.platform != "win32":
    import fcntl


@contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """Hold a set for one person; the system lets go of it when this process ends, however it does.

    Two servers with one name would show each other's pairs as open. Windows is not guarded.
    """
    with (folder / f".{name}.lock").open("ab") as file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"{name} is labelling {folder} already; use that page, end it with Ctrl-C, or "
                    "give another --name"
                ) from None
        yield
