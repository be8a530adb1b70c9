"""The command ``marl``: runs a subcommand and turns errors into lines that say what to do."""

import difflib
import os
import sys
import warnings

from rich.text import Text

from envs.base import EnvError
from marl import UserError, __version__
from marl.commands.parsing import COMMANDS, GROUPS, parse
from marl.utils.launch import before_joining
from marl.utils.plugins import grant
from marl.utils.text import LiteralConsole, accept_any_encoding, printable, reader_has_gone
from marl.zoo import missing


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit.

    The status is 0, 1 after an error, 2 for a wrong command, 130 after Ctrl-C, and 141 if the
    reader of the output has gone.
    """
    accept_any_encoding()
    warnings.formatwarning = _formatted_warning
    try:
        status = _status(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:  # what saves its state first has ended by itself
        print("stopped; what was not finished is not kept", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        if not reader_has_gone():  # some other pipe
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered can go nowhere else
        status = 141
    sys.exit(status)


def _status(arguments: list[str]) -> int:
    """Run a command, print its errors, and return the exit status."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        print(f"prefmarl {__version__}")
        return 0
    if arguments[0] not in COMMANDS and not arguments[0].startswith("--tyro-"):
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        more = (
            f"; did you mean `marl {near[0]}`? `marl` lists all" if near else f"\n\n{_overview()}"
        )
        print(f"marl: no command {arguments[0]!r}{more}", file=sys.stderr)
        return 2
    try:
        with before_joining():
            command = parse(arguments)
    except UserError as error:
        _complain(error)
        return 2
    if getattr(command, "trust", False):
        grant()
    try:
        return command.run()
    except BrokenPipeError:
        raise
    except (UserError, EnvError, OSError) as error:
        for hint in {missing(word) for word in arguments[1:]} - {"", str(error)}:
            error.add_note(hint)
        _complain(error)
        return 1


def _complain(error: Exception) -> None:
    """Print an error and what was noted about it."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    said = "\n".join([text, *getattr(error, "__notes__", [])])
    lines = "\n".join(map(printable, said.split("\n")))
    LiteralConsole(stderr=True).print(Text("error: ", "bold red") + Text(lines), soft_wrap=True)


def _formatted_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Return a warning as a user reads it: what is wrong, not where the code says so."""
    return f"warning: {message}\n"


def _overview() -> str:
    """Return what there is, a line for each command."""
    lines = ["Train teams whose reward comes only at the end.", "", "usage: marl COMMAND ..."]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:"]
        for name, kind in group.items():
            lines.append(f"  {name:<15}{(kind.__doc__ or '').strip().splitlines()[0]}")
    lines += [
        "",
        "`marl train` alone trains a first team, in minutes. `marl COMMAND --help` explains one;",
        "`marl --version` prints the version.",
    ]
    return "\n".join(lines)
