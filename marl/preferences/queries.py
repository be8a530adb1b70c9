"""Which finished episodes are compared.

Axes: M episodes, B pairs. Episodes are named by their running number; larger is newer.
"""

import torch
from jaxtyping import Int64
from torch import Tensor


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
        first, second = recent[:size], older[:size]
    else:
        share = newest_share if query == "newest_share" else 0.0
        start = latest if query == "newest_share" else int(available[-1]) + 1
        drawn = draw_episodes(available, start, 2 * count, share, generator)
        drawn = drawn[torch.randperm(len(drawn), generator=generator, device=drawn.device)]
        half = len(drawn) // 2
        first, second = drawn[:half], drawn[half : 2 * half]
    swap = torch.rand(len(first), generator=generator, device=first.device) < 0.5
    return torch.where(swap, second, first), torch.where(swap, first, second)
