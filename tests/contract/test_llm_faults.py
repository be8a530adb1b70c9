"""The language-model labeller where its server fails, is slow, or a cap is reached.

Axes: B pairs.
"""

import math
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from marl.preferences import ReturnLabeller
from marl.preferences.labellers import (
    EpisodePairs,
    labeller_metrics,
    labeller_state,
    load_labeller_state,
)
from marl.preferences.llm import LabellerWarning
from marl.preferences.llm.cache import BudgetError
from marl.utils.plugins import PluginError
from tests.llm_cases import FakeClock, answers, make, outcomes, pairs_of, sigmoid
from tests.llm_server import (
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


def patience(kind: str) -> float:
    """Return a timeout in seconds: short where the server is to run into it."""
    return 0.4 if kind == "timeout" else 10.0


@pytest.mark.parametrize("name", PASSING)
def test_a_passing_fault_is_tried_again(name: str, server: ModelServer, tmp_path: Path) -> None:
    fault, kind = PASSING[name]
    clock = FakeClock()
    labeller = make(server.base_url, tmp_path, clock, concurrency=1, timeout=patience(kind))
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
    labeller = make(
        server.base_url, tmp_path, clock, concurrency=1, attempts=2, timeout=patience(kind)
    )
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
    labeller = make(
        server.base_url, tmp_path, timeout=0.4, deadline=0.7, attempts=50, concurrency=1
    )
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
    caps = {"at_cap": "fallback", "max_calls": 1}
    labeller = make(server.base_url, tmp_path, fallback=Willing(2.0), **caps)
    with pytest.raises(PluginError, match=r"labeller Willing returned 2\.0 for pair 0"):
        answers(labeller, [1.0], [2.0])
