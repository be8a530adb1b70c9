"""What an algorithm presets, what overrides it, and which settings contradict each other."""

from typing import Any, get_args

import pytest

from marl.config import Algorithm, Config, ConfigError
from marl.config.io import load_config
from marl.config.presets import PRESETS, REWARD_LOSSES, REWARD_MODELS
from marl.rewards import RewardModel, SequenceReward, ValueBasedReward
from marl.utils import plugins


def chosen(**reward: Any) -> Config:
    """Return a configuration with these settings; those of the reward need no prefix."""
    algorithm = reward.pop("algorithm", "imap")
    return load_config(
        overrides={"algorithm": algorithm} | {f"reward.{k}": v for k, v in reward.items()}
    )


@pytest.mark.parametrize(
    ("algorithm", "source", "model", "loss", "gamma"),
    [
        ("imap", "learned", "factored", "preference", 0.9),
        ("slf", "learned", "factored", "preference", 0.0),
        ("ipl", "learned", "central", "preference", 0.9),
        ("sl", "learned", "central", "preference", 0.0),
        ("rrd", "learned", "factored", "regression", 0.0),
        ("rrd_central", "learned", "central", "regression", 0.0),
        ("ircr", "learned", "constant", "regression", 0.0),
        ("rudder", "learned", "rudder", "rudder", 0.0),
        ("arel", "learned", "arel", "arel", 0.0),
        ("stas", "learned", "stas", "regression", 0.0),
        ("tar2", "learned", "tar2", "tar2", 0.0),
        ("dpo", "policy", "policy_ratio", "preference", 0.0),
        ("sparse", "task", "", "", 0.0),
        ("dense", "hidden", "", "", 0.0),
    ],
)
def test_presets(algorithm: Any, source: str, model: str, loss: str, gamma: float) -> None:
    choice = Config(algorithm=algorithm).reward_choice
    assert (choice.source, choice.model, choice.loss, choice.gamma) == (source, model, loss, gamma)


def test_every_preset_is_an_algorithm() -> None:
    assert get_args(Algorithm) == tuple(PRESETS)


def test_explicit_settings_override_the_preset() -> None:
    assert chosen(gamma=0.5).reward_gamma == 0.5
    assert chosen(algorithm="slf", gamma=0.5).reward_choice == chosen(gamma=0.5).reward_choice
    assert chosen(gamma=0).reward_choice == chosen(algorithm="slf").reward_choice
    assert chosen(model="central").reward_choice == chosen(algorithm="ipl").reward_choice
    returns = chosen(loss="regression", gamma=0.0).reward_choice
    assert returns == chosen(algorithm="rrd").reward_choice
    assert chosen(source="task").reward_choice == chosen(algorithm="sparse").reward_choice
    assert chosen(source="policy").reward_choice == chosen(algorithm="dpo").reward_choice
    beside = chosen(algorithm="dpo", source="learned").reward_choice
    assert beside == chosen(model="policy_ratio").reward_choice
    assert chosen(algorithm="sparse", gamma=0.5).reward_gamma == 0.0  # nothing is learned


def test_a_model_of_ones_own_has_no_value_network() -> None:
    choice = chosen(model="mine:Model").reward_choice
    assert choice.gamma == 0.0
    assert choice.is_factored
    assert choice.needs_labels


@pytest.mark.parametrize(
    ("algorithm", "factored", "labels", "returns", "hidden"),
    [
        ("imap", True, True, False, False),
        ("ipl", False, True, False, False),
        ("rrd", True, False, True, False),
        ("ircr", False, False, True, False),
        ("rudder", False, False, True, False),
        ("stas", True, False, True, False),
        ("dpo", True, True, False, False),
        ("sparse", False, False, False, False),
        ("dense", False, False, False, True),
    ],
)
def test_what_a_run_needs(
    algorithm: Any, factored: bool, labels: bool, returns: bool, hidden: bool
) -> None:
    config = Config(algorithm=algorithm)
    assert config.learns_reward == (labels or returns)
    assert config.is_factored == factored
    assert config.learns_from_labels == labels
    assert config.learns_from_returns == returns
    assert config.sees_hidden == hidden


def test_both_losses_need_both() -> None:
    config = chosen(loss="both")
    assert config.learns_from_labels
    assert config.learns_from_returns


@pytest.mark.parametrize("name", REWARD_MODELS)
def test_entries_of_models_tell_the_truth(name: str) -> None:
    entry = REWARD_MODELS[name]
    kind = plugins.load(entry.path, "reward.model")
    assert isinstance(kind, type)
    assert issubclass(kind, RewardModel)
    assert issubclass(kind, ValueBasedReward) == entry.has_value
    assert issubclass(kind, SequenceReward) == entry.reads_history


@pytest.mark.parametrize("name", REWARD_LOSSES)
def test_entries_of_losses_exist(name: str) -> None:
    assert callable(plugins.load(REWARD_LOSSES[name].path, "reward.loss"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "centrl"}, r"reward\.model: got 'centrl', .* did you mean 'central'\?"),
        ({"loss": "regresion"}, r"reward\.loss: got .* did you mean 'regression'\?"),
        ({"source": "tsk"}, r"reward\.source: got 'tsk'"),
        (
            {"algorithm": "sparse", "model": "central"},
            r"reward\.model: got 'central', but with algorithm = 'sparse' the policy's reward is "
            r"the task one and none is learned; leave it out or set reward\.source = \"learned\"",
        ),
        ({"algorithm": "sparse", "calibration": 0.5}, r"reward\.calibration: got 0.5, but with"),
        ({"algorithm": "dense", "loss": "both"}, r"reward\.loss: got 'both', .* the hidden one"),
        ({"source": "hidden", "model": "central"}, r"reward\.model: .* the hidden one"),
        ({"algorithm": "sparse", "source": "learned"}, r"reward\.model: got '', expected one of"),
        (
            {"model": "mine:Model", "gamma": 0.5},
            r"reward\.gamma: got 0\.5, but .* 'mine:Model' has",
        ),
        ({"algorithm": "ircr", "gamma": 0.5}, r"reward\.gamma: got 0\.5, but .* 'constant' has no"),
        ({"model": "constant"}, r"reward\.loss: got 'preference', .* set reward\.loss = \"regre"),
        ({"model": "tar2"}, r'reward\.loss: got .preference., .* set reward\.loss = "tar2"'),
        (
            {"loss": "rudder"},
            r"reward\.loss: got 'rudder', .* reward\.model = 'factored' reads single steps; set",
        ),
        ({"unbiased_regression": True, "sample_steps": 1}, r"sample_steps: got 1, .* at least 2"),
        ({"algorithm": "slf", "value_as_critic": True}, r"but this run has gamma_R = 0; set algor"),
        (
            {"algorithm": "ipl", "value_as_critic": True},
            r"has reward\.model = 'central'; set algor",
        ),
        (
            {"value_as_critic": True, "shared_mixer": False},
            r"has reward\.shared_mixer = false; leave",
        ),
        ({"value_as_critic": True, "recurrence": "gru"}, r"has reward\.recurrence = 'gru'; leave"),
        (
            {"algorithm": "dpo", "model": "factored"},
            r"reward\.model: got 'factored', but with algorithm = 'dpo' the policy is its own "
            r"reward model; leave it out or set reward\.source = \"learned\"",
        ),
        ({"source": "policy", "model": "central"}, r'but with reward\.source = "policy" the poli'),
        ({"algorithm": "dpo", "gamma": 0.9}, r"reward\.gamma: got 0\.9, but .* 'policy_ratio' has"),
        ({"algorithm": "dpo", "recurrence": "gru"}, r"reward\.recurrence: .* network\.recurrence"),
    ],
)
def test_contradictions_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        chosen(**settings)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("algorithm", ["rrd", "ircr"])
def test_a_myopic_teacher_and_returns_contradict_each_other(algorithm: str) -> None:
    """Its returns are made of hidden rewards, which nothing may be fitted to."""
    settings = {"algorithm": algorithm, "preferences.teacher.myopia": 0.9}
    with pytest.raises(
        ConfigError, match=r"teacher\.myopia: got 0\.9, but with reward\.loss = 're"
    ):
        load_config(overrides=settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learner.kind": "my:Learner"}, r"learner\.kind: got 'my:Learner', .* leave it out"),
        (
            {"preferences.query": "disagreement", "preferences.queries_per_iteration": 1},
            r"preferences\.query: got 'disagreement', .* an ensemble .* choose another one",
        ),
    ],
)
def test_a_policy_that_preferences_train_needs_no_other_parts(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(overrides={"algorithm": "dpo"} | settings)
