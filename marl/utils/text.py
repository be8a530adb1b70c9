"""Text from outside (names in files, replies of servers, paths), and a terminal that shows it."""

import select
import sys
from io import TextIOWrapper

from rich.console import Console


def printable(text: str) -> str:
    """Return a foreign text in which every character can be printed and encoded.

    Control characters, line breaks and lone surrogates are escaped. The text is still foreign:
    rich must be given it as `rich.text.Text`, HTML escaped.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str, most: int = 80) -> str:
    """Return a foreign text as `printable`, cut to `most` characters."""
    plain = printable(text[: most + 1])
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"


def error_text(error: BaseException, most: int = 500) -> str:
    """Return the type and the message of an exception of foreign code, on one line, cut."""
    try:
        message = str(error)
    except Exception as another:
        message = f"a message that raises {type(another).__name__}"
    return one_line(f"{type(error).__name__}: {message}", most)


class LiteralConsole(Console):
    """A console that takes no text for markup and raises `BrokenPipeError` if its reader has gone.

    Colours and styles come from `rich.text.Text`, never from brackets inside a name.
    """

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """Raise the error that rich is handling, where rich itself would end the program."""
        raise BrokenPipeError


def reader_has_gone() -> bool:
    """Return whether the reader of standard output or standard error has gone, as `head` does."""
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
