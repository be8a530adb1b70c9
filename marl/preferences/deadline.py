"""A labeller of the user's own that hangs stops the run instead of holding it for ever."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from marl.plugins import PluginError


@contextmanager
def within(seconds: float, name: str) -> Iterator[None]:
    """Raise `PluginError` in what runs inside, once it has taken so many seconds; 0: never.

    The system's timer interrupts Python code and waits of the main thread; compiled code that
    never returns it cannot, nor other threads, nor anything on Windows.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if seconds <= 0.0 or not is_main or not hasattr(signal, "setitimer"):
        yield
        return

    def expire(number: int, frame: FrameType | None) -> None:
        place = f" ({frame.f_code.co_filename}, line {frame.f_lineno})" if frame else ""
        raise PluginError(
            f"labeller {name} has not answered after {seconds:g} s{place}; give it a deadline of "
            "its own and return NaN where it has no answer, or raise preferences.deadline (0: "
            "wait for ever)"
        )

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)
