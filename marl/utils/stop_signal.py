"""Ctrl-C and its like, by which work that takes long is stopped in good order."""

import math
import os
import signal
import time
from contextlib import suppress
from types import FrameType

_TOGETHER = 1.0
"""Seconds in which signals count as one."""


class StopSignal:
    """Remembers the first SIGINT, SIGTERM or SIGHUP, so that an iteration in progress can finish.

    A second one ends the process at once, unless it comes within `_TOGETHER` seconds: some senders
    signal a process and its group.
    """

    def __init__(
        self, what: str = "finishing this iteration and saving", *, tells: bool = True
    ) -> None:
        """With `tells`, the first signal is answered by a line that says `what` follows."""
        self._tells = tells
        self.received = 0
        self._what = what
        self._since = math.inf
        self._before = {
            number: signal.signal(number, self._remember)
            for name in ("SIGINT", "SIGTERM", "SIGHUP")
            if (number := getattr(signal, name, None)) is not None  # Windows has no SIGHUP
        }

    def end(self) -> None:
        """Let signals do again what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        if not self.received:
            self.received, self._since = number, time.monotonic()
            if not self._tells:
                return
            with suppress(OSError):  # a terminal that has gone
                os.write(2, f"\n{self._what}; once more ends it at once\n".encode())
        elif time.monotonic() - self._since > _TOGETHER:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
