"""The written-out passes of recurrent networks against autograd, in double precision.

Axes: L steps, B rows, N agents; I, S features.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.nn.gru import RecurrentBody
from marl.nn.gru_passes import ExplicitGRU, explicit_passes
from marl.nn.layers import with_team
from tests.unit.test_explicit_mlp import SIZES, randomised


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31),
    SIZES,
    SIZES,
    st.integers(0, 4),
    st.lists(SIZES, min_size=2, max_size=4).map(tuple),
    st.booleans(),
)
def test_chunks_of_steps(
    seed: int, agents: int, own: int, shared: int, widths: tuple[int, ...], knows_ids: bool
) -> None:
    """Both passes agree with autograd's to 1e-6, also if the memory has been used before."""
    source = torch.Generator().manual_seed(seed)
    knows_ids = knows_ids or shared > 0  # the team's features come behind the ids
    body = RecurrentBody(
        agents,
        own + shared,
        widths,
        1 + seed % 3,
        shared=True,
        output_gain=1.0,
        generator=source,
        ids_at=own if knows_ids else None,
    )
    randomised(body, source)
    explicit, parameters = ExplicitGRU(body), list(body.parameters())
    for steps, rows in ((3, 2), (4, 5), (1, 3), (5, 1)):
        options = {"generator": source, "dtype": torch.float64}
        x = torch.randn(steps, rows, agents, own, **options)
        team = torch.randn(steps, rows, shared, **options) if shared else None
        hidden = torch.randn(rows, *body.hidden_shape, **options)
        starts = torch.rand(steps, rows, generator=source) < 0.3
        expected, _ = body(x if team is None else with_team(x, team), hidden, starts)
        found = explicit.forward(hidden, starts, x, team)
        torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-12)
        slope = torch.randn(expected.shape, **options)
        gradients = torch.autograd.grad((expected * slope).sum(), parameters)
        explicit.set_gradients(slope)
        for (name, parameter), gradient in zip(body.named_parameters(), gradients, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(
                parameter.grad, gradient, rtol=1e-6, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_other_recurrent_networks_are_left_to_autograd() -> None:
    for widths, shared in (((4,), True), ((4, 4), False)):
        source = torch.Generator()
        body = RecurrentBody(2, 3, widths, 1, shared=shared, output_gain=1.0, generator=source)
        assert explicit_passes(body) is None
        with pytest.raises(ValueError, match="no explicit passes"):
            ExplicitGRU(body)
