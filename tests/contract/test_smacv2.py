"""SMACv2 against a stand-in that keeps upstream's calls and habits: tests/starcraft/README.md."""

import inspect
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from envs import EnvError, EnvStep, check_env, env_names, make_env
from envs.adapters.team import episode_seed
from envs.adapters.team_env import TeamEnv
from envs.rng import env_seeds, random_actions
from envs.smacv2 import EpisodeDraws, capabilities_of, smacv2
from envs.sparse import unwrapped

STAND_IN = Path(__file__).parents[1] / "starcraft"

SIGNATURES = {
    "StarCraftCapabilityEnvWrapper": {
        "__init__": "(self, **kwargs)",
        "reset": "(self)",
        "step": "(self, actions)",
        "get_obs": "(self)",
        "get_state": "(self)",
        "get_avail_actions": "(self)",
        "get_env_info": "(self)",
        "close": "(self)",
    },
    "StarCraft2Env": {
        "__init__": (
            "(self, map_name='8m', step_mul=8, move_amount=2, difficulty='7', game_version=None, "
            "seed=None, continuing_episode=False, obs_all_health=True, obs_own_health=True, "
            "obs_last_action=False, obs_pathing_grid=False, obs_terrain_height=False, "
            "obs_instead_of_state=False, obs_timestep_number=False, obs_own_pos=False, "
            "obs_starcraft=True, conic_fov=False, num_fov_actions=12, state_last_action=True, "
            "state_timestep_number=False, reward_sparse=False, reward_only_positive=True, "
            "reward_death_value=10, reward_win=200, reward_defeat=0, reward_negative_scale=0.5, "
            "reward_scale=True, reward_scale_rate=20, use_unit_ranges=False, min_attack_range=2, "
            "kill_unit_step_mul=2, fully_observable=False, capability_config={}, replay_dir='', "
            "replay_prefix='', window_size_x=1920, window_size_y=1200, heuristic_ai=False, "
            "heuristic_rest=False, debug=False, prob_obs_enemy=1.0, action_mask=True)"
        ),
        "reset": "(self, episode_config={})",
        "step": "(self, actions)",
        "full_restart": "(self)",
        "get_obs": "(self)",
        "get_obs_agent": "(self, agent_id, fully_observable=False)",
        "get_state": "(self)",
        "get_avail_actions": "(self)",
        "get_avail_agent_actions": "(self, agent_id)",
        "get_env_info": "(self)",
        "close": "(self)",
    },
}
"""As in smacv2/env/starcraft2/{wrapper,starcraft2}.py of oxwhirl/smacv2 at commit 9dabb98."""


@pytest.fixture
def game(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The stand-in's `StarCraft2Env`, with a folder of maps; its games are ended afterwards."""
    monkeypatch.syspath_prepend(str(STAND_IN))
    for folder in ("Versions", "Maps/SMAC_Maps"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setenv("SC2PATH", str(tmp_path))
    from smacv2.env import StarCraft2Env

    yield StarCraft2Env
    for process, _ in StarCraft2Env.launched:
        process.kill()
        process.wait()
    for name in [n for n in sys.modules if n.partition(".")[0] in ("smacv2", "pysc2")]:
        del sys.modules[name]


def terran(num_envs: int = 1, **options: Any) -> TeamEnv:
    return smacv2(num_envs, "10gen_terran", **{"workers": 0} | options)


def attack(step: EnvStep) -> npt.NDArray[np.int64]:
    """Return the last action that is legal for each agent: attack if possible, else move west."""
    assert step.action_mask is not None
    mask = step.action_mask
    return mask.shape[2] - 1 - mask[:, :, ::-1].argmax(axis=2)


def stop(step: EnvStep) -> npt.NDArray[np.int64]:
    """Return the first legal action: stop, or nothing for the dead."""
    assert step.action_mask is not None
    return step.action_mask.argmax(axis=2)


def ended(step: EnvStep) -> bool:
    return bool((step.terminated | step.truncated).any())


def facts(env: TeamEnv, step: EnvStep) -> dict[str, float]:
    assert step.facts is not None
    names = [fact.name for fact in env.spec.facts]
    return dict(zip(names, step.facts[0].tolist(), strict=True))


SURROUNDED = capabilities_of("10gen_terran", 3, 1) | {
    "start_positions": {"dist_type": "surrounded", "map_x": 8, "map_y": 8}
}
"""Three against one that is 8 away."""


def test_the_stand_in_has_upstreams_signatures(game: Any) -> None:
    upstream = sys.modules["smacv2.env"]
    for name, methods in SIGNATURES.items():
        for method, signature in methods.items():
            found = inspect.signature(getattr(getattr(upstream, name), method))
            assert str(found) == signature, f"{name}.{method}"


@pytest.mark.parametrize("race", ["terran", "protoss", "zerg"])
def test_contract(game: Any, race: str) -> None:
    env = make_env(f"smacv2/10gen_{race}", 2, workers=0)
    (problem,) = check_env(env, steps=60)  # the one thing that the game cannot do
    assert problem.startswith(f"warning: smacv2/10gen_{race}: does not repeat under its seed")


def test_sizes(game: Any) -> None:
    spec = terran(allies=4, enemies=3).spec
    assert spec.name == "smacv2/10gen_terran"
    # 4 features for each of 3 enemies and the agent itself. Terran teams of more allies than
    # enemies have one action per ally to heal beside 6 others.
    assert spec.obs_sizes == (16,) * 4
    assert spec.action_sizes == (10,) * 4
    assert spec.state_size == 4 * 7 + 4 * 10
    assert (spec.max_steps, spec.finite_horizon) == (200, True)
    assert terran(max_steps=7).spec.max_steps == 7


def drawn(env: TeamEnv, episodes: int = 3) -> list[Any]:
    """Return units and positions, as the state shows them, of all environments' next episodes."""
    env.reset(5)
    starts = []
    for _ in range(episodes):
        starts.append(env._records["state"].copy())
        step = env.step(stop(env._env_step()))
        for _ in range(env.spec.max_steps - 1):
            step = env.step(stop(step))
    return starts


def test_upstream_does_not_seed_its_draws(game: Any) -> None:
    from smacv2.env import StarCraftCapabilityEnvWrapper

    states = []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        config = capabilities_of("10gen_terran", 5, 5)
        env = StarCraftCapabilityEnvWrapper(capability_config=config, map_name="10gen_terran")
        env.reset()
        states.append(env.get_state())
    assert not np.array_equal(*states)


def test_a_seed_fixes_units_positions_and_who_notices_whom(game: Any) -> None:
    options = {"max_steps": 2, "prob_obs_enemy": 0.5}
    first = terran(2, **options)
    starts = drawn(first)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    second = terran(2, **options)
    np.testing.assert_array_equal(starts, drawn(second))
    np.testing.assert_array_equal(first._records["obs"], second._records["obs"])
    distinct = {start.tobytes() for both in starts for start in both}
    assert len(distinct) == 6


def test_workers_do_not_change_the_draws(game: Any) -> None:
    here, there = terran(3, max_steps=2), terran(3, max_steps=2, workers=2)
    np.testing.assert_array_equal(drawn(here), drawn(there))
    assert terran(3, workers=None).workers == 3
    there.close()


def test_resets_in_a_first_battle_leave_one_game_running(game: Any) -> None:
    env = terran(max_steps=3)
    for _ in range(3):
        step = env.reset(0)
    assert sum(process.poll() is None for process, _ in game.launched) == 1
    while not ended(step):
        step = env.step(stop(step))
    launched = len(game.launched)
    env.reset(1)
    env.reset(2)
    assert len(game.launched) == launched  # upstream restarts a game that has ended a battle
    env.close()
    assert not any(process.poll() is None for process, _ in game.launched)


def test_global_generators_are_left_alone(game: Any) -> None:
    env = terran(prob_obs_enemy=0.5)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected = random.Random(3).random(), np.random.RandomState(3).random()
    step = env.reset(0)
    for _ in range(5):
        step = env.step(attack(step))
    assert (random.random(), np.random.rand()) == expected  # noqa: NPY002


def test_parity_over_1000_steps(game: Any) -> None:
    from smacv2.env import StarCraftCapabilityEnvWrapper

    env = terran(prob_obs_enemy=0.5, reward_scale=False)
    source = StarCraftCapabilityEnvWrapper(
        capability_config=capabilities_of("10gen_terran", 5, 5),
        map_name="10gen_terran",
        prob_obs_enemy=0.5,
        reward_scale=False,
    )
    unseeded = source.env_key_to_distribution_map
    step, episode, rng = env.reset(8), 0, np.random.default_rng(0)
    for t in range(1000):
        if t == 0 or ended(step):
            draws = EpisodeDraws(episode_seed(env_seeds(8, 1)[0], episode))
            source.env_key_to_distribution_map = draws.seeded(unseeded)
            with draws.used():
                source.reset()
                obs = source.get_obs()
            episode += 1
        np.testing.assert_array_equal(step.obs[0], obs)
        np.testing.assert_array_equal(step.state[0], source.get_state())
        np.testing.assert_array_equal(step.action_mask[0], source.get_avail_actions())  # type: ignore[index]
        actions = random_actions(env.spec, rng, step.action_mask)
        step = env.step(actions)
        with draws.used():
            reward, over, info = source.step(list(actions[0]))
            obs = source.get_obs()
        np.testing.assert_array_equal(step.final_obs[0], obs)
        np.testing.assert_array_equal(step.final_state[0], source.get_state())
        assert (step.rewards[0], ended(step)) == (reward, over)
        told = facts(env, step)
        assert told["won"] == info["battle_won"]
        assert told["allies_alive"] == 5 - info["dead_allies"]
        assert told["enemies_alive"] == 5 - info["dead_enemies"]
        assert step.final_alive is not None
        assert told["allies_alive"] == step.final_alive.sum()
    assert episode > 10


def test_the_dead_see_nothing_and_do_nothing(game: Any) -> None:
    # Upstream tells the dead the time, if it tells it.
    env = terran(obs_timestep_number=True)
    step = env.reset(0)
    while step.alive.all():  # type: ignore[union-attr]
        step = env.step(stop(step))
    dead = [a_id for a_id, unit in game.latest.agents.items() if unit.health == 0]
    assert 0 < len(dead) < 5
    np.testing.assert_array_equal(np.flatnonzero(~step.alive[0]), dead)  # type: ignore[index]
    np.testing.assert_array_equal(step.obs[0, dead], 0)
    np.testing.assert_array_equal(step.action_mask[0, dead].sum(axis=1), 1)  # type: ignore[index]
    assert step.action_mask[0, dead, 0].all()  # type: ignore[index]
    assert facts(env, step)["allies_alive"] == 5 - len(dead)
    actions = stop(step)
    actions[0, dead[0]] = 1
    with pytest.raises(EnvError, match="is illegal"):
        env.step(actions)


def test_a_win(game: Any) -> None:
    env = terran(capability_config=SURROUNDED)
    for seed in range(4):
        step, paid = env.reset(seed), 0.0
        enemy = game.latest.enemies[0].health_max
        told = facts(env, step)
        assert (told["won"], told["enemy_health"], told["ally_health"]) == (0, 1, 1)
        while not ended(step):
            step = env.step(attack(step))
            paid += step.rewards[0]
        assert (step.terminated[0], step.truncated[0]) == (True, False)
        told = facts(env, step)
        assert (told["won"], told["enemies_alive"], told["enemy_health"]) == (1, 0, 0)
        assert told["game_died"] == 0
        # All of the enemy's health, 10 for its death and 200 for the win are scaled to 20,
        # whatever the enemy of the game's first battle was.
        assert paid == pytest.approx(20.0), enemy


def test_a_defeat(game: Any) -> None:
    env = terran(allies=1, enemies=5)
    step = env.reset(1)
    while not ended(step):
        step = env.step(stop(step))
    assert step.terminated[0]
    told = facts(env, step)
    assert (told["won"], told["allies_alive"], told["enemies_alive"]) == (0, 0, 5)
    assert (told["ally_health"], told["enemy_health"]) == (0, 1)
    # The next battle has begun, its obs are not the end of the old one.
    assert step.alive is not None
    assert step.alive.all()
    assert not step.final_obs.any()


@pytest.mark.parametrize("finite_horizon", [True, False])
def test_the_time_limit_is_a_choice(game: Any, finite_horizon: bool) -> None:
    env = terran(max_steps=3, finite_horizon=finite_horizon)
    step = env.reset(0)
    for expected in (False, False, True, False):
        step = env.step(stop(step))
        assert ended(step) == expected
        assert step.terminated[0] == (expected and finite_horizon)
    assert env.spec.finite_horizon == finite_horizon


def test_a_game_that_dies_in_a_battle(game: Any) -> None:
    game.fault = {"step": {3}}
    env = terran()
    step = env.reset(0)
    for _ in range(2):
        step = env.step(stop(step))
    seen, seen_state = step.obs.copy(), step.state.copy()
    with pytest.warns(UserWarning, match="StarCraft II died: GameDeathError: it stopped answering"):
        step = env.step(stop(step))
    assert (step.terminated[0], step.truncated[0], step.rewards[0]) == (False, True, 0.0)
    np.testing.assert_array_equal(step.final_obs, seen)
    np.testing.assert_array_equal(step.final_state, seen_state)
    assert facts(env, step)["game_died"] == 1
    assert env._records["episodes"][0] == 1
    assert not np.array_equal(step.obs, seen)
    # The dead game, upstream's new one, and ours: only the last one runs.
    assert [process.poll() is None for process, _ in game.launched] == [False, False, True]
    step = env.step(stop(step))
    assert not ended(step)
    assert facts(env, step)["game_died"] == 0


def test_a_game_that_cannot_be_launched_in_a_battle(game: Any) -> None:
    # Upstream's own restart fails, so the error reaches us.
    game.fault = {"step": {1}, "launch": {2}}
    env = terran()
    step = env.reset(0)
    with pytest.warns(UserWarning, match="ConnectError"):
        step = env.step(stop(step))
    assert step.truncated[0]


@pytest.mark.parametrize(("call", "when"), [("observe", 1), ("observe", 2), ("restart", 2)])
def test_a_game_that_dies_between_battles(game: Any, call: str, when: int) -> None:
    whole = drawn(terran(max_steps=2))
    game.calls.clear()
    game.fault = {call: {when}}
    env = terran(max_steps=2)
    with pytest.warns(UserWarning, match="at the start of a battle"):
        # The battle after the launch is the one that its seed asks for.
        np.testing.assert_array_equal(drawn(env), whole)
    assert env._records["episodes"][0] == 3


def test_a_game_that_dies_again_and_again(game: Any) -> None:
    game.fault = {"launch": {3, 4, 5}, "step": {2, 5}}
    env = terran(relaunches=2, max_steps=2)
    step = env.reset(0)
    step = env.step(stop(step))
    # Step 2 finds the game dead; upstream's launch, 2, works; ours, 3, fails, and then 4.
    with (
        pytest.warns(UserWarning, match="launched again"),
        pytest.raises(
            EnvError, match=r"3 deaths without .* relaunches allows 2\. .*SC2PATH"
        ) as caught,
    ):
        env.step(stop(step))
    assert "copy 0 (episode 1, reset(seed=" in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*StarCraft II died")
def test_a_battle_that_ends_forgives(game: Any) -> None:
    # Battles of 2 steps. Steps 2, 5 and 8 find the game dead, a battle ends with 4 and 7.
    game.fault = {"step": {2, 5, 8}}
    env = terran(relaunches=1, max_steps=2)
    step, deaths = env.reset(0), []
    for _ in range(8):
        step = env.step(stop(step))
        deaths.append(facts(env, step)["game_died"])
    assert deaths == [0, 1, 0, 0, 1, 0, 0, 1]


def running(pid: int) -> bool:
    """Return whether a process runs (a zombie does not)."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the workers' children")
def test_closing_workers_ends_their_games(game: Any) -> None:
    env = terran(2, workers=2)
    env.reset(0)
    processes = env._runner._pool.processes  # type: ignore[union-attr]
    games = [
        int(pid)
        for process in processes
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]
    assert len(games) == 2
    assert all(map(running, games))
    began = time.monotonic()
    env.close()
    assert time.monotonic() - began < 5.0
    assert not any(map(running, games))


def test_the_game_gets_the_seed_of_its_first_battle(game: Any) -> None:
    for seed in (0, 0, 1):
        terran().reset(seed)
    seeds = [seed for _, seed in game.launched]
    assert seeds[0] == seeds[1] != seeds[2]


def test_resuming_cuts_the_open_battles_off(game: Any) -> None:
    first = terran(2)
    step = first.reset(0)
    for _ in range(3):
        step = first.step(stop(step))
    state = first.state_dict()
    resumed = terran(2)
    with pytest.warns(UserWarning, match="cannot repeat its open episodes"):
        resumed.load_state_dict(state)
    for saved, again in zip(_leaves(state), _leaves(resumed.state_dict()), strict=True):
        np.testing.assert_array_equal(saved, again)
    assert not game.fault
    after = resumed.step(stop(step))
    assert after.truncated.all()
    assert not after.terminated.any()
    np.testing.assert_array_equal(after.rewards, 0)
    np.testing.assert_array_equal(after.final_obs, step.obs)
    np.testing.assert_array_equal(after.final_state, step.state)
    np.testing.assert_array_equal(after.final_alive, step.alive)
    np.testing.assert_array_equal(after.facts, step.facts)
    # Both environments are in their second episode, the one that the first run would have come to.
    fresh = terran(2, max_steps=1)
    np.testing.assert_array_equal(fresh.step(stop(fresh.reset(0))).state, after.state)
    assert not ended(resumed.step(stop(after)))


def _leaves(state: dict[str, Any]) -> list[Any]:
    return [state["seeds"], *state["seen"].values()]


def test_by_name(game: Any) -> None:
    assert "smacv2/10gen_zerg" in env_names()
    env = make_env("smacv2/10gen_terran", 1, workers=0, max_steps=4, finite_horizon=False)
    assert isinstance(unwrapped(env), TeamEnv)
    step, paid = env.reset(0), []
    for _ in range(4):
        step = env.step(attack(step))
        paid.append(float(step.rewards[0]))
    assert paid[:3] == [0, 0, 0]  # episodic


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"obs_own_poss": True}, "does not take .*obs_own_poss"),
        ({"seed": 3}, "seed is set by this package"),
        ({"allies": 0}, "0 allies against 5 enemies"),
        ({"relaunches": -1}, "relaunches is -1"),
        ({"capability_config": {"team_gen": {"test_mode": True}}}, "set test_mode to False"),
    ],
)
def test_bad_options(game: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(EnvError, match=words):
        terran(**options)


@pytest.mark.parametrize("folder", ["Versions", "Maps/SMAC_Maps"])
def test_without_the_game_or_its_maps(game: Any, tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).rmdir()
    with pytest.raises(EnvError, match=rf"no folder {tmp_path / folder}\. .*SC2PATH names"):
        terran()


def test_without_the_package(game: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "smacv2", None)
    monkeypatch.delitem(sys.modules, "smacv2.env")
    assert not any(name.startswith("smacv2") for name in env_names())
    for make in (make_env, lambda name, num_envs: terran(num_envs)):
        with pytest.raises(EnvError, match=r"smacv2.*pip install git.*SC2PATH.*Maps"):
            make("smacv2/10gen_terran", 1)
