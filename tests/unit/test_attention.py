"""Attention and what agents add to coalitions, numbers by hand.

Axes: L positions, N agents, C coalitions, W width.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from marl.nn import attention
from marl.nn.attention import SelfAttention, ShapleyAttention, draw_coalitions
from tests.reward_models import generator


def identity(module: nn.Module) -> None:
    """Make queries, keys, values and the output of one feature what goes in."""
    for name, parameter in module.named_parameters():
        nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)


def test_attention_by_hand() -> None:
    # One feature: scores are q k. Position 1 (x = 1) sees 0 and 1 with weights 1 : e.
    block = SelfAttention(1, 1, generator())
    identity(block)
    x = torch.tensor([[[0.0], [1.0]]])
    share = math.e / (1.0 + math.e)
    torch.testing.assert_close(block(x).flatten(), torch.tensor([0.5, share]))
    torch.testing.assert_close(block(x, is_causal=True).flatten(), torch.tensor([0.0, share]))
    alone = torch.eye(2, dtype=torch.bool).unsqueeze(0)
    torch.testing.assert_close(block(x, alone), x)


def test_two_heads_see_each_their_own_features() -> None:
    # Without their projections: head 0 reads feature 0, head 1 feature 1, as alone above.
    block = SelfAttention(2, 2, generator())
    for layer in (*block.inputs, block.output):
        assert isinstance(layer, nn.Linear)
        nn.init.eye_(layer.weight)
    x = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    share = math.e / (1.0 + math.e)
    torch.testing.assert_close(block(x)[0], torch.tensor([[0.5, share], [share, 0.5]]))


def coalitions_of(*members: list[list[bool]]) -> Tensor:
    return torch.tensor(members)


@pytest.mark.parametrize("acting", [True, False])
def test_contributions_by_hand(monkeypatch: pytest.MonkeyPatch, acting: bool) -> None:
    """Of two agents (x = 0, 1), with each other and alone; agent 0 may not be there."""
    block = ShapleyAttention(2, 1, 1, 2, generator())
    identity(block.attention)
    nn.init.zeros_(block.ids)
    both, alone = [[True, True], [True, True]], [[False, False], [False, False]]
    drawn = coalitions_of(both, alone)
    monkeypatch.setattr(attention, "draw_coalitions", lambda *_: drawn)
    found = block(torch.tensor([[[0.0], [1.0]]]), torch.tensor([[acting, True]])).flatten()
    share = math.e / (1.0 + math.e)
    if acting:  # the mean of .5 and 0, of e / (1 + e) and 1
        torch.testing.assert_close(found, torch.tensor([0.25, (share + 1.0) / 2]))
    else:  # nobody is with agent 1
        assert found[1] == 1.0


def test_every_other_agent_joins_half_of_the_coalitions() -> None:
    # Deviation of a share of 4,000 draws: .008.
    drawn = draw_coalitions(4000, 3, generator()).to(torch.float32).mean(dim=0)
    assert (drawn - 0.5).abs().max() < 0.04
