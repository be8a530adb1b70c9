"""What is said of a prompt and a model, and which pairs surprise, worked by hand."""

import math
from collections import Counter
from dataclasses import replace

import pytest

from marl.reports.audit import judge_rows
from marl.reports.audit_sources import CachedAnswers, Cost, judges
from marl.reports.statistics import (
    Pair,
    Share,
    against_learned,
    against_returns,
    learned_probability,
)

PAIRWISE = Pair(
    label=0.8,
    returns=(2.0, 1.0),
    numbers=(0, 1),
    texts=("x", "y"),
    prompt="pairwise@1:aa",
    model="m",
    form="pairwise",
    first_choice="A",
    odds=(3.0, 1.0),
    masses=(0.9, 0.7),
)


def test_bias_and_reasons_of_a_pairwise_judge() -> None:
    pairs = (
        PAIRWISE,  # "A" in both orders: flipped
        # The same questions again, in the other order: no new ones. Wrong: P 0.2 of the larger.
        replace(
            PAIRWISE,
            label=0.2,
            returns=(1.0, 2.0),
            texts=("y", "x"),
            odds=(1.0, 3.0),
            masses=(0.7, 0.9),
        ),
        # Not flipped, too little mass, the one order "A" and the other "B".
        replace(
            PAIRWISE,
            label=math.nan,
            outcome="low_mass",
            texts=("x", "z"),
            odds=(2.0, -1.0),
            masses=(0.2, 0.2),
        ),
        replace(
            PAIRWISE,
            label=math.nan,
            outcome="timeout",
            texts=("u", "v"),
            odds=(None, None),
            masses=(None, None),
        ),
        replace(
            PAIRWISE, label=0.5, outcome="tie", texts=("s", "t"), odds=(1.0, 1.0), masses=(1.0, 1.0)
        ),
    )
    cost = Cost(
        prompt="pairwise@1:aa",
        model="m",
        answered=3,
        unanswered=Counter(timeout=2),
        prompt_tokens=300,
        reply_tokens=3,
        money=0.5,
        seconds=(1.0, 2.0, 9.0),
    )
    (judge,) = judges(CachedAnswers(pairs=pairs, costs=(cost,)))
    assert (judge.pairs, judge.answered, judge.ties) == (5, 3, 1)
    assert judge.unanswered == Counter(low_mass=1, timeout=1)
    assert judge.flips == Share(part=3, whole=4)
    # Six questions: (x,y) A, (y,x) A, (x,z) A, (z,x) B, (s,t) A, (t,s) A.
    assert judge.firsts == Share(part=5, whole=6)
    assert judge.mass == pytest.approx((0.9 + 0.7 + 0.2 + 0.2 + 1.0 + 1.0) / 6)
    assert judge.agreement == Share(part=2, whole=2)
    rows = dict(judge_rows(judge, has_prices=True))
    assert rows["no answer"] == "2: low_mass 1, timeout 1"
    assert rows["calls"] == "5"
    assert rows["without a reply"] == "2: timeout 2"
    assert rows["money"] == "0.5"
    assert rows["seconds a call, median"] == "2"
    # 0.9 of the way from 2 to 9.
    assert rows["95 % are faster than"] == "8.3"


def test_a_pointwise_judge_has_no_order_and_counts_each_episode_once() -> None:
    pointwise = replace(PAIRWISE, form="pointwise", prompt="pointwise@1:bb", odds=(2.0, -1.0))
    others = replace(pointwise, texts=("x", "z"), odds=(2.0, 3.0), masses=(0.9, 0.8))
    asked = CachedAnswers(pairs=(pointwise, others, PAIRWISE), costs=())
    pairwise, judge = judges(asked)
    assert pairwise.prompt == "pairwise@1:aa"
    assert judge.flips.whole == 0
    assert judge.firsts == Share(part=2, whole=3)  # x and z good, y bad
    assert judge.mass == pytest.approx((0.9 + 0.7 + 0.8) / 3)
    assert dict(judge_rows(judge, has_prices=False))["order changes the answer"] == "-"


def test_surprises_are_wrong_or_far_from_the_learned_reward() -> None:
    pairs = [
        replace(PAIRWISE, label=0.9, learned=0.2),  # right, and 0.7 from the learned reward
        replace(PAIRWISE, label=0.3, learned=0.9),  # wrong by 0.2, 0.6 away
        replace(PAIRWISE, label=0.05, learned=0.4),  # wrong by 0.45, 0.35 away
        replace(PAIRWISE, label=math.nan, learned=0.4),
        replace(PAIRWISE, label=0.5, learned=0.99),
    ]
    assert [pair.label for pair in against_returns(pairs, 9)] == [0.05, 0.3]
    assert [pair.label for pair in against_returns(pairs, 1)] == [0.05]
    assert [pair.label for pair in against_learned(pairs, 9)] == [0.9, 0.3]


def test_the_learned_probability_needs_both_scores() -> None:
    # sigmoid(1.5 - 0.5)
    assert learned_probability(PAIRWISE, {0: 1.5, 1: 0.5}) == pytest.approx(0.731059, abs=1e-6)
    assert math.isnan(learned_probability(PAIRWISE, {0: 1.5}))
    assert math.isnan(learned_probability(replace(PAIRWISE, numbers=None), {0: 1.5, 1: 0.5}))
    assert learned_probability(PAIRWISE, {0: -1e9, 1: 1e9}) < 1e-100
