"""Simulated teachers err as often as they should, and always in the same way.

Axes: B pairs.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from marl.config import TeacherConfig
from marl.data.replay import ReplayBuffer
from marl.preferences import EpisodePairs, NoisyTeacher, ReturnLabeller
from marl.preferences.teachers import irrationality
from tests.scripted import ScriptedEnv, scripted_collector

NUM_PAIRS = 4000


def filled(lengths: list[int], rollouts: int = 250) -> ReplayBuffer:
    """Return a replay buffer of many episodes; a copy's all last as long and return as much."""
    env = ScriptedEnv([[length] for length in lengths])
    replay = ReplayBuffer(
        env.spec, 4, max_steps=20_000, max_episodes=4096, holdout_every=4,
        device=torch.device("cpu"),
    )  # fmt: skip
    collector, actor = scripted_collector(env, 4)
    for _ in range(rollouts):
        replay.append(collector.collect(actor)[0])
    return replay


@pytest.fixture(scope="module")
def replay() -> ReplayBuffer:
    return filled([1, 2, 4])


def returns_set_to(replay: ReplayBuffer, worse: float, better: float) -> tuple[Tensor, Tensor]:
    """Return numbers of worse and better episodes after giving them these returns."""
    numbers = replay.available()
    replay._episodes["returns"][:] = torch.where(
        torch.arange(len(replay._episodes["returns"])) % 2 == 0, worse, better
    )
    even, odd = numbers[numbers % 2 == 0], numbers[numbers % 2 == 1]
    first = even[torch.arange(NUM_PAIRS) % len(even)]
    second = odd[(torch.arange(NUM_PAIRS) * 7 // 3) % len(odd)]
    return first, second


def answers(replay: ReplayBuffer, teacher: NoisyTeacher, first: Tensor, second: Tensor) -> Tensor:
    pairs = EpisodePairs(first=replay.episodes(first), second=replay.episodes(second))
    return teacher(pairs)


def test_the_boltzmann_choice_by_hand() -> None:
    # sigmoid(-ln 3) = 1/4; at no distance a coin decides; beta = inf never errs, 0 always guesses.
    gap = torch.tensor([0.0, 1.0, 2.0])
    assert irrationality(gap, math.log(3)).tolist() == pytest.approx([1 / 2, 1 / 4, 1 / 10])
    assert irrationality(gap, math.inf).tolist() == [0.0, 0.0, 0.0]
    assert irrationality(gap, 0.0).tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_rationality_errs_by_deviations_whatever_the_scale(
    replay: ReplayBuffer, scale: float
) -> None:
    # Half of the returns are 0 and half 1 (times the scale): deviation 1/2, so a pair is 2
    # deviations apart, and beta = 1 errs with sigmoid(-2) = .1192; standard deviation .005.
    first, second = returns_set_to(replay, 0.0, scale)
    teacher = NoisyTeacher(ReturnLabeller(), TeacherConfig(rationality=1.0), 7)
    wrong = answers(replay, teacher, first, second)
    assert abs(float(wrong.mean()) - 0.1192) < 5 * 0.005


def test_mistakes_are_as_frequent_as_they_should_be(replay: ReplayBuffer) -> None:
    first, second = returns_set_to(replay, 0.0, 1.0)
    teacher = NoisyTeacher(ReturnLabeller(), TeacherConfig(mistakes=0.3), 7)
    wrong = answers(replay, teacher, first, second)
    assert set(wrong.tolist()) == {0.0, 1.0}
    assert abs(float(wrong.mean()) - 0.3) < 5 * 0.0073


def test_two_errors_cancel(replay: ReplayBuffer) -> None:
    # beta = 0 guesses: wrong in one half, with mistakes or without.
    first, second = returns_set_to(replay, 0.0, 1.0)
    config = TeacherConfig(rationality=0.0, mistakes=0.3)
    wrong = answers(replay, NoisyTeacher(ReturnLabeller(), config, 7), first, second)
    assert abs(float(wrong.mean()) - 0.5) < 5 * 0.008


def test_a_teacher_asked_twice_says_the_same_in_either_order(replay: ReplayBuffer) -> None:
    first, second = returns_set_to(replay, 0.0, 1.0)
    config = TeacherConfig(rationality=1.0, mistakes=0.2)
    once = answers(replay, NoisyTeacher(ReturnLabeller(), config, 7), first, second)
    turned = answers(replay, NoisyTeacher(ReturnLabeller(), config, 7), second, first)
    other = answers(replay, NoisyTeacher(ReturnLabeller(), config, 8), first, second)
    assert torch.equal(once, 1.0 - turned)
    assert not torch.equal(once, other)


def test_close_returns_tie_and_bad_ones_get_no_answer(replay: ReplayBuffer) -> None:
    returns_set_to(replay, -1.0, 1.0)  # mean 0, deviation 1: returns are deviations
    numbers = replay.available()[:8]
    slots = numbers % replay.max_episodes
    replay._episodes["returns"][slots] = torch.tensor([0.0, 0.4, 0.0, 0.6, -2.0, -3.0, -2.0, 0.0])
    mean, deviation = replay.return_moments()
    assert (mean, deviation) == (pytest.approx(0.0, abs=0.01), pytest.approx(1.0, abs=0.01))
    config = TeacherConfig(tie_within=0.5, skip_below=-1.0, mistakes=1.0)
    labels = answers(replay, NoisyTeacher(ReturnLabeller(), config, 0), numbers[::2], numbers[1::2])
    # .4 apart ties; .6 apart is answered, by mistake the worse; -2 and -3 get no answer; of -2
    # and 0 one is good enough.
    assert labels[:2].tolist() == [0.5, 1.0]
    assert labels[2].isnan()
    assert labels[3] == 1.0


def test_the_defaults_pass_answers_on(replay: ReplayBuffer) -> None:
    first, second = returns_set_to(replay, 0.0, 1.0)
    assert not answers(
        replay, NoisyTeacher(ReturnLabeller(), TeacherConfig(), 7), first, second
    ).any()


def abstaining(pairs: EpisodePairs) -> Tensor:
    return torch.full((len(pairs),), math.nan)


def test_answers_may_come_from_another_device(replay: ReplayBuffer) -> None:
    first, second = returns_set_to(replay, 0.0, 1.0)
    pairs = EpisodePairs(first=replay.episodes(first), second=replay.episodes(second))
    # A "meta" tensor knows its device and shape, and refuses to mix with others, on any machine.
    elsewhere = EpisodePairs(
        first=replace(pairs.first, returns=pairs.first.returns.to("meta")),
        second=replace(pairs.second, returns=pairs.second.returns.to("meta")),
    )
    teacher = NoisyTeacher(abstaining, TeacherConfig(rationality=1.0, tie_within=1.0), 7)
    assert teacher(elsewhere).device.type == "meta"


def test_what_was_not_answered_stays_so(replay: ReplayBuffer) -> None:
    first, second = returns_set_to(replay, 0.0, 1.0)
    config = TeacherConfig(rationality=1.0, mistakes=0.5, tie_within=9.0)
    assert answers(replay, NoisyTeacher(abstaining, config, 7), first, second).isnan().all()


def test_equal_returns_have_a_deviation_of_one() -> None:
    replay = filled([2], rollouts=3)
    replay._episodes["returns"][:] = 5.0
    assert replay.return_moments() == (5.0, 1.0)
    assert filled([2], rollouts=0).return_moments() == (0.0, 1.0)
