"""The command ``marl label``."""

import argparse
import getpass
import os
import re
import secrets
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from marl.config import ConfigError
from marl.config.io import load_config
from marl.preferences.dataset.footage import filmed_episodes
from marl.preferences.people.camera import film_episodes, missing_episodes
from marl.preferences.people.session import Labelling, Plan, alone
from marl.reports.video import load_team

_EPISODES, _PAIRS, _REPEATS = 16, 50, 0.1


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is labelled."""

    folder: Path
    title: str
    """What it is, and what the team should achieve."""
    asked_by_run: bool


def label(arguments: list[str], description: str | None) -> int:
    """Serve the page that the arguments of ``marl label`` ask for, until Ctrl-C."""
    parser = _parser(description)
    options = parser.parse_args(arguments)
    if (options.run is None) == (options.dataset is None):
        parser.error("give either the folder of a run, or --dataset and the folder of a dataset")
    _check(options)
    _need_the_extra()
    subject = _of_dataset(options) if options.run is None else _of_run(options)
    pairs = options.pairs
    if pairs is None and not subject.asked_by_run:
        pairs = _PAIRS
    plan = Plan(asked_by_run=subject.asked_by_run, pairs=pairs, repeats=options.repeats)
    labelling = Labelling(subject.folder, options.name, plan, skip_damaged=options.skip_damaged)
    with alone(subject.folder, options.name):
        labelling.question()  # damage is told before the page opens
        _serve(labelling, subject.title, options.port, options.open)
    answered = labelling.progress().answered
    print(f"{answered} answers of {options.name} in {subject.folder / 'answers.jsonl'}")
    if answered:
        print(f"a reward learns from them with: marl fit-reward {subject.folder}")
    return 0


def _serve(labelling: Labelling, title: str, port: int, opens: bool) -> None:
    """Serve the page, print its address once and open it."""
    from marl.preferences.people.server import listening, make_app, serve  # needs the extra

    try:
        listener = listening(port)
    except OSError as error:
        raise ConfigError(f"--port {port} cannot be used: {error}; 0 takes a free one") from error
    token = secrets.token_urlsafe(24)
    port = listener.getsockname()[1]
    address = f"http://127.0.0.1:{port}/#{token}"
    app = make_app(labelling, title, token, port)
    print(f"label at {address}\nCtrl-C ends it; every answer is kept as it is given", flush=True)
    if opens and _has_a_screen():
        webbrowser.open(address)
    serve(app, listener)


def _of_run(options: argparse.Namespace) -> Subject:
    """Return the dataset of a run: what its training asks, or else episodes of its newest team."""
    run: Path = options.run
    if not (run / "config.toml").exists():
        raise ConfigError(f"{run} is not a run folder: it has no config.toml")
    config, folder = load_config(run / "config.toml"), run / "people"
    folder.mkdir(exist_ok=True)
    title = _titled(config.env.name, options.task or config.preferences.people.task)
    if config.asks_people:
        return Subject(folder=folder, title=title, asked_by_run=True)
    missing = missing_episodes(folder, options.episodes)
    if missing:
        films = film_episodes(load_team(run)[0], run, folder, missing)
        console = Console(stderr=True)
        shown = track(
            films,
            "playing",
            total=len(missing),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        for _ in shown:
            pass
    return Subject(folder=folder, title=title, asked_by_run=False)


def _of_dataset(options: argparse.Namespace) -> Subject:
    """Return a dataset that was made elsewhere."""
    folder: Path = options.dataset
    episodes = len(filmed_episodes(folder, skip_damaged=options.skip_damaged))
    if episodes < 2:
        raise ConfigError(
            f"{folder} has {episodes} episodes with frames (frames/000003.json.gz); to compare "
            "them takes at least 2"
        )
    title = _titled(folder.resolve().name, options.task)
    return Subject(folder=folder, title=title, asked_by_run=False)


def _titled(name: str, task: str) -> str:
    return f"{name}: {task}" if task else name


def _check(options: argparse.Namespace) -> None:
    """Raise `ConfigError` for a value out of its range."""
    if not re.fullmatch(r"[\w.-]{1,40}", options.name):
        raise ConfigError(
            f"--name is {options.name!r}; expected up to 40 letters, digits, dots, hyphens"
        )
    ranges = {"episodes": (2, 10_000), "pairs": (1, 1e9), "repeats": (0, 0.5), "port": (0, 65_535)}
    for name, (low, high) in ranges.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise ConfigError(f"--{name} is {value}; expected a number from {low:g} to {high:g}")


def _need_the_extra() -> None:
    """Raise `ConfigError` if the packages of the page are not installed."""
    try:
        import fastapi  # noqa: F401  # only whether it is there
        import uvicorn  # noqa: F401  # as above
    except ImportError as error:
        raise ConfigError(
            "the page needs the extra people: pip install -c constraints.txt '.[people]'"
        ) from error


def _has_a_screen() -> bool:
    """Return whether a browser would open a window, rather than take the terminal over."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _user() -> str:
    """Return the name to label under where none was given."""
    try:
        name = re.sub(r"[^\w.-]", "_", getpass.getuser())[:40]
    except (OSError, KeyError):  # an account without a name, as in some containers
        name = ""
    return name or "someone"


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="marl label",
        description=description,
        epilog='A run trained with preferences.labeller = "people" asks its own questions; of any '
        "other run, episodes are played with its newest checkpoint and kept in RUN/people.",
    )
    parser.add_argument("run", type=Path, nargs="?", help="folder of the run")
    parser.add_argument("--dataset", type=Path, help="instead of a run, a folder with frames/")
    parser.add_argument("--name", default=_user(), help="who labels (default: %(default)s)")
    parser.add_argument(
        "--task",
        default="",
        help="what the team should achieve, for the page (default preferences.people.task)",
    )
    parser.add_argument("--port", type=int, default=0, help="default 0: a free one")
    parser.add_argument(
        "--episodes", type=int, default=_EPISODES, help="to play (default %(default)s)"
    )
    parser.add_argument(
        "--pairs",
        type=int,
        help=f"answers after which it ends (default {_PAIRS}; never while training asks)",
    )
    parser.add_argument(
        "--repeats",
        type=float,
        default=_REPEATS,
        help="share of pairs shown again, sides swapped, to see how often you agree with yourself "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--no-open", dest="open", action="store_false", help="only print the address"
    )
    parser.add_argument(
        "--skip-damaged", action="store_true", help="leave damaged files and lines out"
    )
    return parser
