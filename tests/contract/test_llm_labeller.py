"""The language-model labeller against a stand-in server: answers, faults, caps, replay.

Axes: B pairs.
"""

import dataclasses
import json
import math
import socket
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from marl.config import ConfigError, PreferenceConfig
from marl.data.types import Episodes
from marl.preferences import ReturnLabeller
from marl.preferences.factory import make_labeller
from marl.preferences.labellers import (
    EpisodePairs,
    Labeller,
    labeller_metrics,
    labeller_state,
    load_labeller_state,
)
from marl.preferences.llm import LabellerWarning, LlmLabeller
from marl.preferences.llm.cache import BudgetError
from marl.utils.plugins import PluginError
from marl.utils.seeding import Seeds
from tests.llm_cases import SPEC, FakeClock, make, pairs_of, settings
from tests.llm_server import (
    POSITION_BIAS,
    Fault,
    ModelServer,
    body_of,
    changed,
    dripping,
    dropped,
    saying,
    silent,
    status,
    truncated,
)

THREE = ([1.0, 2.0, 3.0], [2.0, 1.0, 2.5])


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


def answers(labeller: LlmLabeller, first: list[float], second: list[float]) -> list[float]:
    """Return the labels of pairs with these returns; warnings are looked at elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LabellerWarning)
        labels = labeller(pairs_of(first, second))
    assert isinstance(labeller, Labeller)
    assert labels.shape == (len(first),)
    return labels.tolist()


def sigmoid(odds: float) -> float:
    return 1.0 / (1.0 + math.exp(-odds))


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


PASSING: dict[str, tuple[Fault, str]] = {
    "429 with Retry-After": (status(429, {"Retry-After": "3"}), "overloaded"),
    "500": (status(500), "server"),
    "502 in html": (body_of(b"<html>bad gateway</html>", "html"), "garbled"),
    "503 while loading": (status(503), "server"),
    "408": (status(408), "server"),
    "dropped": (dropped, "dropped"),
    "truncated body": (truncated, "dropped"),
    "invalid JSON": (body_of(b'{"choices": ['), "garbled"),
    "empty body": (body_of(b""), "garbled"),
    "an error with status 200": (body_of(b'{"error": {"message": "no"}}'), "garbled"),
    "no choices": (body_of(b'{"choices": []}'), "garbled"),
    "slow": (dripping, "timeout"),
    "hanging": (silent, "timeout"),
}


def outcomes(path: Path) -> list[str]:
    """Return how every call in a store ended."""
    with sqlite3.connect(path / "cache.sqlite") as database:
        return [outcome for (outcome,) in database.execute("SELECT outcome FROM calls ORDER BY id")]


@pytest.mark.parametrize("name", PASSING)
def test_a_passing_fault_is_tried_again(name: str, server: ModelServer, tmp_path: Path) -> None:
    fault, kind = PASSING[name]
    clock = FakeClock()
    labeller = make(server.base_url, tmp_path, clock, concurrency=1)
    answers(labeller, [0.0], [3.0])
    server.faults = [fault, fault]
    assert answers(labeller, [1.0], [2.0]) == pytest.approx([sigmoid(-1.0)], abs=1e-5)
    assert labeller.metrics()["llm_retries"] == 2.0
    assert outcomes(tmp_path)[-4:] == [kind, kind, "answered", "answered"]
    # Half a second and a second, half of each at random, or what the server asks for.
    if name.startswith("429"):
        assert clock.slept == [3.0, 3.0]
    else:
        assert 0.25 <= clock.slept[0] <= 0.5 <= clock.slept[1] <= 1.0


LASTING: dict[str, tuple[Fault, str]] = {
    "401": (status(401), "key"),
    "403": (status(403), "key"),
    "429 for lack of money": (status(429, text="insufficient_quota"), "key"),
    "404, no such model": (status(404), "missing"),
    "400": (status(400), "rejected"),
    "413": (status(413), "rejected"),
    "422": (status(422), "rejected"),
    "500 without end": (status(500), "server"),
    "hanging without end": (silent, "timeout"),
    "dropped without end": (dropped, "dropped"),
    "empty content": (saying(""), "unusable"),
    "no content": (saying(None), "unusable"),
    "cut off": (saying("", finish="length"), "length"),
    "log-probabilities absent": (changed(logprobs=None), "no_logprobs"),
}


@pytest.mark.parametrize("name", LASTING)
def test_a_lasting_fault_is_no_answer_counted_and_passes(
    name: str, server: ModelServer, tmp_path: Path
) -> None:
    fault, kind = LASTING[name]
    clock = FakeClock()
    labeller = make(server.base_url, tmp_path, clock, concurrency=1, attempts=2)
    answers(labeller, [0.0], [3.0])
    server.fault = fault
    with pytest.warns(LabellerWarning, match=f"no answer to any of 1 pairs .{kind}"):
        assert math.isnan(labeller(pairs_of([1.0], [2.0]))[0])
    metrics = labeller.metrics()
    assert metrics[f"llm_fault_{kind}"] >= 1.0
    assert metrics["llm_abstained"] == 1.0
    # What was answered before is answered still, and later questions are again.
    assert not math.isnan(answers(labeller, [0.0], [3.0])[0])
    server.fault = None
    clock.now += 3600.0
    assert not math.isnan(answers(labeller, [11.0], [-12.0])[0])


def test_refusals_and_answers_outside_the_choices_are_no_votes(tmp_path: Path) -> None:
    with ModelServer(logprobs=False) as server:
        labeller = make(server.base_url, tmp_path, votes=2)
        answers(labeller, [0.0], [3.0])
        server.fault = saying("I am sorry, I cannot judge that.")
        assert math.isnan(answers(labeller, [1.0], [2.0])[0])
        # Two votes for each episode, each asked again once, with a reminder.
        assert labeller.metrics()["llm_fault_unusable"] == 8.0
        reminded = [b for b in server.asked if "nothing else" in b["messages"][-1]["content"]]
        assert len(reminded) == 4
        # They were paid for, so they are not asked again.
        asked = len(server.asked)
        assert math.isnan(answers(labeller, [1.0], [2.0])[0])
        assert len(server.asked) == asked


def test_a_reminder_may_help(tmp_path: Path) -> None:
    with ModelServer(logprobs=False) as server:
        labeller = make(server.base_url, tmp_path, votes=1)
        answers(labeller, [0.0], [3.0])
        server.faults = [saying("Well..."), saying("Well...")]
        assert answers(labeller, [9.0], [-9.0]) == pytest.approx([sigmoid(2 * math.log(3.0))])


def test_little_mass_on_the_choices_is_no_answer(server: ModelServer, tmp_path: Path) -> None:
    labeller = make(server.base_url, tmp_path)
    answers(labeller, [0.0], [3.0])
    top = [{"token": "The", "logprob": -0.1}, {"token": "Good", "logprob": -3.0}]
    server.fault = changed(logprobs={"content": [{"token": "The", "top_logprobs": top}]})
    assert math.isnan(answers(labeller, [1.0], [2.0])[0])
    assert labeller.metrics()["llm_abstained_low_mass"] == 1.0


def test_lost_log_probabilities_make_the_server_known_anew(tmp_path: Path) -> None:
    with ModelServer() as server:
        labeller = make(server.base_url, tmp_path, votes=3)
        answers(labeller, [0.0], [3.0])
        server.logprobs = False
        assert math.isnan(answers(labeller, [9.0], [-9.0])[0])
        # The next batch steps down to votes: three each way, log-odds of log 7.
        assert answers(labeller, [9.0], [-9.0]) == pytest.approx([sigmoid(2 * math.log(7.0))])


def test_a_server_that_is_down_costs_little_and_is_tried_again(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    clock = FakeClock()
    labeller = make(f"http://127.0.0.1:{port}/v1", tmp_path, clock, breaker_seconds=60.0)
    with pytest.warns(LabellerWarning, match="not ready yet .refused"):
        labeller.start()
    with pytest.warns(LabellerWarning, match=r"no answer to any of 3 pairs .*Training goes on"):
        assert labeller(pairs_of(*THREE)).isnan().all()
    assert labeller.metrics()["llm_abstained_breaker"] == 3.0
    with ModelServer(port=port):
        assert all(math.isnan(label) for label in answers(labeller, *THREE))
        clock.now += 61.0
        with pytest.warns(LabellerWarning, match="answers again"):
            assert not labeller(pairs_of(*THREE)).isnan().any()


def test_the_server_stopped_in_the_middle(server: ModelServer, tmp_path: Path) -> None:
    clock = FakeClock()
    labeller = make(server.base_url, tmp_path, clock, concurrency=1)
    before = answers(labeller, *THREE)
    server.stop()
    returns = [float(number) for number in range(10, 30)]
    with pytest.warns(LabellerWarning, match="refused"):
        assert labeller(pairs_of(returns, returns[::-1])).isnan().all()
    # Five failures in a row, then nothing is asked any more.
    assert labeller.metrics()["llm_fault_refused"] + labeller.metrics()["llm_retries"] <= 10.0
    assert labeller.metrics()["llm_fault_breaker"] >= 15.0
    assert labeller.metrics()["llm_breaker_opened"] == 1.0
    assert answers(labeller, *THREE) == before
    # After a while one question tries, and its failure keeps the breaker open.
    clock.now += 61.0
    calls = labeller.metrics()["llm_calls"]
    answers(labeller, returns, returns[::-1])
    assert labeller.metrics()["llm_calls"] == calls + 1.0


def test_a_long_retry_after_leaves_the_server_alone(server: ModelServer, tmp_path: Path) -> None:
    clock = FakeClock()
    labeller = make(server.base_url, tmp_path, clock, concurrency=1)
    answers(labeller, [0.0], [3.0])
    server.fault = status(429, {"Retry-After": "600"})
    answers(labeller, [1.0], [2.0])
    assert clock.slept == []
    server.fault = None
    clock.now += 599.0
    assert math.isnan(answers(labeller, [1.0], [2.0])[0])
    clock.now += 2.0
    assert not math.isnan(answers(labeller, [1.0], [2.0])[0])


def test_the_deadline_is_for_all_attempts_together(server: ModelServer, tmp_path: Path) -> None:
    labeller = make(server.base_url, tmp_path, deadline=0.7, attempts=50, concurrency=1)
    answers(labeller, [0.0], [3.0])
    server.fault = silent
    assert math.isnan(answers(labeller, [1.0], [2.0])[0])
    assert labeller.metrics()["llm_fault_deadline"] == 2.0
    assert labeller.metrics()["llm_calls"] == 3.0 + 2 * 2


def test_no_more_questions_are_under_way_than_allowed(tmp_path: Path) -> None:
    returns = [float(number) for number in range(12)]
    with ModelServer(delay=0.02) as server:
        labeller = make(server.base_url, tmp_path, concurrency=3)
        answers(labeller, returns, returns[::-1])
        assert server.most_at_once == 3


@pytest.mark.parametrize(
    ("caps", "at_least"),
    [
        ({"max_calls": 7}, 7),
        # Each call uses 101 tokens, and may use up to about 660 by the estimate.
        ({"max_total_tokens": 1_200}, 5),
        # 100 and 1 tokens at 1 and 10 per thousand: 0.11 a call.
        ({"max_cost": 1.5, "prompt_price": 1e3, "reply_price": 1e4}, 7),
    ],
)
def test_caps_are_never_passed(
    caps: dict[str, Any], at_least: int, server: ModelServer, tmp_path: Path
) -> None:
    returns = [float(number) for number in range(20)]
    for _ in range(2):  # also not by the next process
        labeller = make(server.base_url, tmp_path, **caps)
        with pytest.warns(LabellerWarning, match="a cap is reached"):
            got = labeller(pairs_of(returns, returns[::-1]))
        assert got.isnan().any()
        spent = labeller.client.spending.spent
        assert spent.calls <= caps.get("max_calls", 1e9)
        assert spent.tokens <= caps.get("max_total_tokens", 1e9)
        assert spent.cost <= caps.get("max_cost", 1e9)
        labeller.close()
    assert len(server.asked) >= at_least


def test_a_cap_on_waiting_keeps_what_came_in_time(tmp_path: Path) -> None:
    returns = [float(number) for number in range(1, 41)]
    with ModelServer(delay=0.1) as server:
        labeller = make(server.base_url, tmp_path, concurrency=4, max_seconds=1.0)
        got = torch.tensor(answers(labeller, returns, [-r for r in returns]))
        assert 0 < got.isnan().sum() < 40
        assert labeller.metrics()["llm_spent_seconds"] < 2.0
        asked = len(server.asked)
        assert answers(labeller, [100.0], [200.0])[0] != 0.5
        assert len(server.asked) == asked


def test_at_the_cap_another_labeller_takes_over_or_the_run_ends(
    server: ModelServer, tmp_path: Path
) -> None:
    labeller = make(
        server.base_url,
        tmp_path,
        fallback=ReturnLabeller(),
        at_cap="fallback",
        max_calls=3,
        concurrency=1,
    )
    # A probe and the first pair's two grades fit; the rest is judged by return.
    got = answers(labeller, [1.0, 5.0, 6.0], [2.0, 4.0, 7.0])
    assert got == pytest.approx([sigmoid(-1.0), 1.0, 0.0], abs=1e-5)
    assert labeller.metrics()["llm_fallbacks"] == 2.0
    labeller.close()
    labeller = make(server.base_url, tmp_path, at_cap="abort", max_calls=3)
    with pytest.raises(BudgetError, match=r"a cap is reached \(3 of 3 calls\)"):
        answers(labeller, [5.0], [4.0])


class Willing:
    """Prefers the first, and counts the pairs it was asked about."""

    def __init__(self, answer: float = 1.0) -> None:
        self.answer = answer
        self.asked = 0

    def __call__(self, pairs: EpisodePairs) -> torch.Tensor:
        self.asked += len(pairs)
        return torch.full((len(pairs),), self.answer)

    def metrics(self) -> dict[str, float]:
        return {"asked": float(self.asked)}

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.asked = state["asked"]


def test_a_fallback_is_asked_about_open_pairs_only_and_goes_on_where_it_stood(
    server: ModelServer, tmp_path: Path
) -> None:
    fallback = Willing()
    caps: dict[str, Any] = {"at_cap": "fallback", "max_calls": 3, "concurrency": 1}
    labeller = make(server.base_url, tmp_path, fallback=fallback, **caps)
    # A probe and the first pair's two grades fit; two pairs are open.
    answers(labeller, [1.0, 5.0, 6.0], [2.0, 4.0, 7.0])
    assert fallback.asked == 2
    assert labeller_metrics(labeller)["labeller/asked"] == 2.0
    state = labeller_state(labeller)
    labeller.close()
    again = Willing()
    labeller = make(server.base_url, tmp_path, fallback=again, **caps)
    load_labeller_state(labeller, state)
    assert again.asked == 2


def test_a_fallback_that_breaks_its_promise_is_named(server: ModelServer, tmp_path: Path) -> None:
    labeller = make(
        server.base_url, tmp_path, fallback=Willing(2.0), at_cap="fallback", max_calls=1
    )
    with pytest.raises(PluginError, match=r"labeller Willing returned 2\.0 for pair 0"):
        answers(labeller, [1.0], [2.0])


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
