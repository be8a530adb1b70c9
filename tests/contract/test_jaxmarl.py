"""JaxMARL's tasks beside SMAX keep the environment contract and equal their sources."""

from typing import Any

import numpy as np
import pytest

from envs import EnvError, VecEnv, check_env, env_names, make_env
from envs.frames import FAINT, Caption, Segment
from envs.rng import env_seeds, random_actions

jax = pytest.importorskip("jax", reason="the extra smax is not installed")
pytest.importorskip("jaxmarl.registration", reason="the extra smax is not installed")

from envs.jaxmarl.quiet import import_quietly  # noqa: E402  # which needs them
from envs.jaxmarl.teams import JaxMarl  # noqa: E402

pytestmark = pytest.mark.usefixtures("compiled_quickly")

UP, DOWN, RIGHT, LEFT, STAY, INTERACT = range(6)
ONION = [LEFT, INTERACT, RIGHT, UP, INTERACT]
PLATE = [LEFT, DOWN, DOWN, INTERACT, UP, RIGHT, UP]
SERVE = [INTERACT, DOWN, RIGHT, DOWN, INTERACT]
COOKING = 20


@pytest.fixture(scope="module")
def riddle() -> VecEnv:
    return make_env("jaxmarl/switch_riddle_3", 3)


def test_contract(riddle: VecEnv) -> None:
    assert check_env(riddle, steps=60) == []


def test_a_riddle_is_won_lost_or_out_of_time(riddle: VecEnv) -> None:
    assert riddle.spec.successes == ("won",)
    riddle.reset(0)
    assert riddle.frame(0) is None  # type: ignore[attr-defined]
    riddle.reset(0)
    step = riddle.step(
        np.full((3, 3), 2)
    )  # whoever is in the room tells on the first day: too soon
    assert step.terminated.all()
    np.testing.assert_array_equal(step.rewards, [-1.0] * 3)
    ends = [riddle.step(np.zeros((3, 3), int)).terminated.all() for _ in range(6)]
    assert ends == [False] * 5 + [True]  # 4 * 3 - 6 days
    wins = 0
    for _ in range(60):  # told on the last day: three visits may have been those of all three
        for _ in range(5):
            riddle.step(np.zeros((3, 3), int))
        step = riddle.step(np.full((3, 3), 2))
        assert step.facts is not None
        np.testing.assert_array_equal(step.facts[:, 0], step.rewards > 0)
        wins += int((step.rewards == 1).sum())
    # All three of 6 visits: 1 - 3 (2/3)^6 + 3 (1/3)^6 = .741, of 180 episodes 133, deviation 5.9.
    assert 110 < wins < 156


def test_a_soup_is_cooked_and_served() -> None:
    """Agent 0 cooks alone: three onions, 20 steps, a plate; the other one stays away."""
    env = make_env("jaxmarl/overcooked_cramped_room", 2, max_steps=60, shaping=0.5)
    assert [fact.name for fact in env.spec.facts] == ["soups"]
    step = env.reset(3)
    assert step.obs.shape == (2, 2, 4 * 5 * 26)
    shown = env.frame(1)  # type: ignore[attr-defined]
    captions = sorted(shape.text for shape in shown.shapes if isinstance(shape, Caption))
    assert captions == ["0 of 3", "onions", "onions", "plates", "serve"]
    served = [*ONION * 3, *PLATE, *[STAY] * (COOKING - len(PLATE)), *SERVE]
    rewards, soups = [], []
    for t in range(60):
        action = served[t] if t < len(served) else STAY
        step = env.step(np.array([[action, STAY]] * 2))
        rewards.append(env.hidden_rewards())  # type: ignore[attr-defined]
        soups.append(step.facts[0, 0])
    assert soups == [0.0] * (len(served) - 1) + [1.0] * (61 - len(served))
    assert step.truncated.all()
    # On the way: 3 for each onion in the pot, 3 for a plate and 5 for the soup on it, half of the
    # mean over two agents, of which one earned them: (3 * 3 + 3 + 5) / 4.
    np.testing.assert_allclose(step.rewards, 20 + 17 / 4, rtol=1e-6)
    np.testing.assert_allclose(np.sum(rewards, axis=0), step.rewards, rtol=1e-6)


@pytest.mark.parametrize("member", ["mpe_simple_speaker_listener", "hanabi_2"])
def test_steps_equal_the_source(member: str) -> None:
    env = JaxMarl(2, member)
    module = import_quietly("jaxmarl.environments")
    names = {"hanabi_2": "Hanabi", "mpe_simple_speaker_listener": "SimpleSpeakerListenerMPE"}
    source = getattr(module, names[member])()
    split = jax.jit(jax.vmap(jax.random.split, out_axes=1))
    draw, ended = np.random.default_rng(0), 0

    @jax.jit
    @jax.vmap
    def advance(key: Any, state: Any, joint: Any) -> Any:
        obs, state, rewards, dones, _ = source.step_env(key, state, joint)
        legal = source.get_legal_moves(state) if member == "hanabi_2" else {}
        return obs, state, rewards, dones, legal

    def padded(obs: dict[str, Any]) -> Any:
        rows = [np.asarray(obs[agent]) for agent in source.agents]
        return np.stack(
            [np.pad(row, ((0, 0), (0, env.spec.obs_size - row.shape[1]))) for row in rows], axis=1
        )

    words = env_seeds(5, 2).view(np.uint32).reshape(2, 2)
    keys, resets = split(jax.random.wrap_key_data(words))
    obs, state = jax.jit(jax.vmap(source.reset))(resets)
    step = env.reset(5)
    np.testing.assert_array_equal(step.obs, padded(obs))
    if member == "mpe_simple_speaker_listener":
        way = next(s for s in env.frame(1).shapes if isinstance(s, Segment) and s.colour != FAINT)
        np.testing.assert_allclose(way.start, state.p_pos[1, 1])  # the listener's, to its landmark
        np.testing.assert_allclose(way.end, state.p_pos[1, 2 + int(state.goal[1])])
    for t in range(30):
        actions = random_actions(env.spec, draw, step.action_mask).astype(np.int32)
        keys, steps = split(keys)
        joint = {agent: actions[:, index] for index, agent in enumerate(source.agents)}
        obs, state, rewards, dones, legal = advance(split(steps)[0], state, joint)
        step = env.step(actions)
        np.testing.assert_array_equal(step.final_obs, padded(obs), err_msg=f"step {t}")
        paid = np.mean([rewards[agent] for agent in source.agents], axis=0)
        np.testing.assert_allclose(step.rewards, paid, rtol=1e-6)
        if member == "hanabi_2":
            mask = np.stack([legal[agent] for agent in source.agents], axis=1).astype(bool)
            going = ~step.terminated
            assert step.action_mask is not None
            np.testing.assert_array_equal(step.action_mask[going], mask[going])
            np.testing.assert_array_equal(step.facts[:, 0], state.fireworks.sum((1, 2)))
            np.testing.assert_array_equal(step.terminated, dones["__all__"])
        ended += int((step.terminated | step.truncated).sum())
        if step.terminated.any() or step.truncated.any():
            break  # the source does not begin anew by itself here
    assert ended > 0


def test_names_and_options() -> None:
    assert "jaxmarl/hanabi_2" in env_names()
    with pytest.raises(EnvError, match="there is no environment 'jaxmarl/hanabi_9'"):
        make_env("jaxmarl/hanabi_9", 1)
    with pytest.raises(EnvError, match=r"overcooked_coord_ring: JaxMARL refuses.*'walls'"):
        make_env("jaxmarl/overcooked_coord_ring", 1, walls=3)
