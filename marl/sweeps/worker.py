"""The process of one run of a sweep: `marl ARGUMENTS` that stops when the sweep's process ends.

    python -m marl.sweeps.worker settings.toml train --config settings.toml ...

The first argument is the file or the run whose code may be imported, empty for none.
However the sweep ends, its end of this process's standard input is closed. The run then finishes
its iteration and saves, as after SIGTERM, so that the sweep can go on where it was.
"""

import os
import signal
import sys
import threading


def main() -> None:
    """Run the command."""
    threading.Thread(target=_stop_with_the_sweep, daemon=True).start()
    from marl.__main__ import main as run
    from marl.utils.plugins import grant

    if granted := sys.argv.pop(1):
        grant(granted)
    run()


def _stop_with_the_sweep() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
