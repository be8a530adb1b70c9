"""Same seeds and actions give the same observations, rewards and ends as the source."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest

from envs import check_env, make_env
from envs.adapters.team import episode_seed
from envs.rng import env_seeds, random_actions

STEPS = 1_000


def parallel_env(package: str, module: str, **options: Any) -> Callable[[], Any]:
    """Return a maker of the source environment, or skip without its extra."""
    extra = {"mpe2": "mpe2", "pettingzoo.sisl": "sisl"}[package]
    if extra == "sisl":
        pytest.importorskip("Box2D", reason="needs the extra sisl")
    pytest.importorskip(package, reason=f"needs the extra {extra}")
    source = pytest.importorskip(f"{package}.{module}", reason=f"needs the extra {extra}")
    return lambda: source.parallel_env(**options)


@pytest.mark.parametrize(
    ("package", "module", "options", "pay"),
    [
        ("mpe2", "simple_spread_v3", {"local_ratio": 0.3}, "sum"),
        ("mpe2", "simple_spread_v3", {"continuous_actions": True}, "mean"),
        ("mpe2", "simple_speaker_listener_v4", {}, "error"),
        ("pettingzoo.sisl", "multiwalker_v9", {}, "error"),
        ("pettingzoo.sisl", "multiwalker_v9", {"shared_reward": False}, "sum"),
    ],
)
def test_pettingzoo(package: str, module: str, options: dict[str, Any], pay: str) -> None:
    source = parallel_env(package, module, **options)()
    agents = source.possible_agents
    name = f"{package}.{module}:parallel_env"
    env = make_env(name, 1, team_reward=pay, workers=0, **options)
    rng = np.random.default_rng(0)
    seed, episode, length = env_seeds(7, 1)[0], 0, 0
    step = env.reset(7)
    seen, _ = source.reset(seed=episode_seed(seed, episode))
    for _ in range(STEPS):
        check_seen(step.obs[0], [seen[agent] for agent in agents])
        np.testing.assert_array_equal(step.state[0], source.state().ravel().astype(np.float32))
        actions = random_actions(env.spec, rng, None)
        chosen = {
            agent: in_space(source.action_space(agent), actions[0, index])
            for index, agent in enumerate(agents)
        }
        seen, rewards, terminated, _, _ = source.step(chosen)
        step = env.step(actions)
        check_seen(step.final_obs[0], [seen[agent] for agent in agents])
        total = sum(float(rewards[agent]) for agent in agents)
        expected = total if pay == "sum" else total / len(agents)
        assert step.rewards[0] == pytest.approx(expected, rel=1e-12, abs=1e-15)
        over = not source.agents
        length += 1
        assert (step.terminated[0] or step.truncated[0]) == over
        if over:
            # The sources call their time limit a termination or a truncation; we truncate.
            in_time = length < env.spec.max_steps
            assert step.terminated[0] == (in_time and all(terminated.values()))
            episode, length = episode + 1, 0
            seen, _ = source.reset(seed=episode_seed(seed, episode))
    assert episode > 1


@pytest.mark.parametrize(
    ("package", "env_id"),
    [("lbforaging", "Foraging-8x8-2p-2f-coop-v3"), ("rware", "rware-tiny-2ag-v2")],
)
def test_gymnasium(package: str, env_id: str) -> None:
    pytest.importorskip(package, reason=f"needs the extra {package}")
    env = make_env(f"gym/{env_id}", 1, workers=0, finite_horizon=True)
    rng = np.random.default_rng(0)
    seed, episode = env_seeds(7, 1)[0], 0
    step = env.reset(7)
    source = gymnasium.make(env_id, disable_env_checker=True)
    seen, _ = source.reset(seed=episode_seed(seed, episode))
    for _ in range(STEPS):
        check_seen(step.obs[0], list(seen))
        actions = random_actions(env.spec, rng, None)
        seen, rewards, terminated, truncated, _ = source.step(tuple(actions[0]))
        step = env.step(actions)
        check_seen(step.final_obs[0], list(seen))
        assert step.rewards[0] == sum(rewards)  # type: ignore[arg-type]
        assert (bool(step.terminated[0]), bool(step.truncated[0])) == (terminated, truncated)
        if terminated or truncated:
            episode += 1
            source = gymnasium.make(env_id, disable_env_checker=True)
            seen, _ = source.reset(seed=episode_seed(seed, episode))
    assert episode >= STEPS // env.spec.max_steps


def test_an_id_with_its_module_is_the_same_task() -> None:
    """Foraging is made anew for each episode, since its reset looks at the one before."""
    pytest.importorskip("lbforaging", reason="needs the extra lbforaging")
    envs = [make_env(f"gym/{m}Foraging-5x5-4p-1f-v3", 1, workers=0) for m in ("", "lbforaging:")]
    rng = np.random.default_rng(0)
    ours, theirs = (env.reset(0) for env in envs)
    for _ in range(200):
        np.testing.assert_array_equal(ours.obs, theirs.obs)
        actions = random_actions(envs[0].spec, rng, None)
        ours, theirs = (env.step(actions) for env in envs)


@pytest.mark.parametrize("env_id", ["Foraging-5x5-3p-1f-v3", "rware-tiny-2ag-easy-v2"])
def test_gymnasium_contract(env_id: str) -> None:
    package = "lbforaging" if env_id.startswith("Foraging") else "rware"
    pytest.importorskip(package, reason=f"needs the extra {package}")
    assert check_env(make_env(f"gym/{env_id}", 2, workers=0, max_steps=40), steps=60) == []


def test_a_longer_warehouse() -> None:
    pytest.importorskip("rware", reason="needs the extra rware")
    env = make_env("gym/rware-tiny-2ag-v2", 1, workers=0, max_steps=510)
    env.reset(0)
    for t in range(1, 511):
        step = env.step(np.zeros((1, 2), np.int64))
        assert step.truncated[0] == (t == 510)


def check_seen(obs: npt.NDArray[np.float32], seen: list[Any]) -> None:
    """Check that each agent's own observation stands in its row, and zeros after it."""
    for row, own in zip(obs, seen, strict=True):
        features = np.asarray(own, np.float32).ravel()
        np.testing.assert_array_equal(row[: features.size], features)
        assert not row[features.size :].any()


def in_space(space: Any, action: Any) -> Any:
    """Return our action as the source wants it."""
    if not isinstance(space, gymnasium.spaces.Box):
        return action
    own = action[: space.shape[0]]
    middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
    return np.clip(middle + half * own, space.low, space.high)
