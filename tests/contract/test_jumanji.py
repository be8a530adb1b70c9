"""Jumanji's teams keep the environment contract."""

import numpy as np
import pytest

from envs import EnvError, VecEnv, check_env, make_env

pytest.importorskip("jumanji", reason="the extra jumanji is not installed")

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture(scope="module")
def foraging() -> VecEnv:
    return make_env("jumanji/foraging", 8)


def test_contract(foraging: VecEnv) -> None:
    assert check_env(foraging, steps=40) == []


def test_what_is_eaten_is_paid_and_told(foraging: VecEnv) -> None:
    """A team that always loads where it can eats what it happens to stand beside together."""
    step, rng = foraging.reset(0), np.random.default_rng(0)
    assert len(foraging.frame(7).anchors) == 2  # type: ignore[attr-defined]
    eaten, sums, told = 0, np.zeros(8), np.zeros(8)
    for _ in range(300):
        assert step.action_mask is not None
        chances = rng.random(step.action_mask.shape) * step.action_mask
        chances[:, :, 5] *= 100
        step = foraging.step(chances.argmax(axis=2))
        sums += foraging.hidden_rewards()  # type: ignore[attr-defined]
        done = step.terminated | step.truncated
        assert step.facts is not None
        told = step.facts[:, 0]
        # All food is worth 1 together; each of two pieces is a part of it.
        np.testing.assert_array_equal(told == 0, sums < 1e-6)
        np.testing.assert_allclose(sums[told == 1], 1, rtol=1e-5)
        np.testing.assert_array_equal(step.terminated, told == 1)
        np.testing.assert_allclose(step.rewards[done], sums[done], rtol=1e-5)
        eaten += int(done @ told)
        sums[done] = 0
    assert eaten > 0


def test_names_and_options() -> None:
    with pytest.raises(EnvError, match="there is no environment 'jumanji/warehouse_tiny_3ag'"):
        make_env("jumanji/warehouse_tiny_3ag", 1)
    with pytest.raises(EnvError, match=r"jumanji/foraging: Jumanji refuses its options.*'cells'"):
        make_env("jumanji/foraging", 1, cells=3)
