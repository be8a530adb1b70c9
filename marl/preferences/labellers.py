"""Labellers: episode pairs in, P(first preferred) out.

Axes: B pairs, D of them chosen; M episodes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from envs.user_code import place_of
from marl.config import ConfigError
from marl.episodes import Episodes
from marl.plugins import PluginError
from marl.trajectories import TrajectoryStore


@dataclass(frozen=True, kw_only=True)
class EpisodePairs:
    """B pairs to compare: row b of `first` against row b of `second`."""

    first: Episodes
    second: Episodes

    def rows(self, index: Int64[Tensor, "D"] | Bool[Tensor, "B"]) -> "EpisodePairs":
        """Return some of these pairs."""
        return EpisodePairs(first=self.first.rows(index), second=self.second.rows(index))

    def __len__(self) -> int:
        return len(self.first)


@runtime_checkable
class Labeller(Protocol):
    """Any callable from pairs to labels; a plain function will do.

    What it does not know it answers with NaN. An exception stops the run with its state saved.
    Training waits for the answers, up to ``preferences.deadline``.
    """

    def __call__(self, pairs: EpisodePairs) -> Float[Tensor, "B"]:
        """Return (B,) P(first preferred): 1 first, 0 second, 0.5 tie, NaN no answer."""
        ...


@dataclass(frozen=True, kw_only=True)
class ReturnLabeller:
    """Prefers the larger episodic return.

    Returns within `margin` of each other tie. `sharpness` k > 0 softens the label to
    sigmoid(k (G_1 - G_2) / std G), with the deviation over the returns of the pairs. A `discount`
    below 1 takes G discount^(T - 1) for G: what is paid in the last step, seen from the first.
    """

    margin: float = 0.0
    sharpness: float = 0.0
    discount: float = 1.0

    def __call__(self, pairs: EpisodePairs) -> Float[Tensor, "B"]:
        first, second = self._values(pairs.first), self._values(pairs.second)
        gap = first - second
        tie = gap.abs() <= self.margin
        if self.sharpness > 0.0:
            scale = torch.cat((first, second)).std(correction=0).clamp(min=1e-8)
            labels = torch.sigmoid(self.sharpness * gap / scale)
        else:
            labels = (gap > 0).to(torch.float32)
        return labels.masked_fill(tie, 0.5)

    def _values(self, episodes: Episodes) -> Float[Tensor, "B"]:
        """Return what each episode is worth at its beginning."""
        return episodes.returns * self.discount ** (episodes.lengths - 1)


@runtime_checkable
class HasParts(Protocol):
    """A labeller made of others; their state and their metrics are looked after too."""

    @property
    def parts(self) -> tuple[Labeller, ...]:
        """The labellers it asks."""
        ...


@runtime_checkable
class HasState(Protocol):
    """A labeller that changes during training; saved and restored with the run."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, arrays, numbers, strings and nested dicts."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from `state_dict()`."""
        ...


@runtime_checkable
class HasMetrics(Protocol):
    """A labeller with something to report each iteration."""

    def metrics(self) -> dict[str, float]:
        """Return numbers by name; they are written as ``labeller/<name>``."""
        ...


@runtime_checkable
class IsSelective(Protocol):
    """A labeller that can be asked about some episodes only."""

    def can_judge(self, episodes: Episodes) -> Bool[Tensor, "M"]:
        """Return which of M episodes it may be asked about."""
        ...


@dataclass(frozen=True, kw_only=True)
class LateAnswers:
    """Answers to B pairs that were asked about before."""

    first: Int64[Tensor, "B"]
    """Numbers of episodes in the run."""
    second: Int64[Tensor, "B"]
    labels: Float[Tensor, "B"]
    """In place of whatever was answered to the pair before; NaN: none will come, or none stands
    any more."""


@runtime_checkable
class AnswersLate(Protocol):
    """A labeller whose answers may come long after the question: its NaN means not yet."""

    def late_answers(self, store: TrajectoryStore) -> LateAnswers:
        """Return what has been answered since the last call, about whole episodes of `store`."""
        ...


def parts_of(labeller: Labeller) -> Iterator[Labeller]:
    """Yield a labeller and, depth first, all that it is made of."""
    yield labeller
    if isinstance(labeller, HasParts):
        for part in labeller.parts:
            yield from parts_of(part)


def labeller_state(labeller: Labeller) -> list[dict[str, Any]]:
    """Return the states of a labeller and its parts that have one."""
    return [part.state_dict() for part in parts_of(labeller) if isinstance(part, HasState)]


def load_labeller_state(labeller: Labeller, states: list[dict[str, Any]]) -> None:
    """Continue from `labeller_state()` of a labeller made of the same parts."""
    stateful = [part for part in parts_of(labeller) if isinstance(part, HasState)]
    if len(stateful) != len(states):
        raise ConfigError(
            f"the saved run has {len(states)} labellers with a state, this one {len(stateful)}; "
            "resume with the labeller it was trained with"
        )
    for part, state in zip(stateful, states, strict=True):
        part.load_state_dict(state)


def labeller_metrics(labeller: Labeller) -> dict[str, float]:
    """Return what a labeller and its parts report, as ``labeller/<name>``."""
    return {
        f"labeller/{name}": float(value)
        for part in parts_of(labeller)
        if isinstance(part, HasMetrics)
        for name, value in part.metrics().items()
    }


def name_of(labeller: Labeller) -> str:
    """Return what to call a labeller in a message."""
    own = getattr(labeller, "__qualname__", type(labeller).__name__)
    return str(own)


def checked_labels(labeller: Labeller, name: str, pairs: EpisodePairs) -> Float[Tensor, "B"]:
    """Return what a labeller answers, or raise `PluginError` if it fails or breaks its promise."""
    labels = _asked(labeller, name, pairs)
    if not isinstance(labels, Tensor):
        raise PluginError(
            f"labeller {name} returned {type(labels).__name__}, expected a torch.Tensor of "
            f"{len(pairs)} labels, one per pair"
        )
    if labels.shape != (len(pairs),):
        raise PluginError(
            f"labeller {name} returned shape {tuple(labels.shape)} for {len(pairs)} pairs; "
            f"return shape ({len(pairs)},), NaN where it has no answer"
        )
    if not labels.is_floating_point():
        raise PluginError(
            f"labeller {name} returned dtype {labels.dtype}, expected a floating dtype; "
            "labels are probabilities that the first is preferred"
        )
    bad = ~(labels.isnan() | ((labels >= 0.0) & (labels <= 1.0)))
    if bool(bad.any()):
        index = int(bad.nonzero()[0])
        raise PluginError(
            f"labeller {name} returned {float(labels[index])} for pair {index}, expected "
            "P(first preferred) in [0, 1], or NaN where it has no answer"
        )
    return labels.to(torch.float32)


def _asked(labeller: Labeller, name: str, pairs: EpisodePairs) -> object:
    """Return the raw answer; an exception comes back as a `PluginError` that says where it rose."""
    try:
        return labeller(pairs)
    except (PluginError, ConfigError):
        raise
    except Exception as error:
        raise PluginError(
            f"labeller {name} raised {type(error).__name__}: {error} ({place_of(error)}) when "
            f"asked about {len(pairs)} pairs; return NaN where it has no answer"
        ) from error
