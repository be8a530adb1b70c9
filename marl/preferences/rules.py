"""Labellers that judge by what is known of finished episodes: named numbers, one after another.

Axes: M episodes, B pairs, P stored episodes.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from envs import EnvSpec
from marl.config import ConfigError
from marl.episodes import Episodes
from marl.preferences.labellers import EpisodePairs

NEIGHBOURS = 5
"""A final state is as novel as it is far from its fifth nearest neighbour."""


def novelty(episodes: Episodes) -> Float[Tensor, "M"]:
    """Return how far each final state is from the others that are kept.

    Euclidean distance to the fifth nearest (the farthest, of fewer), every feature in its
    deviations over the kept episodes.
    """
    store = episodes.store
    known = torch.cat((store.available(), store.available(held_out=True)))
    others = store.final_states(known)
    scale = others.std(dim=0, correction=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    mine, places = episodes.numbers.unique(return_inverse=True)
    distances = torch.cdist(store.final_states(mine) / scale, others / scale)
    nearest = min(NEIGHBOURS + 1, len(known))  # the nearest of all is the episode itself
    return distances.kthvalue(nearest, dim=1).values[places]


COMPUTED: dict[str, tuple[Callable[[Episodes], Tensor], bool | None]] = {
    "return": (lambda episodes: episodes.returns, True),
    "length": (lambda episodes: episodes.lengths.to(torch.float32), None),
    "novelty": (novelty, True),
}
"""What is known of episodes of any environment, and whether more of it is better."""


@dataclass(frozen=True, kw_only=True)
class FactRule:
    """One number to compare episodes by."""

    name: str
    value: Callable[[Episodes], Tensor]
    """From M episodes to (M,)."""
    sign: float
    """1: more is better; -1: less is."""
    margin: float = 0.0
    """Values no farther apart than this are equal."""


@dataclass(frozen=True, kw_only=True)
class FactsLabeller:
    """Compares by the first rule, where that ties by the second, and so on: lexicographic.

    An episode pair that all rules call equal is a tie.
    """

    rules: tuple[FactRule, ...]

    def __call__(self, pairs: EpisodePairs) -> Float[Tensor, "B"]:
        labels = torch.full_like(pairs.first.returns, 0.5)
        for rule in self.rules:
            gap = rule.sign * (rule.value(pairs.first) - rule.value(pairs.second))
            decides = (labels == 0.5) & (gap.abs() > rule.margin)
            labels = torch.where(decides, (gap > 0).to(labels.dtype), labels)
        return labels


def facts_labeller(
    spec: EnvSpec, names: tuple[str, ...], margins: tuple[float, ...] = (), *, setting: str
) -> FactsLabeller:
    """Return the rule over some facts, each named as ``won``, ``time+`` or ``time-``.

    The sign may also come first, ``-time``, which a command line takes for a flag.

    `setting` names in errors where the names were read from.
    """
    if not names:
        raise ConfigError(f"{setting}: names no fact, so every pair would tie; name at least one")
    margins = margins or (0.0,) * len(names)
    rules = [_rule(spec, name, setting) for name in names]
    return FactsLabeller(
        rules=tuple(
            FactRule(name=rule.name, value=rule.value, sign=rule.sign, margin=margin)
            for rule, margin in zip(rules, margins, strict=True)
        )
    )


def _rule(spec: EnvSpec, signed: str, setting: str) -> FactRule:
    """Return the rule that one signed name stands for."""
    name, sign = _name_and_sign(signed, setting)
    directions = {fact.name: fact.higher_is_better for fact in spec.facts}
    if name in directions:
        value, higher = _fact([*directions].index(name)), directions[name]
    elif name in COMPUTED:
        value, higher = COMPUTED[name]
    else:
        known = [*directions, *COMPUTED]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(
            f"{setting}: environment {spec.name} tells no fact {name!r}{hint} It can be judged by "
            f"{', '.join(known)}"
        )
    if sign:
        higher = sign == "+"
    if higher is None:
        raise ConfigError(
            f"{setting}: neither more nor less of {name!r} is better by itself; write '{name}+' "
            f"or '{name}-'"
        )
    return FactRule(name=name, value=value, sign=1.0 if higher else -1.0)


def _name_and_sign(signed: str, setting: str) -> tuple[str, str]:
    """Return a name and its "+" or "-", which stands before or after it; "" where it has none."""
    name = signed.strip("+-")
    sign = signed.replace(name, "", 1)
    if len(sign) > 1:
        raise ConfigError(
            f"{setting}: {signed!r} has {len(sign)} signs, expected at most one, as in '{name}+' "
            f"or '{name}-'"
        )
    return name, sign


def _fact(column: int) -> Callable[[Episodes], Tensor]:
    """Return the function that reads one column of the facts."""
    return lambda episodes: episodes.facts[:, column]
