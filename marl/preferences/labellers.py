"""Labellers: episode pairs in, P(first preferred) out.

Axes: B pairs.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from marl import plugins
from marl.config import PreferenceConfig
from marl.trajectories import Episodes


@dataclass(frozen=True, kw_only=True)
class EpisodePairs:
    """B pairs to compare: row b of `first` against row b of `second`."""

    first: Episodes
    second: Episodes

    def __len__(self) -> int:
        return len(self.first)


@runtime_checkable
class Labeller(Protocol):
    """Any callable from pairs to labels; a plain function will do."""

    def __call__(self, pairs: EpisodePairs) -> Float[Tensor, "B"]:
        """Return (B,) P(first preferred): 1 first, 0 second, 0.5 tie, NaN no answer."""
        ...


@dataclass(frozen=True, kw_only=True)
class ReturnLabeller:
    """Prefers the larger episodic return.

    Returns within `margin` of each other tie. `sharpness` k > 0 softens the label to
    sigmoid(k (G_1 - G_2) / std G), with the deviation over the returns of the pairs.
    """

    margin: float = 0.0
    sharpness: float = 0.0

    def __call__(self, pairs: EpisodePairs) -> Float[Tensor, "B"]:
        gap = pairs.first.returns - pairs.second.returns
        tie = gap.abs() <= self.margin
        if self.sharpness > 0.0:
            returns = torch.cat((pairs.first.returns, pairs.second.returns))
            scale = returns.std(correction=0).clamp(min=1e-8)
            labels = torch.sigmoid(self.sharpness * gap / scale)
        else:
            labels = (gap > 0).to(torch.float32)
        return labels.masked_fill(tie, 0.5)


def make_labeller(config: PreferenceConfig) -> Labeller:
    """Return the labeller a configuration names."""
    if config.labeller == "return":
        return ReturnLabeller(margin=config.margin, sharpness=config.sharpness)
    loaded = plugins.load(config.labeller, "preferences.labeller")
    labeller: Labeller = loaded() if isinstance(loaded, type) else loaded
    return labeller


def checked_labels(labeller: Labeller, name: str, pairs: EpisodePairs) -> Float[Tensor, "B"]:
    """Return what a labeller answers, or raise `PluginError` if it breaks its promise."""
    labels = labeller(pairs)
    if not isinstance(labels, Tensor):
        raise plugins.PluginError(
            f"labeller {name} returned {type(labels).__name__}, expected a torch.Tensor of "
            f"{len(pairs)} labels, one per pair"
        )
    if labels.shape != (len(pairs),):
        raise plugins.PluginError(
            f"labeller {name} returned shape {tuple(labels.shape)} for {len(pairs)} pairs; "
            f"return shape ({len(pairs)},), NaN where it has no answer"
        )
    if not labels.is_floating_point():
        raise plugins.PluginError(
            f"labeller {name} returned dtype {labels.dtype}, expected a floating dtype; "
            "labels are probabilities that the first is preferred"
        )
    bad = ~(labels.isnan() | ((labels >= 0.0) & (labels <= 1.0)))
    if bool(bad.any()):
        index = int(bad.nonzero()[0])
        raise plugins.PluginError(
            f"labeller {name} returned {float(labels[index])} for pair {index}, expected "
            "P(first preferred) in [0, 1], or NaN where it has no answer"
        )
    return labels.to(torch.float32)
