"""Labellers made of others, and rules over named facts.

Axes: B pairs, M episodes, F facts.
"""

import math
from typing import Any

import pytest
import torch
import tyro
from torch import Tensor

from envs import EnvSpec, Fact
from marl.config import ConfigError, PreferenceConfig, TeacherConfig
from marl.data.replay import ReplayBuffer
from marl.data.types import Episodes
from marl.preferences import (
    Cascade,
    EpisodePairs,
    FactsLabeller,
    NoisyTeacher,
    ReturnLabeller,
    Vote,
    labellers,
    make_labeller,
)
from marl.preferences.labellers import (
    facts_labeller,
    iter_labellers,
    labeller_metrics,
    labeller_state,
    load_labeller_state,
    novelty,
)
from marl.utils.plugins import PluginError
from marl.utils.seeding import Seeds
from tests.scripted import ScriptedEnv, scripted_collector

NAN = math.nan
FACTS = (
    Fact(name="won", meaning="won", higher_is_better=True),
    Fact(name="damage", meaning="damage taken", higher_is_better=False),
    Fact(name="time", meaning="time", unit="s"),
)


def spec_of(facts: tuple[Fact, ...] = FACTS) -> EnvSpec:
    return EnvSpec(
        name="toy",
        num_envs=1,
        obs_sizes=(4, 4),
        state_size=3,
        action_kind="discrete",
        action_sizes=(3, 3),
        max_steps=10,
        finite_horizon=True,
        facts=facts,
    )


def replay_of(rollouts: int = 0) -> ReplayBuffer:
    """Return a replay buffer of environments with episodes of 1, 2, 3 and 4 steps."""
    env = ScriptedEnv([[1], [2], [3], [4]], tells_facts=True)
    replay = ReplayBuffer(
        env.spec, 4, max_steps=400, max_episodes=64, holdout_every=4, device=torch.device("cpu")
    )
    collector, actor = scripted_collector(env, 4)
    for _ in range(rollouts):
        replay.append(collector.collect(actor)[0])
    return replay


def side(returns: list[float], facts: list[list[float]], lengths: list[int]) -> Episodes:
    count = len(returns)
    return Episodes(
        replay=replay_of(),
        numbers=torch.arange(count),
        returns=torch.tensor(returns),
        lengths=torch.tensor(lengths),
        terminated=torch.ones(count, dtype=torch.bool),
        facts=torch.tensor(facts).reshape(count, -1),
    )


def pairs_by_facts(first: list[list[float]], second: list[list[float]]) -> EpisodePairs:
    """Return pairs with these facts; all returns are 0 and all lengths 1."""
    flat = [0.0] * len(first)
    ones = [1] * len(first)
    return EpisodePairs(first=side(flat, first, ones), second=side(flat, second, ones))


def pairs_by_return(first: list[float], second: list[float]) -> EpisodePairs:
    none: list[list[float]] = [[] for _ in first]
    ones = [1] * len(first)
    return EpisodePairs(first=side(first, none, ones), second=side(second, none, ones))


class Scripted:
    """Answers a list, in order, and remembers how many pairs each call was about."""

    def __init__(self, *answers: float) -> None:
        self.answers = torch.tensor(answers)
        self.calls: list[int] = []

    def __call__(self, pairs: EpisodePairs) -> Tensor:
        self.calls.append(len(pairs))
        return self.answers[pairs.first.numbers]


def test_facts_decide_one_after_another() -> None:
    # won, damage: the winner; both won, less damage; equal; the loser with less damage loses.
    first = [[1.0, 9.0, 0.0], [1.0, 2.0, 0.0], [1.0, 2.0, 0.0], [0.0, 1.0, 0.0]]
    second = [[0.0, 1.0, 0.0], [1.0, 3.0, 0.0], [1.0, 2.0, 5.0], [1.0, 9.0, 0.0]]
    rule = facts_labeller(spec_of(), ("won", "damage"), setting="here")
    assert rule(pairs_by_facts(first, second)).tolist() == [1.0, 1.0, 0.5, 0.0]


def test_facts_within_their_margin_tie_and_the_next_decides() -> None:
    first, second = [[0.0, 5.0, 2.0], [0.0, 5.0, 2.0]], [[0.0, 4.5, 3.0], [0.0, 3.0, 3.0]]
    rule = facts_labeller(spec_of(), ("damage", "-time"), (1.0, 0.0), setting="here")
    # Damage 5 against 4.5 ties, so 2 seconds beat 3; against 3 it loses.
    assert rule(pairs_by_facts(first, second)).tolist() == [1.0, 0.0]


def test_return_and_length_are_facts_of_every_environment() -> None:
    pairs = EpisodePairs(
        first=side([1.0, 1.0], [[], []], [3, 5]), second=side([0.0, 1.0], [[], []], [9, 4])
    )
    rule = facts_labeller(spec_of(()), ("return", "+length"), setting="here")
    assert rule(pairs).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wonn", r"here: environment toy tells no fact 'wonn'; did you mean 'won'\?"),
        (
            "zzz",
            r"tells no fact 'zzz'\. It can be judged by won, damage, time, return, length, novelty",
        ),
        ("time", r"here: neither more nor less of 'time' is better by itself; write 'time\+'"),
        ("length", r"write 'length\+' or 'length-'"),
        ("-time+", r"here: '-time\+' has 2 signs, expected at most one, as in 'time\+' or 'time-'"),
        ("--time", r"'--time' has 2 signs"),
    ],
)
def test_unknown_or_directionless_facts_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        facts_labeller(spec_of(), (name,), setting="here")


def test_a_rule_over_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="here: names no fact"):
        facts_labeller(spec_of(), (), setting="here")


def test_a_sign_may_follow_as_the_command_line_needs_it() -> None:
    arguments = ["--labeller", "facts", "--facts", "won", "time-", "damage+"]
    facts = tyro.cli(PreferenceConfig, args=arguments).facts
    rules = facts_labeller(spec_of(), facts, setting="here").rules
    assert [(rule.name, rule.sign) for rule in rules] == [("won", 1), ("time", -1), ("damage", 1)]


@pytest.mark.parametrize("name", ["-won", "won-"])
def test_a_sign_overrides_the_direction(name: str) -> None:
    rule = facts_labeller(spec_of(), (name,), setting="here")
    labels = rule(pairs_by_facts([[1.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]]))
    assert labels.tolist() == [0.0]


def test_novelty_is_the_distance_to_the_fifth_nearest() -> None:
    # One copy; final states (0, e, 1) of episodes e = 0..7: only e varies.
    env = ScriptedEnv([[1]])
    replay = ReplayBuffer(
        env.spec, 4, max_steps=64, max_episodes=64, holdout_every=4, device=torch.device("cpu")
    )
    collector, actor = scripted_collector(env, 4)
    for _ in range(2):
        replay.append(collector.collect(actor)[0])
    # In deviations of 0..7 (2.2913): the fifth nearest of 0 is 5 away, of 3 (0 1 2 4 5): 3.
    values = novelty(replay.episodes(torch.tensor([0, 3, 0])))
    assert values.tolist() == pytest.approx([5 / 2.29129, 3 / 2.29129, 5 / 2.29129], rel=1e-4)


def test_a_cascade_asks_on_only_what_is_open() -> None:
    cheap, dear = Scripted(1.0, NAN, 0.5, NAN), Scripted(0.0, 0.25, 0.0, NAN)
    cascade = Cascade(cheap, dear)
    labels = cascade(pairs_by_return([0.0] * 4, [0.0] * 4))
    assert labels[:3].tolist() == [1.0, 0.25, 0.5]
    assert labels[3].isnan()
    assert (cheap.calls, dear.calls) == ([4], [2])
    assert cascade.metrics() == {"cascade_0_asked": 4.0, "cascade_1_asked": 2.0}


def test_a_cascade_passes_ties_on_and_keeps_those_that_stay() -> None:
    labels = Cascade(Scripted(0.5, 0.5, 0.5), Scripted(1.0, NAN, 0.5), pass_ties=True)(
        pairs_by_return([0.0] * 3, [0.0] * 3)
    )
    assert labels.tolist() == [1.0, 0.5, 0.5]


def test_a_cascade_may_leave_what_has_no_answer_alone() -> None:
    first, second = Scripted(NAN, 0.5, 1.0), Scripted(1.0, 0.0, 0.0)
    cascade = Cascade(first, second, pass_unanswered=False, pass_ties=True)
    labels = cascade(pairs_by_return([0.0] * 3, [0.0] * 3))
    assert labels[0].isnan()
    assert labels[1:].tolist() == [0.0, 1.0]
    assert second.calls == [1]


def test_a_cascade_stops_when_nothing_is_open() -> None:
    dear = Scripted(0.0, 0.0)
    Cascade(ReturnLabeller(), dear)(pairs_by_return([1.0, 2.0], [0.0, 0.0]))
    assert dear.calls == []


def test_a_vote_is_the_mean_of_the_answers() -> None:
    voters = (
        Scripted(1.0, 1.0, NAN, NAN),
        Scripted(0.0, 1.0, 0.5, NAN),
        Scripted(0.5, NAN, NAN, NAN),
    )
    labels = Vote(*voters, at_least=2)(pairs_by_return([0.0] * 4, [0.0] * 4))
    assert labels[:2].tolist() == [0.5, 1.0]
    assert labels[2:].isnan().all()  # one answer and none
    assert Vote(*voters)(pairs_by_return([0.0] * 4, [0.0] * 4))[2] == 0.5


def test_wrong_compositions_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Cascade()
    with pytest.raises(ValueError, match="none but the first"):
        Cascade(ReturnLabeller(), ReturnLabeller(), pass_unanswered=False)
    with pytest.raises(ValueError, match="Vote got 1 labellers and at_least = 2"):
        Vote(ReturnLabeller(), at_least=2)


def test_a_part_that_breaks_its_promise_is_named() -> None:
    with pytest.raises(PluginError, match=r"labeller Scripted returned 2\.0 for pair 0"):
        Vote(ReturnLabeller(), Scripted(2.0))(pairs_by_return([0.0], [0.0]))


class Counting:
    """A labeller with a state."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, pairs: EpisodePairs) -> Tensor:
        self.count += len(pairs)
        return torch.full((len(pairs),), 0.5)

    def metrics(self) -> dict[str, float]:
        return {"count": self.count}

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def test_the_state_of_parts_is_saved_and_reported() -> None:
    def build() -> NoisyTeacher:
        inner = Vote(Cascade(ReturnLabeller(margin=9.0), Counting(), pass_ties=True), Counting())
        return NoisyTeacher(inner, TeacherConfig(mistakes=0.5), 0)

    labeller, other = build(), build()
    assert len(list(iter_labellers(labeller))) == 6
    labeller(pairs_by_return([1.0, 2.0], [2.0, 1.0]))
    load_labeller_state(other, labeller_state(labeller))
    assert labeller_metrics(other) == labeller_metrics(labeller)
    assert labeller_metrics(other)["labeller/cascade_1_asked"] == 2
    with pytest.raises(ConfigError, match="has 3 labellers with a state, this one 0"):
        load_labeller_state(ReturnLabeller(), labeller_state(labeller))


def from_settings(**settings: Any) -> Any:
    return make_labeller(PreferenceConfig(**settings), spec_of(), Seeds(0))


def test_settings_choose_a_rule() -> None:
    outcome = from_settings(labeller="outcome")
    assert isinstance(outcome, FactsLabeller)
    assert [rule.name for rule in outcome.rules] == ["won"]
    facts = from_settings(labeller="facts", facts=("won", "+time"), fact_margins=(0.0, 2.0))
    assert [(r.name, r.sign, r.margin) for r in facts.rules] == [("won", 1, 0), ("time", 1, 2)]


def test_settings_compose() -> None:
    labeller = from_settings(tie_break=("-time",), teacher=TeacherConfig(mistakes=0.1))
    kinds = [type(part).__name__ for part in iter_labellers(labeller)]
    assert kinds == ["NoisyTeacher", "Cascade", "ReturnLabeller", "FactsLabeller"]
    assert type(from_settings(teacher=TeacherConfig(myopia=0.5))) is ReturnLabeller


def test_a_tie_break_decides_ties_and_answers_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(labellers, "scripted", Scripted(NAN, 0.5, 0.0), raising=False)
    labeller = from_settings(labeller="marl.preferences.labellers:scripted", tie_break=("won",))
    # The first won every time: it decides the tie, not what has no answer or another one.
    labels = labeller(pairs_by_facts([[1.0, 0.0, 0.0]] * 3, [[0.0, 0.0, 0.0]] * 3))
    assert labels[0].isnan()
    assert labels[1:].tolist() == [1.0, 0.0]


def test_an_environment_without_an_outcome_says_what_it_has() -> None:
    with pytest.raises(ConfigError, match=r'labeller = "outcome": environment toy tells no fact'):
        make_labeller(PreferenceConfig(labeller="outcome"), spec_of(FACTS[1:]), Seeds(0))


def build_labeller(spec: EnvSpec, generator: torch.Generator) -> Any:
    """Return a labeller that remembers what it was made with."""
    cascade = Cascade(ReturnLabeller())
    cascade.given = (spec.name, torch.rand((), generator=generator))  # type: ignore[attr-defined]
    return cascade


def test_a_factory_gets_what_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labellers, "build_labeller", build_labeller, raising=False)
    monkeypatch.setattr(labellers, "made", Vote(ReturnLabeller()), raising=False)
    monkeypatch.setattr(labellers, "broken", lambda: 3, raising=False)
    made = from_settings(labeller="marl.preferences.labellers:build_labeller()")
    expected = torch.rand((), generator=Seeds(0).torch("labeller"))
    assert made.given == ("toy", expected)
    assert from_settings(labeller="marl.preferences.labellers:made") is labellers.made  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match=r"labellers:broken\(\) made a int, expected a labeller"):
        from_settings(labeller="marl.preferences.labellers:broken()")
