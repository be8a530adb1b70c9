"""SMAX keeps the environment contract and equals JaxMARL's own battles."""

import json
import sys
from typing import Any

import numpy as np
import pytest

from envs import EnvError, Frame, HasFrames, HasHiddenRewards, VecEnv, check_env, make_env
from envs.catalogue import SMAX_NAMES
from envs.frames import HealthBar, frame_of
from envs.rng import env_seeds, random_actions

jax = pytest.importorskip("jax", reason="the extra smax is not installed")
pytest.importorskip("jaxmarl.registration", reason="the extra smax is not installed")

from envs.jaxmarl.smax import FACTS, Smax, import_smax  # noqa: E402  # which needs them

NUM_ENVS = 3


@pytest.mark.parametrize(
    "options",
    [
        {"name": "smax/3m", "max_steps": 40},
        {
            "name": "smax/2s3z",
            "reward_mode": "dense",
            "finite_horizon": False,
            "max_steps": 20,
        },
        {
            "name": "smax/smacv2_5_units",
            "reward_mode": "outcome",
            "reward_outcome": "won",
            "observation_type": "conic",
        },
    ],
)
def test_contract(options: dict[str, Any]) -> None:
    env = make_env(num_envs=NUM_ENVS, **options)
    assert check_env(env, steps=60) == []
    assert isinstance(env, VecEnv)
    assert isinstance(env, HasHiddenRewards)


class Source:
    """JaxMARL's `step`, which restarts by itself, over the keys that the adapter draws."""

    def __init__(self, scenario: str) -> None:
        smax = import_smax()
        self.env = smax.HeuristicEnemySMAX(scenario=smax.map_name_to_scenario(scenario))
        self._split = jax.jit(jax.vmap(jax.random.split, out_axes=1))
        self._reset = jax.jit(jax.vmap(self.env.reset))
        self._step = jax.jit(jax.vmap(self._step_one))
        self._legal = jax.jit(jax.vmap(self.env.get_avail_actions))

    def _step_one(self, key: Any, battle: Any, actions: Any) -> tuple[Any, ...]:
        joint = {agent: actions[index] for index, agent in enumerate(self.env.agents)}
        final = self.env.step_env(jax.random.split(key)[0], battle, joint)[0]
        return (final, *self.env.step(key, battle, joint)[:4])

    def reset(self, seed: int) -> dict[str, Any]:
        """Return the first views."""
        words = env_seeds(seed, NUM_ENVS).view(np.uint32).reshape(-1, 2)
        self.keys, resets = self._split(jax.random.wrap_key_data(words))
        obs, self.battles = self._reset(resets)
        return self._shown(obs)

    def step(self, actions: Any) -> dict[str, Any]:
        """Return what the adapter should return."""
        self.keys, steps = self._split(self.keys)
        final, obs, self.battles, rewards, dones = self._step(steps, self.battles, actions)
        return self._shown(obs) | {
            "final_obs": self._stacked(final),
            "final_state": final["world_state"],
            "rewards": rewards[self.env.agents[0]],
            "done": dones["__all__"],
        }

    def _shown(self, obs: dict[str, Any]) -> dict[str, Any]:
        return {
            "obs": self._stacked(obs),
            "state": obs["world_state"],
            "action_mask": self._stacked(self._legal(self.battles)).astype(bool),
            "alive": self.battles.state.unit_alive[:, : len(self.env.agents)],
        }

    def _stacked(self, arrays: dict[str, Any]) -> Any:
        return np.stack([arrays[agent] for agent in self.env.agents], axis=1)


@pytest.mark.parametrize("scenario", ["3m", "smacv2_5_units"])
def test_a_thousand_steps_equal_the_source(scenario: str) -> None:
    env, source = Smax(NUM_ENVS, scenario), Source(scenario)
    draw = np.random.default_rng(0)
    step, expected = env.reset(7), source.reset(7)
    ends = 0
    for t in range(1000):
        for name, array in expected.items():
            got = step.terminated | step.truncated if name == "done" else getattr(step, name)
            np.testing.assert_array_equal(got, array, err_msg=f"{name} at step {t}")
        actions = random_actions(env.spec, draw, step.action_mask).astype(np.int32)
        step, expected = env.step(actions), source.step(actions)
        ends += int(step.terminated.sum())
    assert ends >= 9 * NUM_ENVS  # no battle outlasts 101 of the 1,000 steps


@pytest.fixture(scope="module")
def small() -> Smax:
    return Smax(NUM_ENVS, "3m", max_steps=60)


def charge(env: Smax, seed: int) -> list[Any]:
    """Return the steps of a battle until every copy has ended once; all allies walk and shoot."""
    step, steps = env.reset(seed), []
    over = np.zeros(NUM_ENVS, np.bool_)
    while not over.all():
        east = np.full(step.action_mask.shape[:2], 1)
        shots = step.action_mask[:, :, 5:]
        actions = np.where(shots.any(axis=2), 5 + shots.argmax(axis=2), east)
        actions = np.where(step.alive, actions, 4)
        step = env.step(actions)
        steps.append(step)
        over |= step.terminated
    return steps


def test_facts_are_those_of_the_battle(small: Smax) -> None:
    assert [fact.name for fact in FACTS] == [
        "won", "allies_alive", "enemies_alive", "ally_health", "enemy_health",
    ]  # fmt: skip
    steps, wins = [], 0
    for seed in range(6):
        steps += charge(small, seed)
    for step in steps:
        # The state holds 10 features of each unit, health first: 3 allies, then 3 enemies. All
        # marines have 45 health, so the share of a side is the mean of its units' shares.
        health = step.final_state[:, :60].reshape(NUM_ENVS, 6, 10)[:, :, 0]
        allies, enemies = health[:, :3], health[:, 3:]
        won = (enemies == 0).all(axis=1) & (allies > 0).any(axis=1)
        wins += int(won.sum())
        np.testing.assert_array_equal(step.facts[:, 0], won)
        np.testing.assert_array_equal(step.facts[:, 1], (allies > 0).sum(axis=1))
        np.testing.assert_array_equal(step.facts[:, 2], (enemies > 0).sum(axis=1))
        np.testing.assert_allclose(step.facts[:, 3], allies.mean(axis=1), rtol=1e-6)
        np.testing.assert_allclose(step.facts[:, 4], enemies.mean(axis=1), rtol=1e-6)
    assert wins > 0


def test_facts_of_a_start(small: Smax) -> None:
    # Not won; 3 of 3 marines alive on both sides, unhurt.
    np.testing.assert_array_equal(small.reset(0).facts, [[0.0, 3.0, 3.0, 1.0, 1.0]] * NUM_ENVS)


def test_it_tells_which_features_are_whose(small: Smax) -> None:
    allies, enemies = small.spec.entities
    assert make_env("smax/3m", 2).spec.entities == (allies, enemies)
    assert (allies.count, enemies.count, allies.size) == (2, 3, enemies.size)
    assert enemies.first_action + enemies.count == small.spec.action_size
    assert enemies.first + enemies.count * enemies.size < small.spec.obs_size
    # Nobody sees an enemy from the start; each has its own health, 1, behind the lists.
    obs = small.reset(0).obs
    assert (obs[..., enemies.first + enemies.count * enemies.size] == 1.0).all()


def test_make_env_pays_a_battle_at_its_end() -> None:
    env = make_env("smax/3m", NUM_ENVS, max_steps=60)
    assert isinstance(env, HasHiddenRewards)
    draw, step, sums, ends = np.random.default_rng(3), env.reset(3), np.zeros(NUM_ENVS), 0
    for _ in range(150):
        step = env.step(random_actions(env.spec, draw, step.action_mask))
        sums += env.hidden_rewards()
        done = step.terminated
        np.testing.assert_allclose(step.rewards, np.where(done, sums, 0.0), atol=1e-5)
        # A lost battle pays at most the whole of the enemies' health, a won one 1 more.
        assert step.facts is not None
        assert (step.rewards <= 1.0 + step.facts[:, 0] + 1e-5).all()
        sums[done] = 0.0
        ends += int(done.sum())
    assert ends > NUM_ENVS


def test_state_continues_in_another_environment(small: Smax) -> None:
    other, draw = Smax(NUM_ENVS, "3m", max_steps=60), np.random.default_rng(0)
    step = small.reset(1)
    for _ in range(33):
        step = small.step(random_actions(small.spec, draw, step.action_mask))
    other.load_state_dict(small.state_dict())
    for _ in range(60):
        actions = random_actions(small.spec, draw, step.action_mask)
        step, same = small.step(actions), other.step(actions)
        for name, array in vars(step).items():
            np.testing.assert_array_equal(array, getattr(same, name), err_msg=name)


def test_a_battle_can_be_seen_to_its_end() -> None:
    env = make_env("smax/2s3z", 2)
    assert isinstance(env, HasFrames)
    died, frames, unseen = False, [], []
    for is_seen in (False, True):
        step, draw, seen = env.reset(5), np.random.default_rng(0), []
        while not step.terminated[1]:
            actions = random_actions(env.spec, draw, step.action_mask)
            if is_seen:
                frame = frame_of(env, 1, step, actions)
                assert step.alive is not None
                assert [anchor is not None for anchor in frame.anchors] == step.alive[1].tolist()
                died |= not step.alive[1].all()
                frames.append(frame)
            step = env.step(actions)
            seen.append(step.obs.copy())
        unseen = unseen or seen
    np.testing.assert_array_equal(seen, unseen)  # looking changes nothing
    assert died
    assert frames[0].seconds_per_step == 0.5
    assert Frame.from_json(json.loads(json.dumps(frames[-1].to_json(), allow_nan=False)))
    new = env.frame(1)  # the next battle: 10 units, unhurt
    assert [s.share for s in new.shapes if isinstance(s, HealthBar)] == [1.0] * 10
    assert env.frame(0) != new


def test_a_frame_needs_a_battle() -> None:
    with pytest.raises(EnvError, match=r"smax/3m: frame before reset; call reset\(seed\) first"):
        Smax(1, "3m").frame(0)


def test_views_are_jax_memory(small: Smax, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the very address of JAX's buffers, from a reset and from a step: nothing was copied."""
    returned: list[Any] = []
    for name in ("begin", "advance"):
        call = getattr(small._compiled, name)

        def noting(*arguments: Any, call: Any = call) -> Any:
            returned.append(call(*arguments))
            return returned[-1]

        monkeypatch.setattr(small._compiled, name, noting)
    start = small.reset(0)
    _, view = returned[-1]
    _at(start, view._asdict() | {"final_obs": view.obs})
    step = small.step(random_actions(small.spec, np.random.default_rng(0), start.action_mask))
    _, outcome = returned[-1]
    final = {f"final_{name}": getattr(outcome.final, name) for name in ("obs", "state", "alive")}
    _at(step, outcome._asdict() | outcome.view._asdict() | final | {"facts": outcome.final.facts})


def _at(step: Any, buffers: dict[str, Any]) -> None:
    """Assert that the arrays of a step lie where JAX's buffers lie."""
    buffers = {name: of for name, of in buffers.items() if name not in ("view", "final")}
    assert len(buffers) > 4
    for name, buffer in buffers.items():
        assert getattr(step, name).ctypes.data == buffer.unsafe_buffer_pointer(), name


def test_illegal_actions(small: Smax) -> None:
    small.reset(0)
    with pytest.raises(EnvError, match=r"action 5 of copy 0, agent 0 is illegal"):
        small.step(np.full((NUM_ENVS, 3), 5))  # nobody is in range at the start
    with pytest.raises(EnvError, match=r"give integer actions of shape \(3, 3\)"):
        small.step(np.zeros((NUM_ENVS, 2), np.int64))


def test_names_are_all_of_jaxmarl() -> None:
    module = sys.modules[import_smax().map_name_to_scenario.__module__]
    assert set(SMAX_NAMES) == set(module.MAP_NAME_TO_SCENARIO)
    assert make_env("smax/27m_vs_30m", 1).spec.num_agents == 27


def test_import_leaves_the_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "jaxmarl"]:
        monkeypatch.delitem(sys.modules, name)
    before = sys.stdout, sys.stderr, sys.__stdout__
    import_smax()
    assert (sys.stdout, sys.stderr, sys.__stdout__) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attack_mode": "far"}, "choose one of closest, random"),
        ({"num_envs": 0}, "num_envs is 0"),
        ({"scenario": "4m"}, "register yours"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(EnvError, match=words):
        Smax(**({"num_envs": 1} | options))
