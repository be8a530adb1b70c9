"""What is read of a model server's replies, and the label that they make."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marl.config.preferences import LlmConfig
from marl.preferences.llm.protocol import (
    Fault,
    Reply,
    choice_of,
    log_odds,
    parsed,
)
from marl.preferences.llm.verdicts import Score, score, verdict
from tests.llm_cases import reply

LETTERS = ("A", "B")
GRADES = ("Good", "Bad")


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("A", 0),
        (" B.\n", 1),
        ("B)", 1),
        ('{"answer": "B"}', 1),
        ("<think>A is faster, so A</think>\n\nB", 1),
        ("A better attempt", None),
        ("Attempt A", None),
        ("a", None),
        ("C", None),
        ("", None),
        ("I cannot judge people.", None),
        ('{"answer": "C"}', None),
        ('{"answer": "A", "why": "B"}', None),
        ('{"answer": ["A"]}', None),
        ('{"answer": "A"', None),
        ("<think>A", None),
    ],
)
def test_only_a_whole_answer_is_one(text: str, index: int | None) -> None:
    assert choice_of(text, LETTERS) == index


def test_grades_may_be_written_small() -> None:
    assert [choice_of(text, GRADES) for text in ("good", "BAD.", "Goodish")] == [0, 1, None]


def test_log_odds_add_up_the_spellings_of_a_choice() -> None:
    # P(A) = .3 + .1, P(B) = .2: log 2, and .6 of the mass.
    candidates = [("A", math.log(0.3)), (" A", math.log(0.1)), ("B", math.log(0.2)), ("x", -1.0)]
    odds, mass = log_odds(candidates, LETTERS)
    assert odds == pytest.approx(math.log(2.0))
    assert mass == pytest.approx(0.6)


def test_a_choice_that_is_not_listed_counts_as_the_least_likely() -> None:
    # P(A) = .9, and B is below the least of the list, .05.
    odds, mass = log_odds([("A", math.log(0.9)), ("The", math.log(0.05))], LETTERS)
    assert odds == pytest.approx(math.log(18.0))
    assert mass == pytest.approx(0.9)


def body(**choice: Any) -> bytes:
    first = {"message": {"content": "A"}, "finish_reason": "stop"} | choice
    return json.dumps({"model": "m", "choices": [first]}).encode()


def token(text: str, **top: float) -> dict[str, Any]:
    return {"token": text, "top_logprobs": [{"token": t, "logprob": p} for t, p in top.items()]}


def test_the_answer_is_the_first_token_after_thinking_and_white_space() -> None:
    tokens = [token("<think>"), token("A", A=-9.0), token("</think>"), token("\n"), token("B", B=0)]
    got = parsed(body(logprobs={"content": tokens}))
    assert got.candidates == (("B", 0.0),)


def test_a_candidate_without_a_probability_is_left_out() -> None:
    top = [{"token": "A", "logprob": None}, {"token": "B", "logprob": -0.5}]
    got = parsed(body(logprobs={"content": [{"token": "B", "top_logprobs": top}]}))
    assert got.candidates == (("B", -0.5),)
    assert parsed(body(logprobs={"content": None})).candidates == ()


def test_placeholders_of_servers_do_not_make_answers_certain() -> None:
    # -9999 stands for "no probability"; it counts as e^-20, and 1e-9 as a rounded 0.
    got = parsed(body(logprobs={"content": [token("A", A=1e-9, B=-9999.0)]}))
    assert got.candidates == (("A", 0.0), ("B", -20.0))
    assert log_odds(got.candidates, LETTERS)[0] == pytest.approx(20.0)


def test_content_may_be_a_list_of_parts() -> None:
    parts = [{"type": "text", "text": '{"answer":'}, {"type": "text", "text": ' "B"}'}]
    assert choice_of(parsed(body(message={"content": parts})).text, LETTERS) == 1


WHOLE = body(logprobs={"content": [token("A", A=-0.25, B=-1.5)]})


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)


VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=9), v, max_size=3)
)


def read(sent: bytes) -> Reply | Fault:
    try:
        return parsed(sent)
    except Fault as fault:
        return fault


def assert_reply_or_fault(sent: bytes) -> None:
    got = read(sent)
    if isinstance(got, Fault):
        assert got.kind == "garbled"
        assert len(got.detail) < 1_000
    else:
        assert Reply.model_validate_json(got.model_dump_json()) == got
        choice_of(got.text, LETTERS)
        assert all(map(math.isfinite, log_odds(got.candidates, LETTERS)))


@given(st.integers(0, len(WHOLE)), st.integers(0, 9), st.binary(max_size=9))
def test_any_bytes_are_a_reply_or_a_fault(place: int, dropped: int, put: bytes) -> None:
    assert_reply_or_fault(WHOLE[:place] + put + WHOLE[place + dropped :])


@given(st.sampled_from(["choices", "usage", "model"]), VALUES, VALUES)
def test_any_json_is_a_reply_or_a_fault(field: str, value: Any, inner: Any) -> None:
    reply = json.loads(WHOLE)
    first = reply["choices"][0]
    assert_reply_or_fault(json.dumps(reply | {field: value}).encode())
    for name in ("message", "finish_reason", "logprobs"):
        changed = {"choices": [first | {name: inner}]}
        assert_reply_or_fault(json.dumps(reply | changed).encode())
    listed = {"token": "A", "logprob": inner}
    logprobs = {"content": [{"token": value, "top_logprobs": [listed]}]}
    assert_reply_or_fault(body(logprobs=logprobs))
    assert_reply_or_fault(body(message={"content": inner}))


@given(st.text(max_size=50))
def test_any_text_is_a_choice_or_none(text: str) -> None:
    assert choice_of(text, LETTERS) in (0, 1, None)


def test_what_is_kept_of_a_reply_is_capped() -> None:
    thought = "x" * 900_000
    long = parsed(body(message={"content": thought + "</think>A"}, finish_reason=thought))
    assert len(long.model_dump_json()) < 10_000
    assert choice_of(long.text, LETTERS) == 0
    # The end of a long text is no answer by itself, however it was cut.
    cut = parsed(body(message={"content": "no answer" + " " * 4_000 + "A"})).text
    assert choice_of(cut, LETTERS) is None
    top = [{"token": thought, "logprob": -1.0}] * 900
    many = parsed(body(logprobs={"content": [{"token": "A", "top_logprobs": top}]}))
    assert len(many.model_dump_json()) < 100_000


@pytest.mark.parametrize(
    "text",
    ["", "<html>", "[]", "{}", '{"error": {}}', '{"choices": null}', '{"choices": []}',
     '{"choices": [{}]}', '{"choices": [7]}'],
)  # fmt: skip
def test_a_body_without_a_reply_is_garbled(text: str) -> None:
    with pytest.raises(Fault, match="garbled"):
        parsed(text.encode())


def test_a_garbled_reply_names_the_field() -> None:
    place = r"choices\.0\.logprobs\.content: Input should be a valid array"
    with pytest.raises(Fault, match=place):
        parsed(body(logprobs={"content": 5}))


def test_a_reply_survives_the_cache() -> None:
    whole = reply(candidates=(("A", -0.25), ("B", -1.5)), prompt_tokens=None)
    assert Reply.model_validate_json(whole.model_dump_json()) == whole


def scored(odds: float, mass: float = 0.9) -> Score:
    return Score(log_odds=odds, mass=mass)


def test_a_constant_position_bias_cancels() -> None:
    # The first shown gets 3 on top: 3 + 1 and 3 - 1 average to log-odds of 1.
    got = verdict((scored(4.0), scored(2.0)), "pairwise", LlmConfig())
    assert got.label == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert got.flipped
    assert not verdict((scored(4.0), scored(-2.0)), "pairwise", LlmConfig()).flipped


def test_pointwise_compares_two_grades() -> None:
    got = verdict((scored(0.5), scored(-0.5)), "pointwise", LlmConfig())
    assert got.label == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert not got.flipped


def test_swapping_the_episodes_mirrors_the_label() -> None:
    for form, swapped in (("pairwise", (2.0, 4.0)), ("pointwise", (2.0, 4.0))):
        there = verdict((scored(4.0), scored(2.0)), form, LlmConfig()).label
        back = verdict((scored(swapped[0]), scored(swapped[1])), form, LlmConfig()).label
        assert there + back == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("scores", "changes", "label", "outcome"),
    [
        ((scored(0.1), scored(0.0)), {}, None, "margin"),  # sigmoid(.1) = .525
        ((scored(0.1), scored(0.0)), {"below_margin": "tie"}, 0.5, "tie"),
        ((scored(4.0), scored(-4.0, 0.4)), {}, None, "low_mass"),
        ((scored(4.0), Fault("timeout", "")), {}, None, "timeout"),
        ((Fault("breaker", ""), scored(1.0)), {}, None, "breaker"),
    ],
)
def test_when_there_is_no_answer(
    scores: Any, changes: dict[str, Any], label: float | None, outcome: str
) -> None:
    got = verdict(scores, "pointwise", LlmConfig(**changes))
    assert got.outcome == outcome
    assert math.isnan(got.label) if label is None else got.label == label


def test_disagreement_may_be_an_abstention_or_a_tie() -> None:
    scores = (scored(4.0), scored(2.0))
    abstained = verdict(scores, "pairwise", LlmConfig(disagreement="abstain"))
    assert math.isnan(abstained.label)
    assert abstained.outcome == "disagreement"
    assert verdict(scores, "pairwise", LlmConfig(disagreement="tie")).label == 0.5


def test_votes_become_log_odds() -> None:
    # Four for A, one for B: log (4.5 / 1.5); one of six is no vote.
    votes = [reply("A")] * 4 + [reply("B"), reply("perhaps")]
    got = score(votes, LETTERS, soft=False)
    assert isinstance(got, Score)
    assert got.log_odds == pytest.approx(math.log(3.0))
    assert got.mass == pytest.approx(5 / 6)
    few = score([reply("A"), Fault("timeout", ""), Fault("server", "")], LETTERS, soft=False)
    assert isinstance(few, Fault)
    assert few.kind == "timeout"
