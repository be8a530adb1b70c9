"""A labeller of the study of labels (`studies/labels.toml`), to which at first all episodes tie.

Axes: B pairs.
"""

import torch
from torch import Tensor

from marl import EpisodePairs

NUM_AGENTS = 6
ARRIVED = 2
"""Column of the fact ``arrived`` of `particles/nav_6`."""


def all_arrived(pairs: EpisodePairs) -> Tensor:
    """Return (B,) labels that prefer episodes in which everyone arrived: early on, all ties."""
    first, second = (
        (side.facts[:, ARRIVED] == NUM_AGENTS).to(torch.float32)
        for side in (pairs.first, pairs.second)
    )
    labels: Tensor = 0.5 + 0.5 * (first - second)
    return labels
