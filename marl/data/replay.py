"""The replay buffer: recent steps, the finished episodes in them, and batches of both.

Axes: T time, E environments, N agents, M episodes, K sampled steps, L steps of an episode; O, S, A
features, F facts.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, Num
from torch import Tensor

from envs import EnvSpec
from marl.config import ConfigError, PreferenceConfig, RewardConfig
from marl.data.types import (
    FINAL_FIELDS,
    Episodes,
    History,
    Rollout,
    Transitions,
    allocate,
    step_fields,
    transitions_at,
)
from marl.utils.checkpoint import check_saved, copy_saved


class ReplayBuffer:
    """A ring of steps and a ring of the episodes that ended in them, allocated once.

    An episode stays available until its first step is overwritten. Its observations are rows of
    the ring of steps; only what its last step led to is kept beside it, because the row that
    follows belongs to the next episode.
    """

    def __init__(
        self,
        spec: EnvSpec,
        rollout_steps: int,
        *,
        max_steps: int,
        max_episodes: int,
        holdout_every: int,
        device: torch.device,
    ) -> None:
        rollouts = max_steps // (rollout_steps * spec.num_envs)
        self.ring_steps = rollouts * rollout_steps
        if self.ring_steps < spec.max_steps + rollout_steps:
            needed = (spec.max_steps + 2 * rollout_steps) * spec.num_envs
            raise ConfigError(
                f"preferences.replay_steps: got {max_steps}, but {spec.num_envs} environments with "
                f"episodes of up to {spec.max_steps} steps need at least {needed}"
            )
        self.max_episodes = max_episodes
        self.holdout_every = holdout_every
        self.device = device
        self.time = 0
        """Steps of every environment so far; a step's row is its time modulo the ring's steps."""
        self.num_finished = 0
        self.latest = 0
        """Number (counted from 0) of the first episode of the newest batch that ended."""
        self.moments_of_all: tuple[float, float] | None = None
        """`return_moments` of all processes' episodes, where several train together."""
        self._overwritten: list[tuple[Tensor, slice | Tensor, Tensor]] = []
        """Tensor, rows and old values of each write of the last `append`."""
        self._before = (0, 0, 0)
        """`time`, `num_finished` and `latest` before it."""
        fields = step_fields(spec)
        self._steps = allocate(fields, (self.ring_steps, spec.num_envs), device)
        self._facts = torch.zeros(self.ring_steps, spec.num_envs, len(spec.facts), device=device)
        """Apart from the steps: labellers see facts, reward models do not."""
        finals = {name: fields[name] for name in FINAL_FIELDS if name in fields}
        self._finals = allocate(finals, (max_episodes,), device)
        self._episodes = {
            "start": torch.full((max_episodes,), -1, dtype=torch.int64, device=device),
            "env": torch.zeros(max_episodes, dtype=torch.int64, device=device),
            "length": torch.zeros(max_episodes, dtype=torch.int64, device=device),
            "terminated": torch.zeros(max_episodes, dtype=torch.bool, device=device),
            "returns": torch.zeros(max_episodes, device=device),
            "facts": torch.zeros(max_episodes, len(spec.facts), device=device),
        }

    @property
    def num_bytes(self) -> int:
        """Bytes held, all of them allocated at the start."""
        groups = (self._steps, self._finals, self._episodes, {"facts": self._facts})
        return sum(t.numel() * t.element_size() for group in groups for t in group.values())

    def append(self, rollout: Rollout) -> None:
        """Copy a rollout in, overwriting the oldest, and register the episodes that ended.

        `undo` takes it back, until the next one.
        """
        self._overwritten.clear()
        self._before = (self.time, self.num_finished, self.latest)
        steps, ended = rollout.transitions, rollout.episodes
        row = self.time % self.ring_steps
        span = slice(row, row + rollout.truncated.shape[0])
        for name, ring in self._steps.items():
            self._write(ring, span, getattr(steps, name))
        if rollout.facts is not None:
            self._write(self._facts, span, rollout.facts)
        keep = slice(max(0, len(ended.env) - self.max_episodes), None)
        end, env = ended.end_time[keep].to(self.device), ended.env[keep].to(self.device)
        lengths = ended.lengths[keep].to(self.device)
        if len(env):
            self.num_finished += keep.start
            self.latest = self.num_finished
            numbers = torch.arange(len(env), device=self.device) + self.num_finished
            slots = numbers % self.max_episodes
            rows = {
                "start": self.time + end + 1 - lengths,
                "env": env,
                "length": lengths,
                "terminated": ended.terminated[keep],
                "returns": ended.returns[keep],
            }
            if ended.facts is not None:
                rows["facts"] = ended.facts[keep]
            for name, values in rows.items():
                self._write(self._episodes[name], slots, values)
            for name, final in self._finals.items():
                self._write(final, slots, getattr(steps, f"next_{name}")[end, env])
            self.num_finished += len(env)
        self.time += rollout.truncated.shape[0]

    def undo(self) -> None:
        """Take the last `append` back; without one since, change nothing."""
        for ring, rows, values in self._overwritten:
            ring[rows] = values
        self._overwritten.clear()
        self.time, self.num_finished, self.latest = self._before

    def _write(self, ring: Tensor, rows: slice | Tensor, values: Tensor) -> None:
        self._overwritten.append((ring, rows, ring[rows].clone()))
        ring[rows] = values.to(self.device)

    def available(self, *, held_out: bool = False) -> Int64[Tensor, "M"]:
        """Return the numbers of all episodes still kept, oldest first, of one side of the split."""
        oldest = max(0, self.num_finished - self.max_episodes)
        numbers = torch.arange(oldest, self.num_finished, device=self.device)
        whole = self._episodes["start"][numbers % self.max_episodes] >= self.time - self.ring_steps
        split = (numbers % self.holdout_every == self.holdout_every - 1) == held_out
        return numbers[whole & split]

    def holds(self, numbers: Int64[Tensor, "M"]) -> Bool[Tensor, "M"]:
        """Return of which episodes every step is still kept."""
        recent = numbers >= self.num_finished - self.max_episodes
        starts = self._episodes["start"][numbers % self.max_episodes]
        return recent & (starts >= self.time - self.ring_steps)

    def episodes(self, numbers: Int64[Tensor, "M"]) -> "Episodes":
        """Return a view of some episodes, for labellers."""
        slots = numbers % self.max_episodes
        return Episodes(
            replay=self,
            numbers=numbers,
            returns=self._episodes["returns"][slots],
            lengths=self._episodes["length"][slots],
            terminated=self._episodes["terminated"][slots],
            facts=self._episodes["facts"][slots],
        )

    def origins(self, numbers: Int64[Tensor, "M"]) -> tuple[Int64[Tensor, "M"], Int64[Tensor, "M"]]:
        """Return the environment of each episode, and the time of its first step."""
        slots = numbers % self.max_episodes
        return self._episodes["env"][slots], self._episodes["start"][slots]

    def return_moments(self) -> tuple[float, float]:
        """Return mean and standard deviation of the kept episodes' returns; 0 and 1 of none.

        A deviation of zero comes back as 1: equal returns then differ by zero deviations.
        """
        if self.moments_of_all is not None:
            return self.moments_of_all
        returns = self.returns()
        if len(returns) == 0:
            return 0.0, 1.0
        return float(returns.mean()), float(returns.std(correction=0)) or 1.0

    def returns(self) -> Float[Tensor, "M"]:
        """Return the returns of the kept episodes, in double precision."""
        returns = self._episodes["returns"][: self.num_finished].to(torch.float64)
        missing = returns.isnan()  # where a run was dealt out to other processes
        return returns[~missing] if bool(missing.any()) else returns

    def final_states(self, numbers: Int64[Tensor, "M"]) -> Num[Tensor, "M S"]:
        """Return the team's state at the end of each episode."""
        return self._finals["state"][numbers % self.max_episodes]

    def facts_at(
        self, numbers: Int64[Tensor, "M"], offsets: Int64[Tensor, "M K"]
    ) -> Float[Tensor, "M K F"]:
        """Return the facts after the steps `offsets`, clamped to the last."""
        row, env, _ = self._locate(numbers, offsets)
        return self._facts[row, env]

    def alive_at(
        self, numbers: Int64[Tensor, "M"], offsets: Int64[Tensor, "M K"]
    ) -> Bool[Tensor, "M K N"] | None:
        """Return who was alive in the steps `offsets`, clamped to the last; None: all, always."""
        if "alive" not in self._steps:
            return None
        row, env, _ = self._locate(numbers, offsets)
        return self._steps["alive"][row, env]

    def _locate(
        self, numbers: Int64[Tensor, "M"], offsets: Int64[Tensor, "M K"]
    ) -> tuple[Int64[Tensor, "M K"], Int64[Tensor, "M 1"], Bool[Tensor, "M K"]]:
        """Return steps' rows in the ring, environments, and which are the last of an episode."""
        slots = numbers % self.max_episodes
        start, length = self._episodes["start"][slots], self._episodes["length"][slots]
        last = (length - 1).unsqueeze(-1)
        offsets = torch.minimum(offsets, last)
        row = (start.unsqueeze(-1) + offsets) % self.ring_steps
        return row, self._episodes["env"][slots].unsqueeze(-1), offsets == last

    def steps(self, numbers: Int64[Tensor, "M"], offsets: Int64[Tensor, "M K"]) -> Transitions:
        """Return the transitions of episodes at steps `offsets`, clamped to their last step."""
        slots = numbers % self.max_episodes
        row, env, is_last = self._locate(numbers, offsets)
        following = (row + 1) % self.ring_steps
        return transitions_at(
            {name: ring.flatten(0, 1) for name, ring in self._steps.items()},
            row * self.num_envs + env,
            following * self.num_envs + env,
            is_last,
            {name: final[slots] for name, final in self._finals.items()},
            self._episodes["terminated"][slots],
        )

    @property
    def num_envs(self) -> int:
        return self._steps["obs"].shape[1]

    def state_dict(self) -> dict[str, Any]:
        """Return the cursors, and the rows of the rings that were written."""
        steps, episodes = self._rows_written(self.time, self.num_finished)
        return {
            "time": self.time,
            "num_finished": self.num_finished,
            "latest": self.latest,
            "steps": {name: ring[:steps] for name, ring in self._steps.items()},
            "facts": self._facts[:steps],
            "finals": {name: final[:episodes] for name, final in self._finals.items()},
            "episodes": {name: column[:episodes] for name, column in self._episodes.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a buffer with the same settings."""
        self._check_saved(state)
        steps, episodes = self._load_cursors(state)
        copy_saved(self._facts[:steps], state["facts"])
        for mine, theirs, rows in (
            (self._steps, state["steps"], steps),
            (self._finals, state["finals"], episodes),
            (self._episodes, state["episodes"], episodes),
        ):
            for key, tensor in mine.items():
                copy_saved(tensor[:rows], theirs[key])
        self._episodes["start"][episodes:] = -1

    def adopt(self, state: dict[str, Any], device: torch.device) -> None:
        """Read `state_dict()` of a buffer with the same settings, whose tensors are taken as they
        are: nothing is allocated, and nothing can be appended.

        For a buffer on the device ``meta``, of settings that nobody has checked.
        """
        self._check_saved(state)
        steps, episodes = self._load_cursors(state)
        self.device = device
        self._steps = {name: state["steps"][name] for name in self._steps}
        self._facts = state["facts"]
        self._finals = {name: state["finals"][name] for name in self._finals}
        self._episodes = {name: state["episodes"][name] for name in self._episodes}
        # Before a ring is full, each row is where it is in a ring of just these rows.
        self.ring_steps, self.max_episodes = max(1, steps), max(1, episodes)

    def _rows_written(self, time: int, num_finished: int) -> tuple[int, int]:
        """Return how many rows of the rings hold something, in steps and in episodes."""
        return min(time, self.ring_steps), min(num_finished, self.max_episodes)

    def _check_saved(self, state: dict[str, Any]) -> None:
        """Raise `ValueError` unless a state's tensors have the rows and types that they should."""
        steps, episodes = self._rows_written(state["time"], state["num_finished"])
        check_saved(self._facts, state["facts"], steps)
        for mine, theirs, rows in (
            (self._steps, state["steps"], steps),
            (self._finals, state["finals"], episodes),
            (self._episodes, state["episodes"], episodes),
        ):
            for name, tensor in mine.items():
                check_saved(tensor, theirs[name], rows)
        for name, limit in (("env", self.num_envs - 1), ("length", steps)):
            column = state["episodes"][name]
            if len(column) and not 0 <= int(column.min()) <= int(column.max()) <= limit:
                raise ValueError(f"an episode's {name} lies outside of 0 to {limit}")

    def _load_cursors(self, state: dict[str, Any]) -> tuple[int, int]:
        """Take the cursors of a state, and return how many rows it has written."""
        self.time, self.latest = int(state["time"]), int(state["latest"])
        self.num_finished = int(state["num_finished"])
        self._overwritten.clear()
        self._before = (self.time, self.num_finished, self.latest)
        return self._rows_written(self.time, self.num_finished)


def sample_steps(
    lengths: Int64[Tensor, "M"], count: int, generator: torch.Generator
) -> tuple[Int64[Tensor, "M K"], Float[Tensor, "M K"]]:
    """Return steps of each episode and weights that make their weighted sum unbiased.

    All T steps of an episode with T <= `count` come once, padded with weight 0. Of a longer one a
    step is drawn uniformly from each of `count` equal strata, with weight T / `count`. K is what
    the longest episode asks for.
    """
    longest = longest_of(lengths)
    columns = torch.arange(min(longest, count), device=lengths.device)
    whole = columns.expand(len(lengths), -1)
    spans = lengths.unsqueeze(-1)
    present = (columns < spans).to(torch.float32)
    if longest <= count:
        return whole, present
    jitter = torch.rand(whole.shape, generator=generator, device=lengths.device)
    drawn = ((columns + jitter) * spans / count).to(torch.int64)
    drawn = torch.minimum(drawn, spans - 1)
    is_short = spans <= count
    return torch.where(is_short, whole, drawn), torch.where(is_short, present, spans / count)


def longest_of(lengths: Int64[Tensor, "M"]) -> int:
    """Return the steps of the longest of some episodes; 1 of none."""
    return int(lengths.max()) if len(lengths) else 1


def make_replay(
    spec: EnvSpec, rollout_steps: int, config: PreferenceConfig, device: torch.device
) -> ReplayBuffer:
    """Return an empty replay buffer of the configured size."""
    return ReplayBuffer(
        spec,
        rollout_steps,
        max_steps=config.replay_steps,
        max_episodes=config.replay_episodes,
        holdout_every=config.holdout_every,
        device=device,
    )


def draw_steps(
    lengths: Int64[Tensor, "M"], count: int, generator: torch.Generator
) -> tuple[Int64[Tensor, "M K"], Float[Tensor, "M K"]]:
    """Return min(`count`, T) different steps of each episode, with weight T / min(`count`, T).

    All sets of steps are equally likely, unlike those of `sample_steps`, so that the variance of
    the weighted sum can be estimated. Padding has weight 0.
    """
    longest = longest_of(lengths)
    keys = torch.rand((len(lengths), longest), generator=generator, device=lengths.device)
    beyond = torch.arange(longest, device=lengths.device) >= lengths.unsqueeze(-1)
    offsets = keys.masked_fill(beyond, 2.0).argsort(dim=-1)[:, :count].sort(dim=-1).values
    is_real = offsets < lengths.unsqueeze(-1)
    sampled = is_real.sum(dim=-1, keepdim=True)
    return offsets, torch.where(is_real, lengths.unsqueeze(-1) / sampled, 0.0)


MAX_ROWS = 65_536
"""Steps that are read in one pass where nothing is learned."""

Sampled = tuple[Transitions, Float[Tensor, "M K"], Int64[Tensor, "M"]]
"""Steps, their weights in the estimated sum, and the lengths of the episodes."""


def sampled(
    episodes: Episodes, config: RewardConfig, generator: torch.Generator, *, reads_history: bool
) -> Sampled:
    """Return sampled steps of some episodes, the steps' weights, and the lengths.

    Episodes of at most `sample_steps` are read whole. A reward model that `reads_history` always
    gets whole ones, and is told which steps follow which.
    """
    count = longest_of(episodes.lengths) if reads_history else config.sample_steps
    draw = draw_steps if config.unbiased_regression else sample_steps
    offsets, weights = draw(episodes.lengths, count, generator)
    steps = episodes.replay.steps(episodes.numbers, offsets)
    steps = in_order(steps, offsets, weights > 0) if reads_history else steps
    return steps, weights, episodes.lengths


def every_step(episodes: Episodes, *, reads_history: bool) -> Iterator[Sampled]:
    """Yield all steps of some episodes, in parts of at most `MAX_ROWS` rows, each with weight 1.

    Rows behind an episode's last step have weight 0.
    """
    size = max(1, MAX_ROWS // longest_of(episodes.lengths))
    for start in range(0, len(episodes), size):
        rows = torch.arange(start, min(start + size, len(episodes)))
        part = episodes.rows(rows.to(episodes.lengths.device))
        steps = part.transitions()
        offsets = torch.arange(steps.terminated.shape[1], device=part.lengths.device)
        offsets = offsets.expand(steps.terminated.shape)
        present = offsets < part.lengths.unsqueeze(-1)
        steps = in_order(steps, offsets, present) if reads_history else steps
        yield steps, present.to(torch.float32), part.lengths


def in_order(
    steps: Transitions, offsets: Int64[Tensor, "M K"], present: Bool[Tensor, "M K"]
) -> Transitions:
    """Return successive steps of whole episodes with the history that their reader needs."""
    history = History(starts=offsets == 0, time_axis=1, present=present)
    return replace(steps, history=history)
