"""The command ``marl zoo``: trained teams and datasets to look at, made in minutes."""

import difflib
from pathlib import Path
from typing import Annotated

import tyro

from marl.config.validation import settings
from marl.utils.text import LiteralConsole
from marl.zoo import (
    DATASETS,
    FOLDER,
    TEAMS,
    Pairs,
    Team,
    ZooError,
    evaluate_team,
    make_dataset,
    unfinished,
)


@settings("--")
class Zoo:
    """Make trained teams and preference datasets to try things with; without names, list them."""

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME")] = ()
    """Teams and datasets, or all."""
    folder: Path = Path(FOLDER)
    """Where they are kept; marl.load("zoo/nav_6") looks into the current folder."""
    film: bool = True
    """Film an episode of each team, episode.gif."""

    def run(self) -> int:
        """Make what is named, one after another; what is there already is only evaluated."""
        names = [*TEAMS, *DATASETS] if self.names == ("all",) else list(self.names)
        unknown = [name for name in names if name not in TEAMS and name not in DATASETS]
        if unknown:
            known = [*TEAMS, *DATASETS]
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ";"
            raise ZooError(
                f"there is no {unknown[0]!r}{hint} there are {', '.join(known)}, and all"
            )
        if not names:
            self._list()
        for name in names:
            if status := self._train(name):
                return status
            if name in DATASETS:
                place = make_dataset(name, self.folder)
                print(f"{place}: {DATASETS[name].what}; marl fit-reward {place}", flush=True)
                continue
            made = evaluate_team(name, self.folder, film=self.film)
            print(
                f"{made.folder}: return {made.mean:.2f} [{made.low:.2f}, {made.high:.2f}] after "
                f"{TEAMS[name].config().total_steps:,} steps in {made.seconds:.0f} s; "
                f"curve.png, episode.gif; marl.load({str(made.folder)!r})",
                flush=True,
            )
        return 0

    def _train(self, name: str) -> int:
        """Train what a name takes as `marl train` does, if it is not finished; return the status.

        So progress is shown, and what is stopped is saved.
        """
        from marl.commands.train import train_shown

        if name in DATASETS and (self.folder / name).exists():
            return 0
        team = DATASETS[name].team if name in DATASETS else name
        left = unfinished(team, self.folder)
        return train_shown(left[0], self.folder / team, resume=left[1]) if left else 0

    def _list(self) -> None:
        """Print what there is."""
        console = LiteralConsole()
        entries: dict[str, Team | Pairs] = {**TEAMS, **DATASETS}
        for name, entry in entries.items():
            is_there = ", made" if (self.folder / name).exists() else ""
            steps = f"; {entry.config().total_steps:,} steps" if isinstance(entry, Team) else ""
            console.print(f"{name}: {entry.what}{steps}{is_there}", soft_wrap=True)
        console.print("marl zoo nav_6 makes one of them, marl zoo all makes all")
