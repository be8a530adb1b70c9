"""Finished episodes as labellers see them, wherever they are kept.

Axes: M episodes, B of them chosen, K sampled steps, L steps of the longest, N agents; F facts.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from marl.types import Transitions


@runtime_checkable
class EpisodeStore(Protocol):
    """Where the steps of finished episodes lie, every episode named by its number."""

    def available(self, *, held_out: bool = False) -> Int64[Tensor, "M"]:
        """Return the numbers of all whole episodes, oldest first, of one side of the split."""
        ...

    def return_moments(self) -> tuple[float, float]:
        """Return mean and standard deviation of the returns; a deviation of zero as 1."""
        ...

    def final_states(self, numbers: Int64[Tensor, "M"]) -> Float[Tensor, "M S"]:
        """Return the team's state at the end of each episode."""
        ...

    def steps(self, numbers: Int64[Tensor, "M"], offsets: Int64[Tensor, "M K"]) -> Transitions:
        """Return the transitions of episodes at steps `offsets`, clamped to their last step."""
        ...

    def facts_at(
        self, numbers: Int64[Tensor, "M"], offsets: Int64[Tensor, "M K"]
    ) -> Float[Tensor, "M K F"]:
        """Return what was known after the steps `offsets`, clamped to the last."""
        ...

    def alive_at(
        self, numbers: Int64[Tensor, "M"], offsets: Int64[Tensor, "M K"]
    ) -> Bool[Tensor, "M K N"] | None:
        """Return who took part in the steps `offsets`, clamped to the last; None: all, always."""
        ...


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """M finished episodes as a labeller sees them."""

    store: EpisodeStore
    numbers: Int64[Tensor, "M"]
    """Running number of each episode in its run."""
    returns: Float[Tensor, "M"]
    """Sum of the task rewards, which the end revealed."""
    lengths: Int64[Tensor, "M"]
    """Steps."""
    terminated: Bool[Tensor, "M"]
    """Whether the task ended, rather than being interrupted."""
    facts: Float[Tensor, "M F"]
    """What the environment tells about each episode, in the order of `EnvSpec.facts`."""

    def transitions(self) -> Transitions:
        """Return all steps, (M, L) with L the longest length; later rows repeat the last step."""
        longest = int(self.lengths.max()) if len(self.lengths) else 0
        steps = torch.arange(longest, device=self.lengths.device)
        return self.store.steps(self.numbers, steps.expand(len(self.numbers), longest))

    def alive(self) -> Bool[Tensor, "M L N"] | None:
        """Return who took part in each step, as in `transitions`; None if nobody ever dies."""
        longest = int(self.lengths.max()) if len(self.lengths) else 0
        steps = torch.arange(longest, device=self.lengths.device)
        return self.store.alive_at(self.numbers, steps.expand(len(self.numbers), longest))

    def facts_at(self, offsets: Int64[Tensor, "M K"]) -> Float[Tensor, "M K F"]:
        """Return the facts after some steps, counted from 0 and clamped to the last."""
        return self.store.facts_at(self.numbers, offsets)

    def rows(self, index: Int64[Tensor, "B"] | Bool[Tensor, "M"]) -> "Episodes":
        """Return some of these episodes."""
        return Episodes(
            store=self.store,
            numbers=self.numbers[index],
            returns=self.returns[index],
            lengths=self.lengths[index],
            terminated=self.terminated[index],
            facts=self.facts[index],
        )

    def __len__(self) -> int:
        return len(self.numbers)


def transitions_at(
    rows: dict[str, Tensor],
    now: Int64[Tensor, "M K"],
    following: Int64[Tensor, "M K"],
    is_last: Bool[Tensor, "M K"],
    finals: dict[str, Tensor],
    terminated: Bool[Tensor, "M"],
) -> Transitions:
    """Return the transitions at the rows `now`, which lead to `following` or, at the last, to
    the episode's final observation and state, and to who was alive there."""

    def at(name: str, index: Tensor) -> Tensor:
        return rows[name].index_select(0, index.flatten()).unflatten(0, index.shape)

    def after(name: str) -> Tensor:
        final = finals[name]
        tail = (1,) * (final.ndim - 1)
        return torch.where(is_last.view(*is_last.shape, *tail), final[:, None], at(name, following))

    alive = next_alive = None
    if "alive" in rows:
        alive = at("alive", now)
        next_alive = after("alive")
    return Transitions(
        obs=at("obs", now),
        state=at("state", now),
        actions=at("actions", now),
        next_obs=after("obs"),
        next_state=after("state"),
        terminated=is_last & terminated.unsqueeze(-1),
        alive=alive,
        next_alive=next_alive,
        action_mask=at("action_mask", now) if "action_mask" in rows else None,
    )
