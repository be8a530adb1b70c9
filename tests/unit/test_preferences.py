"""Which answers are kept, and what is served to train on.

Axes: M episodes, B pairs.
"""

import copy
import math
import signal
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from marl import preferences
from marl.config import PreferenceConfig, RewardConfig, TeacherConfig
from marl.preferences.buffer import PreferenceBuffer
from marl.preferences.labellers import EpisodePairs
from marl.preferences.pipeline import FeedbackPipeline
from marl.utils.plugins import PluginError
from marl.utils.seeding import Seeds
from tests.scripted import ScriptedEnv, scripted_collector

CPU = torch.device("cpu")


def test_the_buffer_keeps_the_newest_answers() -> None:
    buffer = PreferenceBuffer(3, CPU)
    numbers = torch.arange(5)
    buffer.add(numbers[:2], numbers[:2] + 10, torch.tensor([1.0, math.nan]))
    assert (len(buffer), buffer.num_answered) == (1, 1)
    buffer.add(numbers[1:4], numbers[1:4] + 10, torch.tensor([0.5, 0.0, 1.0]))
    # Pairs 0, 1, 2, 3 in a ring of three: 3 has overwritten 0.
    assert buffer.first.tolist() == [3, 1, 2]
    assert buffer.second.tolist() == [13, 11, 12]
    assert buffer.labels.tolist() == [1.0, 0.5, 0.0]
    assert (len(buffer), buffer.num_answered) == (3, 4)
    # Five at once: the last three stay, where the ring has come to (answers 4 to 8: slots 6 % 3).
    buffer.add(numbers, numbers + 20, torch.zeros(5))
    assert sorted(buffer.first.tolist()) == [2, 3, 4]
    assert torch.equal(buffer.second, buffer.first + 20)
    assert buffer.num_answered == 9


def test_the_buffer_survives_an_empty_answer() -> None:
    buffer = PreferenceBuffer(3, CPU)
    nobody = torch.zeros(0, dtype=torch.int64)
    buffer.add(nobody, nobody, torch.zeros(0))
    buffer.add(nobody[:0], nobody, torch.full((0,), math.nan))
    assert len(buffer) == 0


def test_a_corrected_answer_takes_the_place_of_the_earlier_one() -> None:
    buffer = PreferenceBuffer(4, CPU)
    buffer.add(torch.tensor([1, 2]), torch.tensor([3, 4]), torch.tensor([1.0, 0.0]))
    # Pair (1, 3) is now the other way round, (2, 4) withdrawn, (4, 2) a pair of its own.
    firsts, seconds = torch.tensor([1, 2, 4]), torch.tensor([3, 4, 2])
    buffer.correct(firsts, seconds, torch.tensor([0.0, math.nan, 0.5]), time=7)
    expected = torch.tensor([math.nan, math.nan, 0.0, 0.5])
    torch.testing.assert_close(buffer.labels, expected, equal_nan=True)
    assert buffer.first.tolist() == [1, 2, 1, 4]
    assert buffer.asked_at.tolist() == [0, 0, 7, 7]


def test_the_buffer_state_round_trips() -> None:
    buffer, other = PreferenceBuffer(3, CPU), PreferenceBuffer(3, CPU)
    buffer.add(torch.tensor([1, 2]), torch.tensor([3, 4]), torch.tensor([1.0, math.nan]))
    other.load_state_dict(copy.deepcopy(buffer.state_dict()))
    for each in (buffer, other):
        each.add(torch.tensor([5]), torch.tensor([6]), torch.tensor([0.0]))
    assert torch.equal(other.first, buffer.first)
    assert vars(other).keys() == vars(buffer).keys()
    assert other.num_answered == 2


@pytest.mark.parametrize("count", [0, 2, 3, 5])
def test_answers_that_are_saved_can_be_read_alone(count: int) -> None:
    buffer, alone = PreferenceBuffer(3, CPU), PreferenceBuffer(3, torch.device("meta"))
    numbers = torch.arange(count)
    buffer.add(numbers, numbers + 1, torch.ones(count))
    state = copy.deepcopy(buffer.state_dict())
    assert len(state["labels"]) == len(state["first"]) == min(3, count)
    alone.adopt(state)
    assert len(alone) == len(buffer)
    for theirs, mine in zip(alone.standing(), buffer.standing(), strict=True):
        assert torch.equal(theirs, mine)
    for told in (count + 1, -1, 10**30):
        if min(3, told) != min(3, count):
            other = PreferenceBuffer(3, torch.device("meta"))
            with pytest.raises(ValueError, match="was saved, not"):
                other.adopt(state | {"num_answered": told})


def make_source(**options: Any) -> tuple[FeedbackPipeline, ScriptedEnv]:
    """Return a source over four environments with episodes of 1, 2, 3 and 4 steps."""
    env = ScriptedEnv([[1], [2], [3], [4]])
    reward = RewardConfig(batch_episodes=options.pop("batch_episodes", 8))
    settings: dict[str, Any] = {"replay_steps": 400, "holdout_every": 4} | options
    iterations = settings.pop("num_iterations", 10)
    config = PreferenceConfig(**settings)
    source = FeedbackPipeline(env.spec, 4, config, reward, Seeds(0), CPU, num_iterations=iterations)
    return source, env


def observe(source: FeedbackPipeline, env: ScriptedEnv, rollouts: int) -> None:
    collector, actor = scripted_collector(env, 4)
    for _ in range(rollouts):
        source.observe(collector.collect(actor)[0])


def test_nothing_stored_gives_no_batch() -> None:
    source, _ = make_source()
    assert source.batch() is None
    assert source.batch(held_out=True) is None


@pytest.mark.parametrize("query", ["uniform", "newest_share", "recent_with_older"])
def test_a_free_labeller_labels_every_pair_of_a_batch(query: str) -> None:
    source, env = make_source(query=query)
    observe(source, env, 3)
    batch = source.batch()
    assert batch is not None
    returns = (batch.step_weights.sum(dim=-1)).round()  # a step pays 1
    returns = returns + 10 * batch.transitions.state[:, 0, 1]
    expected = torch.where(
        returns[batch.first] == returns[batch.second],
        0.5,
        (returns[batch.first] > returns[batch.second]).float(),
    )
    assert torch.equal(batch.labels, expected)
    assert torch.equal(batch.lengths, batch.step_weights.sum(dim=-1).round().long())
    pairs = set(zip(batch.first.tolist(), batch.second.tolist(), strict=True))
    assert len(pairs) == len(batch.first)
    if query == "recent_with_older":
        assert len(pairs) == 4 * 4  # half of the eight are from the newest rollout
    else:
        assert len(pairs) == 8 * 7 // 2


def drawn_numbers(source: FeedbackPipeline, draws: int, *, held_out: bool = False) -> Tensor:
    """Return the episodes of many free batches."""
    return torch.cat([source._free_pairs(held_out)[0] for _ in range(draws)])


@pytest.mark.parametrize("held_out", [False, True])
def test_a_uniform_batch_does_not_avoid_the_newest_episodes(held_out: bool) -> None:
    source, env = make_source(query="uniform", batch_episodes=2)
    observe(source, env, 4)
    available = source.replay.available(held_out=held_out)
    counts = torch.bincount(drawn_numbers(source, 1000, held_out=held_out))[available]
    share = 2000 / len(available)
    assert (counts - share).abs().max() < 5 * share**0.5


def test_half_of_a_batch_is_new() -> None:
    source, env = make_source(query="newest_share", newest_share=0.5, batch_episodes=8)
    observe(source, env, 4)
    numbers = drawn_numbers(source, 50)
    assert int((numbers >= source.replay.latest).sum()) == 50 * 4


def silent_half(pairs: EpisodePairs) -> Tensor:
    """Answer every second pair only."""
    labels = torch.ones(len(pairs))
    labels[1::2] = math.nan
    return labels


@pytest.fixture
def _half_labeller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preferences, "silent_half", silent_half, raising=False)


@pytest.mark.usefixtures("_half_labeller")
def test_free_pairs_without_an_answer_are_dropped_and_counted() -> None:
    source, env = make_source(labeller="marl.preferences:silent_half")
    observe(source, env, 3)
    batch = source.batch()
    assert batch is not None
    assert len(batch.labels) == 14  # of 28
    assert not batch.labels.isnan().any()
    metrics = source.metrics()
    assert (metrics["preference/asked"], metrics["preference/answered"]) == (28, 14)
    assert "preference/kept_answers" not in metrics  # they are asked anew for every batch


@pytest.mark.usefixtures("_half_labeller")
def test_asked_pairs_without_an_answer_are_dropped_and_counted() -> None:
    source, env = make_source(
        labeller="marl.preferences:silent_half", queries_per_iteration=4, holdout_every=4
    )
    observe(source, env, 1)
    # Four queries: three to train on (two answered), one held out, which two held-out episodes
    # (numbers 3 and 7 of eight) allow.
    metrics = source.metrics()
    assert (metrics["preference/asked"], metrics["preference/answered"]) == (4, 3)
    assert metrics["preference/kept_answers"] == 3
    observe(source, env, 1)
    metrics = source.metrics()
    assert metrics["preference/answered"] == metrics["preference/kept_answers"] - 3 > 0


def test_costly_labels_are_asked_once_and_batches_use_them_only() -> None:
    source, env = make_source(queries_per_iteration=8, holdout_every=4)
    observe(source, env, 6)
    asked = source.buffer.num_answered
    asked_pairs = {
        (a, b)
        for a, b in zip(
            source.buffer.first[:asked].tolist(), source.buffer.second[:asked].tolist(), strict=True
        )
    }
    for held_out in (False, True):
        numbers, first, second, labels = source._answered_pairs(held_out)
        assert len(labels) > 0
        for a, b in zip(numbers[first].tolist(), numbers[second].tolist(), strict=True):
            assert (a, b) in asked_pairs
            assert (a % 4 == 3) == (b % 4 == 3) == held_out
        returns = source.replay.episodes(numbers).returns
        gap = returns[first] - returns[second]
        assert torch.equal(labels, torch.where(gap == 0, 0.5, (gap > 0).float()))
    assert source.buffer.num_answered == asked


def test_answers_about_overwritten_episodes_are_not_used() -> None:
    # Four environments, so 64 steps are a ring of 16 per copy.
    source, env = make_source(queries_per_iteration=8, replay_steps=64)
    observe(source, env, 12)
    for _ in range(20):
        numbers = source._answered_pairs(False)[0]
        assert source.replay.holds(numbers).all()
    stale = ~source.replay.holds(source.buffer.first[: len(source.buffer)])
    assert stale.any()


@pytest.mark.usefixtures("_half_labeller")
def test_questions_of_an_iteration_are_tallied() -> None:
    source, env = make_source(labeller="marl.preferences:silent_half")
    observe(source, env, 3)
    assert source.batch() is not None
    # All pairs of eight episodes: 28, every second without an answer, the others 1.
    metrics = source.metrics()
    assert metrics["preference/asked"] == 28
    assert metrics["preference/abstained_share"] == 0.5
    assert metrics["preference/informative_share"] == 1.0
    assert source.is_informative
    assert math.isnan(source.metrics()["preference/informative_share"])  # nothing asked since


def test_equal_returns_are_not_informative() -> None:
    # Four environments whose first episodes all last 2 steps and return 2.
    source, env = make_source(margin=1e6)
    observe(source, env, 2)
    assert source.batch() is not None
    assert source.metrics()["preference/informative_share"] == 0.0
    assert not source.is_informative


def silent(pairs: EpisodePairs) -> Tensor:
    return torch.full((len(pairs),), math.nan)


@pytest.mark.filterwarnings("error")
def test_a_labeller_that_never_answers_is_said_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preferences, "silent", silent, raising=False)
    source, env = make_source(labeller="marl.preferences:silent")
    observe(source, env, 2)
    assert source.batch() is None
    with pytest.warns(UserWarning, match=r"marl\.preferences:silent has answered none of 28 pairs"):
        assert source.metrics()["preference/abstained_share"] == 1.0
    assert source.batch() is None
    source.metrics()  # a second warning would be an error: see the filter above


def hanging(pairs: EpisodePairs) -> Tensor:
    time.sleep(60.0)
    return torch.ones(len(pairs))


def test_a_labeller_that_hangs_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preferences, "hanging", hanging, raising=False)
    source, env = make_source(labeller="marl.preferences:hanging", deadline=0.05)
    observe(source, env, 2)
    message = r"hanging has not answered after 0\.05 s \(.*test_preferences\.py, line \d+\)"
    with pytest.raises(PluginError, match=message):
        source.batch()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)  # nothing rings later


def test_labels_stop_at_the_budget() -> None:
    source, env = make_source(queries_per_iteration=4, max_labels=10)
    observe(source, env, 8)
    assert source.buffer.num_answered == 10
    assert source.batch() is not None


def test_old_answers_retire() -> None:
    # An iteration is 4 steps of 4 environments: 16 steps. Answers may be 16 old: those of the
    # latest two iterations.
    source, env = make_source(queries_per_iteration=4, retire_after=16)
    observe(source, env, 6)
    times = source.buffer.asked_at[: len(source.buffer)]
    assert times.unique().tolist() == [4, 8, 12, 16, 20, 24]
    recent = times >= 20
    numbers = torch.cat((source.buffer.first[: len(times)], source.buffer.second[: len(times)]))
    fresh = set(numbers[torch.cat((recent, recent))].tolist())
    for _ in range(20):
        assert set(source._answered_pairs(False)[0].tolist()) <= fresh
    assert len(source._answered_pairs(False)[3]) < int((numbers % 4 != 3).sum()) // 2


def test_bags_are_two_thirds_of_the_answers_and_differ() -> None:
    source, env = make_source(queries_per_iteration=8, batch_episodes=4000, replay_steps=4000)
    observe(source, env, 60)
    everything = len(source._answered_pairs(False)[3])
    assert everything > 200
    samples = [source._answered_pairs(False, member) for member in (0, 1)]
    for _, _, _, labels in samples:  # standard deviation below .035
        assert abs(len(labels) / everything - 0.632) < 0.15
    sets = [
        set(zip(n[first].tolist(), n[second].tolist(), strict=True))
        for n, first, second, _ in samples
    ]
    assert sets[0] != sets[1]
    again = source._answered_pairs(False, 0)
    assert {*zip(again[0][again[1]].tolist(), again[0][again[2]].tolist(), strict=True)} == sets[0]


def flat_scores(transitions: Any, weights: Tensor, lengths: Tensor) -> Tensor:
    """Return three models' scores: the third sees longer episodes ahead, the others nothing."""
    nothing = torch.zeros(len(lengths))
    return torch.stack((nothing, nothing, lengths.float()))


@pytest.mark.parametrize(("query", "gap"), [("disagreement", 3), ("entropy", 0)])
def test_reward_models_choose_the_questions(query: str, gap: int) -> None:
    # Episodes last 1 to 4 steps. The models disagree most where lengths differ by 3, and the
    # mean is nearest to .5 where they are equal.
    source, env = make_source(query=query, queries_per_iteration=2, candidates=30)
    collector, actor = scripted_collector(env, 4)
    for _ in range(12):
        source.observe(collector.collect(actor)[0], None, flat_scores)
    size = len(source.buffer)
    first, second = source.buffer.first[:size], source.buffer.second[:size]
    trained = first % 4 != 3
    gaps = source.replay.episodes(first).lengths - source.replay.episodes(second).lengths
    assert gaps[trained].abs().tolist()[-4:] == [gap] * 4
    assert len(gaps[~trained].abs().unique()) > 1  # held-out pairs are drawn uniformly


def test_a_myopic_teacher_sees_the_latest_rewards() -> None:
    source, env = make_source(teacher=TeacherConfig(myopia=0.5))
    collector, actor = scripted_collector(env, 4)
    for _ in range(2):
        rollout, _ = collector.collect(actor)
        hidden = torch.arange(4.0).unsqueeze(-1).expand(4, 4).contiguous()
        source.observe(rollout, hidden)
    # Hidden rewards 0 1 2 3 in each rollout. Copy 3: one episode of 4 steps a rollout:
    # 3 + 2/2 + 1/4 + 0. Copy 1: two of 2 steps: 1 + 0/2, then 3 + 2/2.
    episodes = source.replay.episodes(torch.arange(source.replay.num_finished))
    by_length = [episodes.returns[episodes.lengths == n].tolist() for n in (4, 2)]
    assert by_length == [[4.25, 4.25], [1.0, 4.0, 1.0, 4.0]]
    # Copy 2, episodes of 3 steps: 0 1 2 | 3 0 1 | 2 3 ...: 2 + 1/2, then 1 + 0/2 + 3/4.
    assert episodes.returns[episodes.lengths == 3].tolist() == [2.5, 1.75]


def test_a_source_continues_exactly() -> None:
    options: dict[str, Any] = {
        "queries_per_iteration": 3,
        "schedule": "hyperbolic",
        "max_labels": 20,
        "retire_after": 64,
        "teacher": TeacherConfig(rationality=1.0, mistakes=0.2, myopia=0.9),
    }
    (source, env), (other, _) = make_source(**options), make_source(**options)
    collector, actor = scripted_collector(env, 4)
    hidden = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    for _ in range(4):  # in the end a third of an episode of three steps is open
        source.observe(collector.collect(actor)[0], hidden)
    other.load_state_dict(copy.deepcopy(source.state_dict()))
    other.generator.set_state(source.generator.get_state())
    for _ in range(4):
        rollout = collector.collect(actor)[0]
        for each in (source, other):
            each.observe(rollout, hidden)
        assert str(other.metrics()) == str(source.metrics())  # NaN equals NaN
    assert torch.equal(other.buffer.labels, source.buffer.labels)
    assert torch.equal(other.replay._episodes["returns"], source.replay._episodes["returns"])
