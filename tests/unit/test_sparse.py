"""`SparseRewards` pays what is due when it is due, and nothing gets lost."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs import EnvError, SparseRewards, VecEnv, check_env, make_env, unwrapped
from envs.rng import random_actions
from tests.scripted import ScriptedEnv

# Copy 0 has episodes of 3 and 2 steps, copy 1 of 5; a step pays 1, and the last step of episode
# number n pays 10 n on top.
LENGTHS = [[3, 2], [5, 5]]
ACTIONS = np.ones((2, 2), int)


def paid(env: VecEnv, steps: int) -> list[list[float]]:
    """Return the rewards of some steps."""
    return [env.step(ACTIONS).rewards.tolist() for _ in range(steps)]


def scripted(mode: str, **options: Any) -> SparseRewards:
    env = SparseRewards(ScriptedEnv(LENGTHS, tells_facts=True), mode, **options)
    env.reset(0)
    return env


def test_episodic_pays_the_sum_at_the_end() -> None:
    # copy 0: 3 at step 3, then 2 + 10 at step 5; copy 1: 5 at step 5, then 5 + 10 at step 10
    rewards = paid(scripted("episodic"), 10)
    assert rewards[:5] == [[0, 0], [0, 0], [3, 0], [0, 0], [12, 5]]
    assert rewards[9][1] == 15


def test_every_k_pays_the_last_steps_and_the_rest_at_the_end() -> None:
    # k = 2. Copy 0: 2 at its step 2, the third alone at its end; then 1 + 11 after two steps.
    # Copy 1: 2, 2, and the fifth alone.
    rewards = paid(scripted("every_k", reward_every=2), 5)
    assert rewards == [[0, 0], [2, 2], [1, 0], [0, 2], [12, 1]]


def test_dense_pays_every_step() -> None:
    assert paid(scripted("dense"), 5) == [[1, 1], [1, 1], [1, 1], [1, 1], [11, 1]]


def test_outcome_pays_what_the_final_facts_say() -> None:
    # the facts are (episode, steps so far); only an episode's last ones are looked at
    rewards = paid(scripted("outcome", reward_outcome="time"), 5)
    assert rewards == [[0, 0], [0, 0], [3, 0], [0, 0], [2, 5]]
    seen: list[dict[str, list[float]]] = []

    def score(facts: dict[str, np.ndarray]) -> np.ndarray:
        seen.append({name: values.tolist() for name, values in facts.items()})
        return 100 * facts["episode"] + facts["time"]

    rewards = paid(scripted("outcome", reward_outcome=score), 5)
    assert rewards == [[0, 0], [0, 0], [3, 0], [0, 0], [102, 5]]
    assert seen == [{"episode": [0], "time": [3]}, {"episode": [1, 0], "time": [2, 5]}]


def test_hidden_rewards_are_those_of_the_latest_step() -> None:
    for options in ({"mode": "episodic"}, {"mode": "outcome", "reward_outcome": "time"}):
        env = scripted(**options)
        paid(env, 4)
        assert env.hidden_rewards().tolist() == [1, 1]
        paid(env, 1)
        assert env.hidden_rewards().tolist() == [11, 1]


def test_hidden_rewards_of_the_inner_environment_go_first() -> None:
    inner = make_env("probe/local_credit", 2, reward_mode="episodic")
    env = SparseRewards(inner, "every_k", reward_every=3)
    env.reset(0)
    env.step(np.zeros((2, 4), int))
    assert isinstance(inner, SparseRewards)
    np.testing.assert_array_equal(env.hidden_rewards(), inner.hidden_rewards())


def test_unpaid_rewards_survive_saving() -> None:
    env = scripted("every_k", reward_every=4)
    paid(env, 2)
    other = scripted("every_k", reward_every=4)
    paid(other, 3)
    other.load_state_dict(env.state_dict())
    assert other.hidden_rewards().tolist() == [1, 1]
    assert paid(other, 12) == paid(env, 12)


def test_reset_forgets_unpaid_rewards() -> None:
    env = scripted("episodic")
    paid(env, 2)
    env.reset(0)
    assert env.hidden_rewards().tolist() == [0, 0]
    assert paid(env, 3)[2] == [3, 0]


@pytest.mark.parametrize("num_envs", [1, 5])
@pytest.mark.parametrize("name", ["probe/dying", "particles/nav_3", "probe/time_limit"])
def test_contract(name: str, num_envs: int) -> None:
    env = make_env(name, num_envs, reward_mode="every_k", reward_every=3)
    assert [p for p in check_env(env, steps=60) if not p.startswith("warning")] == []


@pytest.mark.parametrize("mode", ["episodic", "every_k"])
def test_modes_pay_the_same_return(mode: str) -> None:
    every = {"reward_every": 3} if mode == "every_k" else {}
    sparse = make_env("particles/nav_3", 4, reward_mode=mode, **every)
    dense = make_env("particles/nav_3", 4, reward_mode="dense")
    totals = np.zeros((2, 4))
    for env in (sparse, dense):
        env.reset(0)
    rng = np.random.default_rng(0)
    for _ in range(25):
        actions = random_actions(dense.spec, rng, None)
        totals += [sparse.step(actions).rewards, dense.step(actions).rewards]
    np.testing.assert_allclose(totals[0], totals[1], rtol=1e-12)


def test_unwrapped() -> None:
    inner = ScriptedEnv(LENGTHS)
    assert unwrapped(SparseRewards(SparseRewards(inner))) is inner
    assert unwrapped(inner) is inner


MINE = """
from tests.scripted import ScriptedEnv

def plain(num_envs):
    return ScriptedEnv([[3]] * num_envs, tells_facts=True)

def own(num_envs, reward_mode="mine"):
    env = plain(num_envs)
    env.mode = reward_mode
    return env

def score(facts):
    return facts["time"] * 2

def one(facts):
    return 1.0

def as_if_one(facts):
    return float(facts["time"] >= 2)

def misspelt(facts):
    return facts["tiem"]
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_sparse_envs.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_sparse_envs", raising=False)


@pytest.mark.usefixtures("mine")
def test_your_own_environment_pays_as_it_does_unless_asked() -> None:
    assert isinstance(make_env("my_sparse_envs:plain", 2), ScriptedEnv)
    env = make_env("my_sparse_envs:plain", 2, reward_mode="episodic")
    env.reset(0)
    assert paid(env, 3) == [[0, 0], [0, 0], [3, 3]]
    scored = make_env(
        "my_sparse_envs:plain", 2, reward_mode="outcome", reward_outcome="my_sparse_envs:score"
    )
    scored.reset(0)
    assert paid(scored, 3)[2] == [6, 6]


@pytest.mark.usefixtures("mine")
def test_an_option_of_that_name_is_the_environments_own() -> None:
    env: Any = make_env("my_sparse_envs:own", 2, reward_mode="theirs")
    assert env.mode == "theirs"
    with pytest.raises(EnvError, match="has no option 'reward_every'"):
        make_env("my_sparse_envs:own", 2, reward_every=2)


@pytest.mark.usefixtures("mine")
def test_an_outcome_of_the_wrong_shape_is_refused() -> None:
    env = make_env(
        "my_sparse_envs:plain", 2, reward_mode="outcome", reward_outcome="my_sparse_envs:one"
    )
    env.reset(0)
    with pytest.raises(EnvError, match=r"one \(my_sparse_envs.py, line 15\) returned 1.0 of shape"):
        paid(env, 3)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("as_if_one", "as_if_one (my_sparse_envs.py, line 18) raised TypeError: "),
        ("misspelt", "raised KeyError: 'tiem' (my_sparse_envs.py, line 22, in misspelt)"),
    ],
)
def test_an_outcome_that_raises_is_told_what_it_is_given(function: str, words: str) -> None:
    env = make_env(
        "my_sparse_envs:plain",
        2,
        reward_mode="outcome",
        reward_outcome=f"my_sparse_envs:{function}",
    )
    env.reset(0)
    with pytest.raises(EnvError) as caught:
        paid(env, 3)
    assert words in str(caught.value)
    assert str(caught.value).endswith(
        "it is given the facts episode, time as arrays of one number per episode that ended, "
        "shape (2,) here; return such an array"
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reward_mode": "epsodic"}, "did you mean 'episodic'"),
        ({"reward_mode": "every_k"}, "reward_every is None"),
        ({"reward_mode": "every_k", "reward_every": 0}, "reward_every is 0"),
        ({"reward_every": 5}, "set reward_mode to 'every_k'"),
        ({"reward_outcome": "won"}, "set reward_mode to 'outcome'"),
        ({"reward_mode": "outcome"}, "needs reward_outcome"),
        ({"reward_mode": "outcome", "reward_outcome": "won"}, "the environment tells none"),
    ],
)
def test_wrong_settings_say_what_to_do(options: dict[str, Any], words: str) -> None:
    with pytest.raises(EnvError) as caught:
        make_env("probe/time_limit", 2, **options)
    assert words in str(caught.value)


def test_unknown_fact_lists_the_facts() -> None:
    with pytest.raises(EnvError, match=r"did you mean 'time'.*the facts are episode, time"):
        scripted("outcome", reward_outcome="tim")
