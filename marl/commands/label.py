"""The command ``marl label``."""

import getpass
import os
import re
import secrets
import sys
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from marl.config import ConfigError
from marl.config.io import load_run_config
from marl.config.validation import Range, settings
from marl.utils.text import LiteralConsole

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from marl.preferences.people.learned import LearnedAgreement
    from marl.preferences.people.session import Labelling, Training

_PAIRS = 50
"""Answers after which labelling ends, unless a run asks."""


def _user() -> str:
    """Return the name to label under where none was given."""
    try:
        name = re.sub(r"[^\w.-]", "_", getpass.getuser())[:40]
    except (OSError, KeyError):  # an account without a name, as in some containers
        name = ""
    return name or "someone"


@settings("--")
class Label:
    """Compare episodes yourself, on a page in your browser.

    A run trained with preferences.labeller = "people" asks its own questions; of any other run,
    episodes are played with its newest checkpoint and kept in RUN/people.
    """

    run_dir: Annotated[
        tyro.conf.Positional[Path | None], tyro.conf.arg(name="run", metavar="RUN")
    ] = None
    """Folder of the run."""
    dataset: Path | None = None
    """Instead of a run, a folder with frames/."""
    name: str = field(default_factory=_user)
    """Who labels."""
    task: str = ""
    """What the team should achieve, for the page; preferences.people.task if not given. Where
    neither is, the page asks."""
    port: Annotated[int, Range(0, 65_535)] = 0
    """Port of the page; 0: a free one."""
    episodes: Annotated[int, Range(2, 10_000)] = 16
    """Episodes to play."""
    pairs: Annotated[int, Range(1, 1e9)] | None = None
    """Answers after which it ends; 50 if not given, and never while training asks."""
    repeats: Annotated[float, Range(0, 0.5)] = 0.1
    """Share of pairs shown again, sides swapped, to see how often you agree with yourself."""
    open: bool = True
    """Open the page in a browser, rather than only print its address."""
    skip_damaged: bool = False
    """Leave damaged files and lines out."""

    trust: bool = False
    """Import the code that the run names, though it is not one that you trained on this machine."""

    def __post_init__(self) -> None:
        if (self.run_dir is None) == (self.dataset is None):
            raise ConfigError(
                "give either the folder of a run, or --dataset and the folder of a dataset"
            )
        if not re.fullmatch(r"[\w.-]{1,40}", self.name):
            raise ConfigError(
                f"--name is {self.name!r}; expected up to 40 letters, digits, dots, hyphens"
            )

    def run(self) -> int:
        """Serve the page until Ctrl-C or the last answer."""
        from marl.preferences.people.session import Labelling, LabellingPlan, alone
        from marl.utils.devices import single_threaded_operations

        single_threaded_operations()
        check_extra()
        subject = _of_dataset(self) if self.run_dir is None else _of_run(self, self.run_dir)
        pairs = self.pairs
        if pairs is None and not subject.asked_by_run:
            pairs = _PAIRS
        plan = LabellingPlan(asked_by_run=subject.asked_by_run, pairs=pairs, repeats=self.repeats)
        labelling = Labelling(
            subject.folder,
            self.name,
            plan,
            skip_damaged=self.skip_damaged,
            training=_training(self.run_dir) if self.run_dir and subject.asked_by_run else None,
            learned=_learned(self.run_dir, subject.folder),
        )
        with alone(subject.folder, self.name):
            if subject.task:
                labelling.set_task(subject.task)
            labelling.question()  # damage is told before the page opens
            labelling.log.check_own()
            serve_page(labelling, subject.title, self.port, self.open)
        answered = labelling.progress().answered
        print(f"{answered} answers of {self.name} in {subject.folder / 'answers.jsonl'}")
        if answered:
            print(f"a reward learns from them with: marl fit-reward {subject.folder}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is labelled."""

    folder: Path
    title: str
    """What it is."""
    task: str
    """What the team should achieve; empty: the page asks, if nobody has said it there before."""
    asked_by_run: bool


def serve_page(labelling: "Labelling", title: str, port: int, opens: bool) -> None:
    """Serve the page, print its address once and open it."""
    from marl.preferences.people.server import make_app  # needs the extra

    serve_app(
        lambda token, port: make_app(labelling, title, token, port),
        "label at {}\nCtrl-C ends it; every answer is kept as it is given",
        port,
        opens,
    )


def serve_app(
    make: Callable[[str, int], "ASGIApp"], told: str, port: int, opens: bool, page: str = ""
) -> None:
    """Serve an application until Ctrl-C, made of a new token and the port.

    `told` is printed with the address of its `page`, which is opened.
    """
    from marl.preferences.people.server import listening, serve  # needs the extra

    try:
        listener = listening(port)
    except OSError as error:
        raise ConfigError(f"--port {port} cannot be used: {error}; 0 takes a free one") from error
    token = secrets.token_urlsafe(24)
    port = listener.getsockname()[1]
    address = f"http://127.0.0.1:{port}/{page}#{token}"
    app = make(token, port)
    print(told.format(address), flush=True)
    if opens and _has_a_screen():
        webbrowser.open(address)
    serve(app, listener)


def _of_run(options: Label, run: Path) -> Subject:
    """Return the dataset of a run: what its training asks, or else episodes of its newest team."""
    from rich.progress import track

    from marl.preferences.people.camera import film_episodes, missing_episodes
    from marl.reports.video import load_team

    config, folder = load_run_config(run), run / "people"
    title, task = config.env.name, options.task or config.preferences.people.task
    if config.asks_people:
        return Subject(folder=folder, title=title, task=task, asked_by_run=True)
    missing = missing_episodes(folder, options.episodes, skip_damaged=options.skip_damaged)
    if missing:
        films = film_episodes(load_team(run)[0], run, folder, missing)
        console = LiteralConsole(stderr=True)
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
    return Subject(folder=folder, title=title, task=task, asked_by_run=False)


def _of_dataset(options: Label) -> Subject:
    """Return a dataset that was made elsewhere."""
    from marl.preferences.dataset.footage import filmed_episodes

    folder = options.dataset or Path()
    episodes = len(filmed_episodes(folder, skip_damaged=options.skip_damaged))
    if episodes < 2:
        raise ConfigError(
            f"{folder} has {episodes} episodes with frames (frames/000003.json.gz); to compare "
            "them takes at least 2"
        )
    title = folder.resolve().name
    return Subject(folder=folder, title=title, task=options.task, asked_by_run=False)


def _training(run: Path) -> "Callable[[], Training]":
    """Return what tells how a run stands; one that has not begun yet is running."""
    from marl.reports.recorded import read_run
    from marl.utils.files import is_held

    def standing() -> "Training":
        if is_held(run / ".lock"):
            return "running"
        return "ended" if read_run(run).has_ended else "stopped"

    return standing


def _learned(run: Path | None, folder: Path) -> "LearnedAgreement | None":
    """Return what compares answers with the reward that a run has learned, if it learns one."""
    if run is None or not (config := load_run_config(run)).learns_reward:
        return None
    from marl.preferences.people.learned import LearnedAgreement

    return LearnedAgreement(run, folder, learns_from_them=config.asks_people)


def check_extra() -> None:
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
