"""Where words go: names are shown as they are, on any terminal, also one that has gone."""

import select
import sys
from io import TextIOWrapper

from rich.console import Console


class LiteralConsole(Console):
    """A console that takes no text for markup and raises `BrokenPipeError` if nobody reads it.

    Colours and styles come from `rich.text.Text`, never from brackets inside a name.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """Raise the error that rich is handling, where rich itself would end the program."""
        raise BrokenPipeError


def nobody_reads() -> bool:
    """Return whether what reads standard output or standard error has gone, as `head` does."""
    if not hasattr(select, "poll"):  # Windows, where nothing else is known to break a pipe
        return True
    watch = select.poll()
    for descriptor in (1, 2):
        watch.register(descriptor, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in watch.poll(0))


def accept_any_encoding() -> None:
    """Let standard output and error replace what their encoding lacks, rather than raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
