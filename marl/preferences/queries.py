"""Queries: which pairs of finished episodes are asked about, how many, and when.

Axes: E and M episodes, B pairs, K reward models. Episodes are named by their running number; larger
is newer.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from envs.rng import uniform
from marl.config import PreferenceConfig

DECAY = 10.0
"""A hyperbolic schedule ends at 1 / (1 + DECAY) of the rate it begins with."""

STRATA = 8
"""Ranges of equal width that stratified queries cut the returns into."""

BOOTSTRAP_SHARE = 0.632
"""Share of the answers that each member of an ensemble learns from: 1 - 1/e, as in a bootstrap."""


def draw_episodes(
    available: Int64[Tensor, "E"],
    latest: int,
    count: int,
    newest_share: float,
    generator: torch.Generator,
) -> Int64[Tensor, "M"]:
    """Return up to `count` different episodes, `newest_share` of them numbered from `latest` on.

    If one side of the split has too few, the other fills the gap; fewer than `count` come back
    only where fewer exist.
    """
    order = torch.randperm(len(available), generator=generator, device=available.device)
    shuffled = available[order]
    is_new = shuffled >= latest
    new, old = shuffled[is_new], shuffled[~is_new]
    num_new = min(len(new), max(round(count * newest_share), count - len(old)))
    return torch.cat((new[:num_new], old[: count - num_new]))


def all_pairs(count: int, device: torch.device) -> tuple[Int64[Tensor, "B"], Int64[Tensor, "B"]]:
    """Return the indices (i, j), i < j, of every pair among `count` episodes."""
    first, second = torch.triu_indices(count, count, offset=1, device=device)
    return first, second


def draw_pairs(
    query: str,
    available: Int64[Tensor, "E"],
    latest: int,
    count: int,
    newest_share: float,
    generator: torch.Generator,
) -> tuple[Int64[Tensor, "B"], Int64[Tensor, "B"]]:
    """Return up to `count` disjoint pairs of different episodes in random order of sides.

    ``uniform`` draws both sides from all episodes, ``newest_share`` draws that share of all
    sides from the newest batch, ``recent_with_older`` sets one of the newest batch against an
    older one.
    """
    if query == "recent_with_older":
        recent = draw_episodes(available[available >= latest], 0, count, 1.0, generator)
        older = draw_episodes(available[available < latest], 0, count, 1.0, generator)
        size = min(len(recent), len(older))
        return swapped(recent[:size], older[:size], generator)
    # Beyond the last episode none is new, and the share of new ones says nothing.
    start = latest if query == "newest_share" else int(available[-1]) + 1
    drawn = draw_episodes(available, start, 2 * count, newest_share, generator)
    return disjoint_pairs(drawn, generator)


def draw_stratified(
    available: Int64[Tensor, "E"],
    returns: Float[Tensor, "E"],
    count: int,
    generator: torch.Generator,
) -> Int64[Tensor, "M"]:
    """Return up to `count` different episodes, those of every range of returns equally likely.

    The returns are cut into ranges of equal width, so that rare returns, the best above all, are
    asked about as often as common ones. With equal returns the draw is uniform.
    """
    width = (returns.max() - returns.min()) / STRATA
    if width > 0:
        strata = ((returns - returns.min()) / width).long().clamp(max=STRATA - 1)
    else:
        strata = torch.zeros_like(available)
    weights = 1.0 / torch.bincount(strata, minlength=STRATA)[strata].to(torch.float32)
    size = min(count, len(available))
    return available[torch.multinomial(weights, size, generator=generator)]


def disjoint_pairs(
    drawn: Int64[Tensor, "M"], generator: torch.Generator
) -> tuple[Int64[Tensor, "B"], Int64[Tensor, "B"]]:
    """Return M // 2 pairs of episodes, each at most once, paired and ordered at random."""
    drawn = drawn[torch.randperm(len(drawn), generator=generator, device=drawn.device)]
    half = len(drawn) // 2
    return swapped(drawn[:half], drawn[half : 2 * half], generator)


def swapped(
    first: Int64[Tensor, "B"], second: Int64[Tensor, "B"], generator: torch.Generator
) -> tuple[Int64[Tensor, "B"], Int64[Tensor, "B"]]:
    """Return the pairs in random order of sides."""
    swap = torch.rand(len(first), generator=generator, device=first.device) < 0.5
    return torch.where(swap, second, first), torch.where(swap, first, second)


def disagreement(logits: Float[Tensor, "K B"]) -> Float[Tensor, "B"]:
    """Return the standard deviation over models of P(first preferred) = sigmoid(logit)."""
    return torch.sigmoid(logits).std(dim=0, correction=0)


def entropy(logits: Float[Tensor, "K B"]) -> Float[Tensor, "B"]:
    """Return the entropy in nats of the models' mean P(first preferred)."""
    first = torch.sigmoid(logits).mean(dim=0)
    return torch.special.entr(first) + torch.special.entr(1.0 - first)


def in_bootstrap(
    first: Int64[Tensor, "B"], second: Int64[Tensor, "B"], member: int
) -> Bool[Tensor, "B"]:
    """Return which pairs an ensemble's `member` learns from: a hash of the three numbers."""
    seeds = first.cpu().numpy().astype(np.uint64) + np.uint64(member << 40)
    draws = torch.as_tensor(uniform(seeds, second.cpu().numpy(), 1)[:, 0] < BOOTSTRAP_SHARE)
    return draws.to(first.device)


def allotted(count: int, room: Sequence[int], first: int) -> list[int]:
    """Return how many of `count` pairs each process asks, as equally as their `room` allows.

    What does not divide goes to the processes from number `first` on.
    """
    parts = [0] * len(room)
    order = [(first + k) % len(room) for k in range(len(room))]
    while count:
        open_ = [k for k in order if parts[k] < room[k]]
        if not open_:
            break
        each = max(1, min(count // len(open_), min(room[k] - parts[k] for k in open_)))
        for k in open_[:count]:
            parts[k] += each
            count -= each
    return parts


class Budget:
    """Counts the pairs that are due and those that were asked, up to `max_labels`.

    Of several processes each has the same counts, over all of them.
    """

    def __init__(self, config: PreferenceConfig) -> None:
        self.config = config
        self.due = 0.0
        """Pairs the schedule has granted so far, a fraction of one included."""
        self.asked = 0
        """Pairs asked so far."""

    def grant(self, progress: float) -> tuple[int, int]:
        """Return how many pairs to ask now: to train on, and held out to measure with.

        `progress` is the share of the run that is over. Both sides are rounded in the long run,
        not each time, so that small rates come to their share.
        """
        rate: float = self.config.queries_per_iteration
        if self.config.schedule == "hyperbolic":
            rate /= 1.0 + DECAY * progress
        before, self.due = self.due, self.due + rate
        share = 1.0 / self.config.holdout_every
        held_out = round(self.due * share) - round(before * share)
        train = round(self.due * (1.0 - share)) - round(before * (1.0 - share))
        if self.config.max_labels:
            left = max(0, self.config.max_labels - self.asked)
            held_out = min(held_out, left)
            train = min(train, left - held_out)
        return train, held_out

    def state_dict(self) -> dict[str, Any]:
        """Return both counts."""
        return {"due": self.due, "asked": self.asked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.due, self.asked = state["due"], state["asked"]
