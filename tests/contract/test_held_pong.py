"""The game of cooperative_pong with held actions is PettingZoo's, every frame of it."""

import numpy as np
import pytest

from benchmarks.third_party import held_pong
from envs import check_env, open_env

pytest.importorskip("pygame", reason="needs pygame")


def test_actions_are_held_and_the_last_frame_is_seen() -> None:
    from pettingzoo.butterfly import cooperative_pong_v6

    theirs, ours = cooperative_pong_v6.parallel_env(render_mode="rgb_array"), held_pong(4)
    assert ours.max_steps == 225
    begun, _ = theirs.reset(seed=3)
    seen, _ = ours.reset(seed=3)
    rng = np.random.default_rng(0)
    for agent in ours.agents:
        assert np.array_equal(seen[agent], begun[agent])
    for _ in range(225):
        actions = {agent: int(rng.integers(3)) for agent in ours.agents}
        seen, rewards, ended, cut, _ = ours.step(actions)
        expected = 0.0
        for _ in range(4):
            if theirs.agents:
                picture, paid, over, _, _ = theirs.step(actions)
                expected += paid["paddle_0"]
        assert rewards == pytest.approx(dict.fromkeys(actions, expected))
        assert np.array_equal(seen["paddle_1"], picture["paddle_1"])
        if over["paddle_0"]:
            break
    assert ended == dict.fromkeys(actions, True)
    assert cut == dict.fromkeys(actions, False)
    assert ours.agents == []


def test_it_fits_the_adapter() -> None:
    options = {"shrink": 8, "grey": True, "own_state": False, "workers": 0}
    with open_env("benchmarks.third_party:held_pong", 2, **options) as env:
        assert env.spec.obs_image == (35, 60, 1)
        assert check_env(env, steps=30) == []
