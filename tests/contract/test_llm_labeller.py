"""The language-model labeller against a stand-in server: answers, replay, settings.

Axes: B pairs.
"""

import dataclasses
import json
import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marl.config import ConfigError, PreferenceConfig
from marl.data.types import Episodes
from marl.preferences.factory import make_labeller
from marl.preferences.llm import LabellerWarning, LlmLabeller
from marl.utils.plugins import PluginError
from marl.utils.seeding import Seeds
from tests.llm_cases import SPEC, answers, make, pairs_of, settings, sigmoid
from tests.llm_server import (
    POSITION_BIAS,
    ModelServer,
    changed,
    status,
)

THREE = ([1.0, 2.0, 3.0], [2.0, 1.0, 2.5])


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.mark.parametrize("ask", ["pointwise", "pairwise"])
def test_log_probabilities_become_soft_labels_without_position_bias(
    ask: str, server: ModelServer, tmp_path: Path
) -> None:
    labeller = make(server.base_url, tmp_path, ask=ask)
    # The server's log-odds are the return (pointwise) or the difference (pairwise) and a bias,
    # which cancels.
    expected = [sigmoid(-1.0), sigmoid(1.0), sigmoid(0.5)]
    assert answers(labeller, *THREE) == pytest.approx(expected, abs=1e-5)
    metrics = labeller.metrics()
    assert metrics["llm_answered"] == 3.0
    assert metrics["llm_first_choice_share"] == 1.0
    if ask == "pairwise":
        assert POSITION_BIAS > 1.0
        assert metrics["llm_flip_rate"] == 1.0


def test_equal_questions_are_asked_once_and_kept(server: ModelServer, tmp_path: Path) -> None:
    labeller = make(server.base_url, tmp_path)
    first = answers(labeller, *THREE)
    # One probe, and four different returns in three pairs: 1, 2, 3 and 2.5.
    assert len(server.asked) == 5
    assert answers(labeller, *THREE) == first
    assert len(server.asked) == 5
    assert labeller.metrics()["llm_cache_hits"] == 4.0


def test_a_cache_replays_with_the_server_gone(server: ModelServer, tmp_path: Path) -> None:
    labeller = make(server.base_url, tmp_path, preflight="refuse")
    labeller.start()
    before = answers(labeller, *THREE)
    labeller.close()
    server.stop()
    for changes in ({}, {"offline": True}):
        labeller = make(server.base_url, tmp_path, preflight="refuse", **changes)
        labeller.start()
        assert answers(labeller, *THREE) == before
        assert labeller.metrics()["llm_calls"] == 0.0
        labeller.close()
    labeller = make(server.base_url, tmp_path, offline=True)
    assert math.isnan(answers(labeller, [7.0], [8.0])[0])
    assert labeller.metrics()["llm_abstained_offline"] == 1.0


@pytest.mark.parametrize("schema", [True, False])
@pytest.mark.parametrize("ask", ["pointwise", "pairwise"])
def test_without_log_probabilities_votes_decide(ask: str, schema: bool, tmp_path: Path) -> None:
    with ModelServer(logprobs=False, schema=schema) as server:
        if not schema:
            server.refused_fields = {"response_format"}
        labeller = make(server.base_url, tmp_path, ask=ask, votes=5)
        # Five votes for and five against: log-odds of log 11 each way.
        got = answers(labeller, [9.0], [-9.0])
        expected = sigmoid(math.log(11.0) * (2.0 if ask == "pointwise" else 1.0))
        assert got == pytest.approx([expected])
        assert ("response_format" in server.asked[-1]) == schema
        seeds = {body["seed"] for body in server.asked[-10:]}
        assert seeds == set(range(5))


def test_what_a_server_refuses_is_left_out(server: ModelServer, tmp_path: Path) -> None:
    server.refused_fields = {"max_tokens", "seed", "cache_prompt", "temperature"}
    labeller = make(server.base_url, tmp_path)
    assert answers(labeller, [1.0], [2.0]) == pytest.approx([sigmoid(-1.0)], abs=1e-5)
    assert set(server.asked[-1]) == {
        "model", "messages", "max_completion_tokens", "logprobs", "top_logprobs",
    }  # fmt: skip
    asked = len(server.asked)
    answers(labeller, [3.0], [4.0])
    assert len(server.asked) == asked + 2  # the server is probed once
    labeller.close()
    answers(make(server.base_url, tmp_path), [5.0], [6.0])
    assert len(server.asked) == asked + 4  # also not by the next process


def refuse_schema(handler: Any, body: dict[str, Any]) -> bool:
    """Answer a JSON schema by a 500, as some servers do."""
    return "response_format" in body and status(500)(handler, body)


def test_a_grammar_is_only_tried_where_it_is_allowed(tmp_path: Path) -> None:
    with ModelServer(logprobs=False) as server:
        server.fault = refuse_schema
        labeller = make(server.base_url, tmp_path)
        answers(labeller, [1.0], [2.0])
        assert not any("grammar" in body for body in server.asked)
        labeller.close()
        answers(make(server.base_url, tmp_path, use_grammar=True), [1.0], [2.0])
        assert server.asked[-1]["grammar"] == 'root ::= "Good" | "Bad"'


def test_the_preflight_refuses_a_model_that_knows_nothing(
    server: ModelServer, tmp_path: Path
) -> None:
    good = make(server.base_url, tmp_path, preflight="refuse", ask="pairwise")
    good.start()
    assert good.figures is not None
    assert (good.figures.right, good.figures.pairs) == (6, 6)
    good.close()
    always_a = [{"token": "A", "logprob": -0.01}, {"token": "B", "logprob": -5.0}]
    server.fault = changed(logprobs={"content": [{"token": "A", "top_logprobs": always_a}]})
    other = {"ask": "pairwise", "seed": 9}
    bad = make(server.base_url, tmp_path, preflight="refuse", **other)
    with pytest.raises(
        ConfigError, match=r"0 of 6 pairs .* 6 without .* likelier choice was 'A' in 100%"
    ):
        bad.start()
    bad.close()
    allowed = make(server.base_url, tmp_path, preflight="allow", **other)
    with pytest.warns(LabellerWarning, match="fails it, but is allowed"):
        allowed.start()


def test_a_model_the_server_does_not_have_is_named(server: ModelServer, tmp_path: Path) -> None:
    labeller = make(server.base_url, tmp_path, model="stand-out")
    with pytest.raises(ConfigError, match=r"has no 'stand-out'; it lists stand-in"):
        labeller.start()


def test_a_server_that_answers_under_another_name_is_a_warning(
    server: ModelServer, tmp_path: Path
) -> None:
    server.models = []
    labeller = make(server.base_url, tmp_path, model="stand-in-latest")
    with pytest.warns(LabellerWarning, match="the server answers as 'stand-in'"):
        labeller(pairs_of([1.0], [2.0]))


def test_the_key_is_sent_and_shown_nowhere(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_KEY", "very-secret-key")
    server.fault = status(401, text="wrong key very-secret-key, or sk-very***cret")
    labeller = make(server.base_url, tmp_path)
    with pytest.raises(ConfigError, match=r"wrong key \[key\], or \[key\]") as caught:
        labeller.start()
    assert server.keys == {"Bearer very-secret-key"}
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    labeller.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"secret" not in stored
    assert b"very***cret" not in stored
    assert "secret" not in repr(dataclasses.asdict(labeller.config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "preferences.llm.model: not set"),
        ({"base_url": "http://me:pass@host/v1"}, "holds a user, a password, a query or a fragment"),
        ({"base_url": "http://host/v1?key=1"}, "holds a user, a password, a query or a fragment"),
        ({"base_url": "127.0.0.1:80"}, "expected http://"),
        ({"base_url": ""}, "environment variable STAND_IN_KEY is not set"),
        ({"api_key_env": "sk-123"}, "the name of an environment variable"),
        ({"describe": "nowhere:f"}, "preferences.llm.describe 'nowhere:f': no module 'nowhere'"),
    ],
)
def test_wrong_settings_are_errors(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make("http://127.0.0.1:9/v1", tmp_path, **changes)
    assert "pass@" not in str(caught.value)
    assert "sk-123" not in str(caught.value)


def two_texts(episodes: Episodes) -> list[str]:
    """Describe, whatever the number of episodes, two of them."""
    return ["return: 1", "return: 2"]


def test_a_description_of_ones_own(server: ModelServer, tmp_path: Path) -> None:
    path = f"{__name__}:two_texts"
    if __name__ not in __import__("sys").modules:
        pytest.fail("the test's own module cannot be imported by name")
    labeller = make(server.base_url, tmp_path, describe=path)
    answers(labeller, [5.0, 5.0], [6.0, 6.0])
    assert {body["messages"][-1]["content"].splitlines()[1] for body in server.asked[1:]} == {
        "return: 1",
        "return: 2",
    }
    with pytest.raises(PluginError, match="returned 2 texts for 1 episodes"):
        labeller(pairs_of([1.0], [2.0]))


def test_counts_survive_a_checkpoint(server: ModelServer, tmp_path: Path) -> None:
    labeller = make(server.base_url, tmp_path)
    answers(labeller, *THREE)
    state = labeller.state_dict()
    labeller.close()
    again = make(server.base_url, tmp_path)
    again.load_state_dict(state)
    answers(again, *THREE)
    assert again.metrics()["llm_answered"] == 6.0


def test_labels_are_kept_for_the_audit(server: ModelServer, tmp_path: Path) -> None:
    labeller = make(server.base_url, tmp_path, run="mine", ask="pairwise")
    labels = answers(labeller, *THREE)
    answers(labeller, *THREE)
    with sqlite3.connect(tmp_path / "cache.sqlite") as database:
        rows = database.execute(
            "SELECT first_return, second_return, label, outcome, prompt FROM labels ORDER BY 1"
        ).fetchall()
        details = database.execute(
            "SELECT run, model, form, first_choice, first_number, second_number, first_odds,"
            " second_odds, first_mass, second_mass FROM labels ORDER BY first_return"
        ).fetchall()
        requests = database.execute("SELECT request FROM answers").fetchall()
        calls = database.execute("SELECT DISTINCT run, model, prompt FROM calls").fetchall()
    assert calls == [("mine", "stand-in", labeller.template.identity)]
    for number, row in enumerate(details):
        gap = THREE[0][number] - THREE[1][number]
        assert row[:6] == ("mine", "stand-in", "pairwise", "A", number, number)
        assert row[6:] == pytest.approx([gap + POSITION_BIAS, POSITION_BIAS - gap, 0.9, 0.9])
    assert [row[:3] for row in rows] == [
        (first, second, pytest.approx(label))
        for first, second, label in zip(*THREE, labels, strict=True)
    ]
    assert all(row[3] == "answered" and row[4].startswith("pairwise@1:") for row in rows)
    assert all(json.loads(request)["model"] == "stand-in" for (request,) in requests)


def test_a_configuration_names_it(server: ModelServer, tmp_path: Path) -> None:
    llm = settings(server.base_url, tmp_path, at_cap="fallback", fallback="return")
    config = PreferenceConfig(labeller="llm", queries_per_iteration=4, llm=llm)
    labeller = make_labeller(config, SPEC, Seeds(0))
    assert isinstance(labeller, LlmLabeller)
    labeller.close()
    llm = dataclasses.replace(llm, fallback="llm")
    with pytest.raises(ConfigError, match=r"preferences\.llm\.fallback: got 'llm'"):
        make_labeller(dataclasses.replace(config, llm=llm), SPEC, Seeds(0))
