"""`marl ARGUMENTS` that stops when the process that has started it ends.

    python -m marl.utils.child settings.toml train --config settings.toml ...

The first argument is the file or the run whose code may be imported, empty for none.
So runs each run of a sweep, and each process of a run that Ray has started. However the process
that has started this one ends, its end of the standard input here is closed. The run then finishes
its iteration and saves, as after SIGTERM, so that it can go on where it was.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence


def child_command(flags: Sequence[str], granted: str, arguments: Sequence[str]) -> list[str]:
    """Return the command of `marl ARGUMENTS` as a child, which may import what `granted` names."""
    return [sys.executable, *flags, "-m", "marl.utils.child", granted, *arguments]


def python_flags() -> list[str]:
    """Return Python's flag not to import from the working directory, where this process does not.

    A folder in which somebody works may be somebody else's.
    """
    return [] if {"", os.getcwd()} & set(sys.path) else ["-P"]


def main() -> None:
    """Run the command."""
    threading.Thread(target=_stop_with_the_other, daemon=True).start()
    from marl.__main__ import main as run
    from marl.utils.plugins import grant

    if granted := sys.argv.pop(1):
        grant(granted)
    run()


def _stop_with_the_other() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
