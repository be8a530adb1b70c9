"""Settings: what is refused, what is suggested, and what comes back from a file."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from marl.config import Config, ConfigError, LearnerConfig, LlmConfig
from marl.config.io import config_from_dict, flat, load_config, save_config, to_dict
from marl.config.validation import Range, ranges_in


def refused(**overrides: Any) -> str:
    """Return the message that refuses some dotted settings (with _ for the dot)."""
    with pytest.raises(ConfigError) as caught:
        load_config(overrides={key.replace("__", "."): value for key, value in overrides.items()})
    return str(caught.value)


def test_an_unknown_key_names_the_nearest() -> None:
    assert "learner.learning_rat; did you mean learner.learning_rate?" in refused(
        learner__learning_rat=1.0
    )
    assert "unknown key algoritm; did you mean algorithm?" in refused(algoritm="imap")


def test_an_unknown_key_unlike_any_lists_the_valid_ones() -> None:
    message = refused(env__zzz=1)
    assert "unknown key env.zzz. Valid here: name, num_envs, options" in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed", "7", "seed: got '7' (str), expected int"),
        ("seed", 1.5, "seed: got 1.5 (float), expected int"),
        ("seed", float("inf"), "seed: got inf (float), expected int"),
        ("threads", True, "threads: got True (bool), expected int"),
        ("learner.anneal", 1, "learner.anneal: got 1 (int), expected bool"),
        ("learner.gamma", "0.9", "learner.gamma: got '0.9' (str), expected float"),
        ("learner.gamma", True, "learner.gamma: got True (bool), expected float"),
        ("network.hidden_sizes", 64, "network.hidden_sizes: got 64 (int), expected a list of int"),
        ("network.hidden_sizes", [64, "x"], "network.hidden_sizes: got 'x' (str), expected int"),
        ("env", 3, "env: got 3, expected a table"),
        (
            "env.options",
            {"a": [1]},
            "env.options.a: got [1] (list), expected bool or int or float or str",
        ),
    ],
)
def test_a_wrong_type_is_named(key: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides={key: value})
    assert expected in str(caught.value)


def test_an_integer_may_stand_for_a_float() -> None:
    gamma = load_config(overrides={"learner.gamma": 1}).learner.gamma
    assert isinstance(gamma, float)
    assert gamma == 1.0


def test_an_integer_may_be_written_in_scientific_notation(tmp_path: Path) -> None:
    path = tmp_path / "short.toml"
    path.write_text("total_steps = 1e6\n[env]\nnum_envs = 3.2e1\n")
    config = load_config(path)
    assert (config.total_steps, config.env.num_envs) == (1_000_000, 32)
    assert type(config.total_steps) is type(Config(total_steps=1e6).total_steps) is int  # type: ignore[arg-type]


def test_every_fault_has_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text("seed = -1\n[learner]\ngama = 0.9\nepochs = 0\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    lines = str(caught.value).splitlines()
    assert [line.split(";")[0] for line in lines] == [
        f"{path}: seed: got -1, expected a number from 0 to 9.22337e+18",
        f"{path}: learner.epochs: got 0, expected a number from 1 to 1000",
        f"{path}: unknown key learner.gama",
    ]


def test_a_section_built_in_python_is_checked_by_itself() -> None:
    with pytest.raises(ConfigError, match=r"^preferences\.llm\.votes: got 0, expected a number"):
        LlmConfig(votes=0)
    with pytest.raises(ConfigError, match=r"^learner: got .* \(dict\), expected LearnerConfig"):
        Config(learner={"gamma": 0.9})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"unknown key learner\.gama; did you mean learner.gamma"):
        LearnerConfig(gama=0.9)  # type: ignore[call-arg]


def test_a_choice_suggests_the_nearest() -> None:
    message = refused(algorithm="impa")
    assert "algorithm: got 'impa', expected one of 'imap', " in message
    assert "did you mean 'imap'?" in message


def ranges(cls: Any, prefix: str = "") -> Iterator[tuple[str, Range]]:
    """Yield every number's dotted key with its range."""
    for name, hint in get_type_hints(cls, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            yield from ranges(hint, f"{prefix}{name}.")
        for found in ranges_in(hint):
            yield f"{prefix}{name}", found


RANGES = dict(ranges(Config))


@pytest.mark.parametrize("key", RANGES)
def test_every_range_is_a_real_setting_and_is_enforced(key: str) -> None:
    low, high = RANGES[key].low, RANGES[key].high
    for value in (low - 1, high * 2 + 1):
        if low <= value <= high:  # an end at infinity
            continue
        section: Any = Config()
        for part in key.split("."):
            section = getattr(section, part)
        with pytest.raises(ConfigError, match=f"{key}: got .*, expected a number from"):
            load_config(overrides={key: type(section)(value)})


def test_every_number_has_a_range() -> None:
    found = {key for key, value in flat(to_dict(Config())).items() if type(value) in (int, float)}
    assert found == set(RANGES)


def test_nan_is_out_of_every_range() -> None:
    assert "learner.gamma: got nan" in refused(learner__gamma=float("nan"))


def test_conflicts_are_refused() -> None:
    assert 'set reward.local_form = "plain"' in refused(reward__mixer="two_layer")
    assert "learner.minibatches: got 5000" in refused(learner__minibatches=5000)
    message = refused(reward__hidden_sizes=[])
    assert "reward.hidden_sizes: got [], expected a list of int, at least 1" in message
    message = refused(network__hidden_sizes=[64, 0])
    assert message == "overrides: network.hidden_sizes: got 0, expected a number from 1 to 1e+06"
    # 16 environments x 125 steps are 16 x 13 chunks of up to 10.
    message = refused(learner__minibatches=209, network__recurrence="gru")
    assert "one rollout has only 208 chunks" in message
    message = refused(algorithm="imap", reward__value_loss="soft", network__recurrence="gru")
    assert 'set reward.value_loss = "gumbel"' in message


LANGUAGE_MODEL: dict[str, Any] = {"labeller": "llm", "queries_per_iteration": 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labeller": "retrun"}, "preferences.labeller: got 'retrun', expected one of return, "),
        ({"labeller": "retrun"}, "such as my_labels:my_function; did you mean 'return'?"),
        ({"labeller": ""}, "preferences.labeller: got ''"),
        (
            LANGUAGE_MODEL | {"llm.at_cap": "fallback", "llm.fallback": "outcom"},
            "preferences.llm.fallback: got 'outcom', expected one of return, outcome, facts",
        ),
        ({"labeller": "facts"}, "preferences.facts: got []"),
        ({"facts": ["won"]}, "preferences.facts: got ['won'], but pairs are judged by return"),
        (
            LANGUAGE_MODEL | {"llm.at_cap": "fallback", "llm.fallback": "facts"},
            "preferences.facts: got [], but pairs are judged by llm and facts",
        ),
        (
            LANGUAGE_MODEL | {"llm.fallback": "facts", "facts": ["won"]},
            "preferences.facts: got ['won'], but pairs are judged by llm;",
        ),
        (
            {"labeller": "facts", "facts": ["won"], "fact_margins": [1.0, 2.0]},
            "preferences.fact_margins: got 2 for 1 facts",
        ),
        (
            {"labeller": "facts", "facts": ["won"], "fact_margins": [-1.0]},
            "preferences.fact_margins: got -1.0, expected a number from 0",
        ),
        ({"labeller": "outcome", "teacher.myopia": 0.9}, "preferences.teacher.myopia: got 0.9"),
        ({"query": "entropy"}, "preferences.queries_per_iteration: got 0"),
        ({"max_labels": 5}, "preferences.queries_per_iteration: got 0"),
        ({"retire_after": 5}, "preferences.queries_per_iteration: got 0"),
        (
            {"query": "disagreement", "queries_per_iteration": 2, "ensemble_size": 1},
            "preferences.ensemble_size: got 1",
        ),
        ({"teacher.mistakes": 1.5}, "preferences.teacher.mistakes: got 1.5"),
    ],
)
def test_preferences_that_say_nothing_together_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides={f"preferences.{key}": value for key, value in settings.items()})
    assert message in str(caught.value)


def test_a_language_model_may_fall_back_on_facts() -> None:
    settings = LANGUAGE_MODEL | {
        "llm.at_cap": "fallback",
        "llm.fallback": "facts",
        "facts": ["won", "length-"],
        "fact_margins": [0.0, 2.0],
    }
    config = load_config(overrides={f"preferences.{key}": value for key, value in settings.items()})
    assert config.preferences.labellers == ("llm", "facts")


def test_infinite_settings_come_back_from_a_file(tmp_path: Path) -> None:
    save_config(Config(), tmp_path / "config.toml")
    assert load_config(tmp_path / "config.toml").preferences.teacher.rationality == float("inf")


def test_a_config_built_in_python_is_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"learner.gamma: got 2.0"):
        Config(learner=LearnerConfig(gamma=2.0))


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text('seed = 3\nalgorithm = "sl"\n[learner]\ngamma = 0.9\nepochs = 2\n')
    config = load_config(path, {"learner.epochs": 5, "env.options.agent_obsk": 0})
    assert (config.seed, config.algorithm) == (3, "sl")
    assert (config.learner.gamma, config.learner.epochs) == (0.9, 5)
    assert config.env.options == {"agent_obsk": 0}
    assert config.learner.minibatches == LearnerConfig().minibatches


def test_errors_in_a_file_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text("[learner]\ngamma = 2.0\n")
    with pytest.raises(ConfigError, match=r"wrong.toml: learner.gamma: got 2.0"):
        load_config(path)
    path.write_text("[learner\n")
    with pytest.raises(ConfigError, match=r"wrong.toml: not valid TOML"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"no such config file; there are: .*wrong.toml"):
        load_config(tmp_path / "worng.toml")


def test_every_setting_survives_a_file(tmp_path: Path) -> None:
    config = load_config(
        overrides={
            "algorithm": "ipl",
            "seed": 2**62 + 1,
            "env.options": {"obsk": 1, "name": "x", "scale": 0.1, "flag": True},
            "network.hidden_sizes": [32],
            "reward.beta": 1 / 3,
        }
    )
    save_config(config, tmp_path / "config.toml")
    assert load_config(tmp_path / "config.toml") == config
    assert config_from_dict(to_dict(config), "here") == config


def test_derived_numbers() -> None:
    config = load_config(overrides={"total_steps": 4001, "env.num_envs": 16})
    assert config.batch_steps == 2000  # 16 environments x 125 steps
    assert config.num_iterations == 3  # 4001 / 2000, rounded up


@pytest.mark.parametrize("value", ["[" * 5000, "{a=" * 5000, "9" * 5000, "\x00"])
def test_what_no_toml_parser_takes_is_one_line(value: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"seed = {value}")
    with pytest.raises(ConfigError, match=r"config\.toml: not valid TOML: ") as caught:
        load_config(file)
    assert "\n" not in str(caught.value)


def test_chunks_are_as_few_as_may_be_and_even() -> None:
    # 32 steps in chunks of at most 10 are four of 8; 125 are thirteen, of 10; 7 are one.
    for steps, longest, expected in (
        (32, 10, 8),
        (125, 10, 10),
        (7, 10, 7),
        (13, 5, 5),
        (12, 5, 4),
    ):
        assert LearnerConfig(rollout_steps=steps, chunk_length=longest).chunk_steps == expected
