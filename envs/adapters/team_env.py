"""`TeamEnv`: third-party teams as one `VecEnv`, in this process or in workers.

A third-party task cannot be saved, but it can be repeated: each episode is determined by its seed
and the actions since, so that is what `state_dict` holds, and loading replays the open episodes.
A task that does not repeat ends its open episodes instead, as truncated, in the first step.

Axes are those of `envs.base`; L: steps of the longest open episode.
"""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.adapters.measures import advised_workers, repeats_itself
from envs.adapters.spaces import BoundedTeam, ObsBounds, ObsBoundsWarning
from envs.adapters.team import (
    Block,
    EpisodePlan,
    Records,
    TeamMaker,
    empty_records,
    new_episodes,
)
from envs.adapters.workers import Workers, num_processes
from envs.base import STEP_ARRAYS, BoolArray, EnvError, EnvSpec, EnvStep, check_num_envs
from envs.rng import env_seeds
from envs.validation import checked_actions

DOES_NOT_REPEAT = (
    "does not repeat under its seed: a resumed run cuts its open episodes off, so it differs from "
    "one that was not interrupted. Draw all randomness from generators that reset(seed) seeds, and "
    "let reset forget the episode before (the option remake does that)"
)


class TeamEnv:
    """A `VecEnv` of E teams. Where the environments run does not change the numbers."""

    def __init__(
        self,
        make_team: TeamMaker,
        num_envs: int,
        *,
        workers: int | None = None,
        timeout: float = 120.0,
        repeats: bool | None = None,
        drawn: TeamMaker | None = None,
    ) -> None:
        """`workers`: processes, at most one per environment; 0: this process; None: what a short
        measurement advises.

        `timeout` is how many seconds one reset or step of one environment in a worker may take.
        `repeats` is whether an episode is the same again under the same seed and actions; None:
        a few steps are played twice to find out, when a state is first asked for. `drawn` makes
        the same team, drawing itself if it can (`show_pictures`).
        """
        team = make_team()
        self._spec = replace(team.spec, num_envs=num_envs)
        bounds = team.obs_bounds if isinstance(team, BoundedTeam) else None
        self._bounds = bounds if bounds is not None and bounds.any else None
        self._bounds_broken = False
        team.close()
        _check_options(self._spec, workers, timeout)
        self._make_team = make_team
        self._drawn = drawn
        self._timeout = timeout
        self._repeats = repeats
        self._cut_off = False
        """Whether the open episodes end in the next step, since they cannot be repeated."""
        self._cut_next = False
        if workers is None:
            workers = advised_workers(make_team, self._spec, timeout)
        self.workers = num_processes(num_envs, min(workers, num_envs))
        """Worker processes in use; 0: the environments run in this process."""
        self._runner: Block | Workers | None = None
        self._seeds = np.zeros(num_envs, np.uint64)
        self._log = ActionLog(num_envs)
        self._records = empty_records(self._spec, num_envs)

    @property
    def spec(self) -> EnvSpec:
        """The constants of this environment."""
        return self._spec

    def reset(self, seed: int) -> EnvStep:
        """Start a new episode in every environment."""
        num_envs = self._spec.num_envs
        self._cut_off = self._bounds_broken = False
        self._seeds = env_seeds(seed, num_envs)
        self._log = ActionLog(num_envs)
        self._start(new_episodes(self._seeds))
        return self._env_step()

    def step(self, actions: npt.NDArray[Any]) -> EnvStep:
        """Apply (E, N) integer or (E, N, A) float actions; environments that end are reset."""
        if self._runner is None and not self._cut_off:
            raise EnvError(
                f"{self._spec.name}: step before reset or after an error; call reset(seed)"
            )
        mask = self._records["action_mask"] if self._spec.masks_actions else None
        actions = checked_actions(self._spec, mask, actions)
        if self._cut_off:
            self._begin_anew()
        else:
            self._take(self._run("step", actions))
        self._log.add(actions, self._records["terminated"] | self._records["truncated"])
        return self._env_step()

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen last, and what was done since the open episodes began.

        Of a task that does not repeat only the former.
        """
        seen = {name: self._records[name].copy() for name in self._records.dtype.names or ()}
        state = {"seeds": self._seeds.copy(), "seen": seen}
        if self.repeats() and not self._cut_off:
            state |= {"lengths": self._log.lengths.copy(), "actions": self._log.actions}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` by replaying the open episodes, or by cutting them off."""
        check_num_envs(self._spec, len(state["seeds"]))
        self._seeds = state["seeds"].copy()
        self._cut_off = False
        self._repeats = "actions" in state
        if not self._repeats or self._cut_next:
            self._cut_off_at(state["seen"])
            return
        self._log.restore(state["lengths"], state["actions"])
        plan = EpisodePlan(
            seeds=self._seeds,
            episodes=state["seen"]["episodes"],
            lengths=state["lengths"],
            actions=state["actions"],
        )
        try:
            self._start(plan)
            for name in ("obs", "state"):
                _check_same(self._spec, name, self._records, state)
        except EnvError as error:
            raise EnvError(
                f"{error}; `marl resume RUN --cut-open-episodes` goes on without the open episodes"
            ) from error

    def repeats(self) -> bool:
        """Return whether an episode is the same again under the same seed and actions.

        Warns where that is found out to be wrong.
        """
        if self._repeats is None:
            where = Workers if self.workers else Block
            self._repeats = repeats_itself(self._make_team, self._spec, self._timeout, where)
            if not self._repeats:
                warnings.warn(f"{self._spec.name} {DOES_NOT_REPEAT}", stacklevel=2)
        return self._repeats

    def cut_open_episodes(self) -> None:
        """Let `load_state_dict` truncate the open episodes from now on, not repeat them."""
        self._cut_next = True

    def show_pictures(self) -> None:
        """Let the environments draw themselves, where they run, from the next reset on."""
        self.close()
        if self._drawn is not None:
            self._make_team = self._drawn

    def picture(self, index: int) -> npt.NDArray[np.uint8] | None:
        """Return an environment's own (H, W, 3) picture of its state; None if it draws none."""
        return None if self._runner is None else self._runner.picture(index)

    def close(self) -> None:
        """End the workers and release what the environments hold; `reset` starts them again."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def _start(self, plan: EpisodePlan) -> None:
        """Bring every environment to where the plan wants it."""
        if self._runner is None:
            self._runner = (
                Workers(self._make_team, self._spec, self.workers, self._timeout)
                if self.workers
                else Block(self._make_team, self._spec, range(self._spec.num_envs))
            )
        self._take(self._run("start", plan))

    def _cut_off_at(self, seen: dict[str, npt.NDArray[Any]]) -> None:
        """Show what was seen last, until the first step ends those episodes."""
        warnings.warn(
            f"{self._spec.name} cannot repeat its open episodes: the first step counts them as "
            "truncated and begins new ones, so this run differs from one that was not interrupted",
            stacklevel=3,
        )
        self._log = ActionLog(self._spec.num_envs)
        self._records = empty_records(self._spec, self._spec.num_envs)
        for name, array in seen.items():
            self._records[name] = array
        self._cut_off = True

    def _begin_anew(self) -> None:
        """Truncate all open episodes, unpaid and at what was seen last, and begin the next ones."""
        old = self._records
        self._start(replace(new_episodes(self._seeds), episodes=old["episodes"] + 1))
        self._cut_off = False
        self._records["truncated"] = True
        for name in ("obs", "state", "alive"):
            self._records[f"final_{name}"] = old[name]
        self._records["facts"] = old["facts"]

    def _run(self, call: str, argument: Any) -> Records:
        """Return what the environments answer; after an error they are closed, and the log is kept.

        So they are when Ctrl-C interrupts the call: their answers would be taken for later ones.
        """
        try:
            records: Records = getattr(self._runner, call)(argument)
        except BaseException:
            self.close()
            raise
        return records

    def _take(self, records: Records) -> None:
        """Keep the records apart from the memory that the environments write into."""
        self._records = records.copy()
        if self._bounds is not None and not self._bounds_broken:
            self._warn_outside(self._bounds)

    def _warn_outside(self, bounds: ObsBounds) -> None:
        """Warn about the first observation since the reset that its space rules out."""
        for name in ("obs", "final_obs"):
            violation = bounds.violation(self._records[name])
            if violation is not None:
                self._bounds_broken = True
                warnings.warn(violation, ObsBoundsWarning, stacklevel=4)
                return

    def _env_step(self) -> EnvStep:
        """Return the records as the step they are."""
        given = [name for name, array in STEP_ARRAYS.items() if array.is_given(self._spec)]
        return EnvStep(**{name: self._records[name] for name in given})


def _check_options(spec: EnvSpec, workers: int | None, timeout: float) -> None:
    """Raise on numbers that cannot be."""
    if spec.num_envs < 1:
        raise EnvError(f"{spec.name}: num_envs is {spec.num_envs}; ask for at least 1")
    if workers is not None and (not isinstance(workers, int) or workers < 0):
        raise EnvError(
            f"{spec.name}: workers is {workers!r}; give 0 (this process) or more, or leave it "
            "out to have it measured"
        )
    if not isinstance(timeout, int | float) or timeout <= 0:
        raise EnvError(f"{spec.name}: timeout is {timeout!r}; give seconds above 0")


def _check_same(spec: EnvSpec, name: str, records: Records, state: dict[str, Any]) -> None:
    """Raise if a replayed episode does not lead to what was saved."""
    same = (records[name] == state["seen"][name]).reshape(spec.num_envs, -1).all(axis=1)
    if not same.all():
        copy = int(np.flatnonzero(~same)[0])
        raise EnvError(
            f"{spec.name}, copy {copy}: replaying the {state['lengths'][copy]} actions of its "
            f"open episode led to another {name} than was saved, so the run cannot be continued "
            "exactly; the task must repeat under the same seed and actions: draw its randomness "
            "from generators that reset(seed) seeds, let reset forget the episode before (the "
            "option remake does that for PettingZoo and gymnasium), and keep versions as they were"
        )


class ActionLog:
    """The actions of E open episodes; grows with the longest of them."""

    def __init__(self, num_envs: int) -> None:
        self.lengths = np.zeros(num_envs, np.int64)
        """(E,) steps taken."""
        self._actions: npt.NDArray[Any] = np.zeros((num_envs, 0))

    def add(self, actions: npt.NDArray[Any], ended: BoolArray) -> None:
        """Append (E, N) or (E, N, A) actions; forget the episodes that ended with them."""
        held = self._actions.shape[1]
        if held == 0:
            self._actions = np.zeros((len(actions), 64, *actions.shape[1:]), actions.dtype)
        elif self.lengths.max() == held:
            self._actions = np.concatenate([self._actions, np.zeros_like(self._actions)], axis=1)
        self._actions[np.arange(len(actions)), self.lengths] = actions
        self.lengths += 1
        self.lengths[ended] = 0

    def restore(self, lengths: npt.NDArray[np.int64], actions: npt.NDArray[Any]) -> None:
        """Continue with (E,) lengths and (E, L, ...) actions, as `lengths` and `actions` gave."""
        self.lengths, self._actions = lengths.copy(), actions.copy()

    @property
    def actions(self) -> npt.NDArray[Any]:
        """(E, L, N) or (E, L, N, A); zero beyond an environment's own length."""
        longest = int(self.lengths.max())
        kept = self._actions[:, :longest].copy()
        kept[np.arange(longest) >= self.lengths[:, None]] = 0
        return kept
