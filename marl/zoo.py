"""A gallery: trained teams and preference datasets that ``marl zoo`` makes in minutes.

Nothing is shipped: a team is a seed, settings and a budget, and training it gives a run like any
other, in the folder ``zoo`` of where you are, for `marl.load("zoo/nav_6")` and every command.
"""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from marl import UserError
from marl.config import Config
from marl.config.io import load_config, shipped_configs

FOLDER = "zoo"
SEED = 0
EPISODES = 32
"""Played with sampled actions to tell what a team reaches."""


class ZooError(UserError):
    """There is no such team or dataset, or what it needs is missing."""


@dataclass(frozen=True, kw_only=True)
class Team:
    """How a team is trained: by a file of ``configs``, and what is different here."""

    what: str
    """One line."""
    file: str = ""
    """Name in ``configs``, without its ending; empty: the defaults."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Settings in place of the file's, by dotted names."""
    needs: str = ""
    """Optional package."""

    def config(self) -> Config:
        """Return all settings."""
        path = shipped_configs() / f"{self.file}.toml" if self.file else None
        return load_config(path, self.changes | {"seed": SEED})


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Compared episodes of a team's run."""

    team: str
    pairs: int = 500

    @property
    def what(self) -> str:
        """One line."""
        return f"{self.pairs} pairs of episodes of {self.team} in training, compared by return"


TEAMS: dict[str, Team] = {
    "local_credit": Team(
        what="a probe in which each agent must find out what it did itself",
        changes={
            "env.name": "probe/local_credit",
            "total_steps": 60_000,
            "preferences.replay_steps": 20_000,
        },
    ),
    "nav_6": Team(what="six particles that look for their own landmarks", file="nav_6"),
    "spread_3": Team(
        what="three particles that cover three landmarks",
        file="spread_3",
        changes={"total_steps": 150_000},
    ),
    "halfcheetah_2x3": Team(
        what="back legs and front legs of a HalfCheetah, the run of a bare marl train",
        file="halfcheetah_2x3",
        changes={"total_steps": 1_000_000},
    ),
    "hopper_3x1": Team(
        what="a Hopper, an agent for each joint, 200 steps",
        file="hopper_3x1",
        changes={"env.options": {"max_steps": 200}, "total_steps": 100_000},
    ),
    "smax_3m": Team(
        what="three marines against three, paid by the shaped reward at the end",
        file="smax_3m",
        changes={
            "env.num_envs": 128,
            "total_steps": 200_000,
            "checkpoint_every": 50_000,
            "preferences.replay_steps": 100_000,
        },
        needs="jaxmarl",
    ),
}
DATASETS: dict[str, Pairs] = {
    "nav_6_pairs": Pairs(team="nav_6"),
    "hopper_3x1_pairs": Pairs(team="hopper_3x1"),
}


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a trained team reaches."""

    folder: Path
    mean: float
    """Mean return of `EPISODES` episodes, actions sampled."""
    low: float
    """Of its 95 % interval."""
    high: float
    seconds: float
    """That training took."""


def unfinished(name: str, folder: Path) -> tuple[Config, bool] | None:
    """Return a team's settings and whether `folder`/`name` holds a part of its run already.

    None: the run is there and has ended. Raises `ZooError` for an unknown name, or what is not
    installed.
    """
    from marl.reports.recorded import CONFIG, read_run

    team = TEAMS.get(name)
    if team is None:
        raise ZooError(f"there is no team {name!r}; there are {', '.join(TEAMS)}")
    if team.needs and find_spec(team.needs) is None:
        from envs.registry import install_hint

        raise ZooError(f"zoo/{name}: {install_hint(team.needs)}")
    begun = (folder / name / CONFIG).exists()
    return None if begun and read_run(folder / name).has_ended else (team.config(), begun)


def evaluate_team(name: str, folder: Path, *, film: bool = True) -> Made:
    """Evaluate the finished run `folder`/`name`, and film it if that is not done yet."""
    from marl.evaluation import evaluate
    from marl.policy import load
    from marl.reports.recorded import read_run
    from marl.reports.video import FilmOptions, film_run

    run = folder / name
    if film and not (run / "episode.gif").exists():
        film_run(run, run / "episode.gif", FilmOptions(max_frames=200))
    result = evaluate(load(run), greedy=False, episodes=EPISODES, seed=1)
    seconds = read_run(run, ("return/mean", "time/steps_per_second")).seconds
    return Made(folder=run, mean=result.mean, low=result.low, high=result.high, seconds=seconds)


def make_dataset(name: str, folder: Path) -> Path:
    """Write a preference dataset into `folder`/`name`, if it is not there, of its finished team."""
    from marl.preferences.dataset.export import export_run

    chosen = DATASETS[name]
    if not (folder / name).exists():
        made = evaluate_team(chosen.team, folder)
        export_run(made.folder, folder / name, pairs=chosen.pairs, seed=SEED)
    return folder / name


def missing(place: Path | str) -> str:
    """Return how to make a place of the gallery that is not there; empty: there is no need."""
    path = Path(place)
    is_ours = path.parent == Path(FOLDER) and path.name in TEAMS
    return f"{path} is not made yet: marl zoo {path.name}" if is_ours and not path.exists() else ""
