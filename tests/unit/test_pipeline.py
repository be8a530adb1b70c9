"""Which answers a batch is made of, what fills it up, and what counts as informative.

Axes: M episodes, B pairs.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from marl.config import PreferenceConfig, RewardConfig, TeacherConfig
from marl.data.replay import ReplayBuffer
from marl.data.types import ANY_RETURN, Episodes, KnownReturns
from marl.preferences.buffer import PreferenceBuffer
from marl.preferences.labellers import EpisodePairs, LateAnswers
from marl.preferences.pipeline import FeedbackPipeline
from marl.utils.plugins import PluginError
from marl.utils.ranks import SINGLE, Ranks
from marl.utils.seeding import Seeds
from tests.ranks import in_ranks
from tests.scripted import ScriptedEnv, scripted_collector

CPU = torch.device("cpu")


def observed(
    rollouts: int,
    lengths: list[list[int]] | None = None,
    *,
    batch_episodes: int = 8,
    uses_labels: bool = True,
    uses_returns: bool = False,
    scorer: Any = None,
    given: Any = None,
    people: Any = None,
    ranks: Ranks = SINGLE,
    **preferences: Any,
) -> FeedbackPipeline:
    """Return a pipeline after some rollouts of 4 steps; episodes of 1 to 4 steps by default."""
    env = ScriptedEnv(lengths or [[1], [2], [3], [4]])
    settings: dict[str, Any] = {"replay_steps": 400, "holdout_every": 4} | preferences
    pipeline = FeedbackPipeline(
        env.spec,
        4,
        PreferenceConfig(**settings),
        RewardConfig(batch_episodes=batch_episodes),
        Seeds(0),
        CPU,
        num_iterations=10,
        uses_labels=uses_labels,
        uses_returns=uses_returns,
        given=given,
        people=people,
        ranks=ranks,
    )
    collector, actor = scripted_collector(env, 4)
    for _ in range(rollouts):
        pipeline.observe(collector.collect(actor)[0], scorer=scorer)
    return pipeline


def assert_equal(left: Any, right: Any) -> None:
    """Compare states, tensor by tensor; NaN equals NaN."""
    if isinstance(left, Mapping):
        assert left.keys() == right.keys()
        for name in left:
            assert_equal(left[name], right[name])
    elif isinstance(left, Tensor):
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
    else:
        assert left == right


def test_a_hyperbolic_rate_falls_with_the_rollouts() -> None:
    # Ten iterations: rates 4 / (1 + 10 k / 10) are 4, 2, 4 / 3.
    for rollouts, due in ((1, 4.0), (2, 6.0), (3, 6.0 + 4 / 3)):
        pipeline = observed(rollouts, queries_per_iteration=4, schedule="hyperbolic")
        assert pipeline.budget.due == pytest.approx(due)


def test_a_rollout_can_be_taken_back() -> None:
    env = ScriptedEnv([[1], [2], [3], [4]])
    pipeline = observed(3, queries_per_iteration=4, uses_returns=True)
    pipeline.batch()
    before, snapshot = copy.deepcopy(pipeline.state_dict()), pipeline.snapshot()
    pipeline.restore(snapshot)  # nothing since then
    assert_equal(pipeline.state_dict(), before)
    collector, actor = scripted_collector(env, 4)
    pipeline.observe(collector.collect(actor)[0])
    assert pipeline.buffer.num_answered > before["buffer"]["num_answered"]
    pipeline.restore(snapshot)
    assert_equal(pipeline.state_dict(), before)


class Absent:
    """Judges episodes of even numbers only, and prefers the first, but an iteration later."""

    def __init__(self) -> None:
        self.asked = torch.zeros(2, 0, dtype=torch.int64)

    def can_judge(self, episodes: Episodes) -> Tensor:
        return episodes.numbers % 2 == 0

    def __call__(self, pairs: EpisodePairs) -> Tensor:
        numbers = torch.stack((pairs.first.numbers, pairs.second.numbers))
        self.asked = torch.cat((self.asked, numbers), dim=1)
        return torch.full((len(pairs),), math.nan)

    def late_answers(self, replay: ReplayBuffer) -> LateAnswers:
        (first, second), self.asked = self.asked, self.asked[:, :0]
        return LateAnswers(first=first, second=second, labels=torch.ones(len(first)))

    def metrics(self) -> dict[str, float]:
        return {"open": self.asked.shape[1]}


def test_answers_may_come_late_and_about_some_episodes_only() -> None:
    # Sixteen episodes an iteration. Of the even ones 0, 4, 6, 10, 12 are trained on and 2, 8, 14
    # held out: enough for the two and the one pair of a rate of 3.
    names = ("asked", "answered", "kept_answers")
    for rollouts, answered in ((1, 0), (2, 3)):
        absent = Absent()
        pipeline = observed(
            rollouts, [[1]] * 4, queries_per_iteration=3, holdout_every=3, given=absent
        )
        metrics = pipeline.metrics()  # what is open does not count as asked yet
        assert [metrics[f"preference/{name}"] for name in names] == [answered] * 3
        assert metrics["labeller/open"] == 3
    buffer = pipeline.buffer
    assert (torch.cat((buffer.first[:3], buffer.second[:3])) % 2 == 0).all()
    assert buffer.labels[:3].tolist() == [1.0] * 3
    assert buffer.asked_at[:3].tolist() == [8] * 3


def test_a_rollout_in_which_nothing_ends_tells_nothing() -> None:
    pipeline = observed(1, [[9]], uses_returns=True, queries_per_iteration=3)
    assert not pipeline.is_informative
    assert pipeline.budget.due == 0.0
    assert pipeline.batch() is None


def test_a_withdrawn_answer_is_not_trained_on() -> None:
    pipeline = observed(6, queries_per_iteration=4, batch_episodes=400)
    before, buffer = pipeline.batch(), pipeline.buffer
    row = int((buffer.first[: len(buffer)] % 4 != 3).nonzero()[0])
    span = slice(row, row + 1)
    buffer.correct(buffer.first[span], buffer.second[span], torch.tensor([math.nan]))
    after = pipeline.batch()
    assert before is not None
    assert after is not None
    assert len(after.labels) == len(before.labels) - 1
    assert not after.labels.isnan().any()


def test_a_labeller_s_state_is_saved_with_the_pipeline() -> None:
    class Counting:
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, pairs: EpisodePairs) -> Tensor:
            self.calls += 1
            return torch.ones(len(pairs))

        def state_dict(self) -> dict[str, Any]:
            return {"calls": self.calls}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.calls = state["calls"]

    one, other = Counting(), Counting()
    pipeline = observed(3, given=one, queries_per_iteration=4)
    assert one.calls > 0
    observed(0, given=other).load_state_dict(pipeline.state_dict())
    assert other.calls == one.calls
    without = {"uses_labels": False, "uses_returns": True}
    state = observed(3, **without).state_dict()
    again = observed(0, **without)
    again.load_state_dict(state)
    assert_equal(again.state_dict(), state)


def test_only_labellers_of_one_s_own_have_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    @contextmanager
    def recorded(seconds: float, name: str) -> Iterator[None]:
        seen.append(seconds)
        yield

    monkeypatch.setattr("marl.preferences.pipeline.time_limit", recorded)

    def mine(pairs: EpisodePairs) -> Tensor:
        return torch.ones(len(pairs))

    for labeller, given in (
        ("return", None),
        ("marl.preferences:ReturnLabeller", None),
        ("python", mine),
    ):
        observed(1, labeller=labeller, given=given, deadline=7.0).batch()
    assert seen == [0.0, 7.0, 7.0]


def test_free_pairs_without_an_answer_are_counted() -> None:
    def silent_third(pairs: EpisodePairs) -> Tensor:
        labels = torch.ones(len(pairs))
        labels[::3] = math.nan
        return labels

    pipeline = observed(3, given=silent_third, batch_episodes=6)
    batch = pipeline.batch()
    assert batch is not None
    assert len(batch.labels) == 10  # of 15
    metrics = pipeline.metrics()
    assert (metrics["preference/asked"], metrics["preference/answered"]) == (15, 10)


def test_two_free_episodes_are_a_pair_and_one_is_none() -> None:
    batch = observed(1, [[4], [4]], batch_episodes=2).batch()
    assert batch is not None
    assert batch.labels.tolist() == [0.5]
    assert observed(1, [[4]]).batch() is None


def test_free_pairs_of_the_held_out_side_are_all_compared() -> None:
    pipeline = observed(3, query="recent_with_older", batch_episodes=6)
    batch = pipeline.batch(held_out=True)
    assert batch is not None
    assert len(batch.labels) == len(batch.lengths) * (len(batch.lengths) - 1) // 2
    assert len(batch.lengths) > 2


def test_a_labeller_given_in_python_is_named_in_errors() -> None:
    def wrong(pairs: EpisodePairs) -> Tensor:
        return torch.zeros(0)

    with pytest.raises(PluginError, match=r"^labeller .*wrong returned shape"):
        observed(1, given=wrong, queries_per_iteration=4)


@pytest.mark.parametrize("query", ["uniform", "newest_share", "stratified", "recent_with_older"])
def test_a_side_without_two_episodes_is_not_asked_about(query: str) -> None:
    # Episodes 0 and 1, of which none is held out; both are new.
    pipeline = observed(1, [[4], [4]], query=query, queries_per_iteration=8)
    assert pipeline.buffer.num_answered == (query != "recent_with_older")


def test_held_out_questions_follow_their_query_unless_it_is_by_difficulty() -> None:
    # All 16 episodes are new: nothing older stands against them, on either side.
    pipeline = observed(1, [[1]] * 4, query="recent_with_older", queries_per_iteration=4)
    assert pipeline.buffer.num_answered == 0
    # Six pairs to train on and two held out, twice.
    pipeline = observed(2, [[1]] * 4, query="stratified", queries_per_iteration=8)
    assert pipeline.buffer.num_answered == 16


def served(pipeline: FeedbackPipeline, *, held_out: bool) -> Tensor:
    """Return the returns of the episodes of 60 batches of two."""
    batches = [pipeline.batch(held_out=held_out) for _ in range(60)]
    return torch.cat([batch.returns for batch in batches if batch is not None])


def test_batches_are_stratified_but_for_the_held_out_side() -> None:
    # Fifteen episodes return 4, four of one step 1, 11, 21 and 31. Held out are the one of 11 and
    # eight of 4; the others are in three ranges, of which 21 and 31 are two.
    pipeline = observed(
        1, [[4]] * 15 + [[1]], query="stratified", batch_episodes=2, holdout_every=2
    )
    trained, held_out = (served(pipeline, held_out=side) > 10.0 for side in (False, True))
    # Two different ones of equally likely ranges: nearly 2 / 3, uniformly 1 / 5. Held out 1 / 9,
    # stratified 1 / 2. Of 120 draws shares have deviations below .046.
    assert trained.double().mean() > 0.43
    assert held_out.double().mean() < 0.3


def test_held_out_batches_do_not_prefer_the_newest() -> None:
    pipeline = observed(4, query="newest_share", newest_share=1.0, batch_episodes=2)
    numbers = pipeline.replay.available(held_out=True)
    is_new = numbers >= pipeline.replay.latest
    newest = pipeline.replay.episodes(numbers[is_new]).returns
    found = torch.isin(served(pipeline, held_out=True), newest).double().mean()
    assert found == pytest.approx(float(is_new.double().mean()), abs=0.23)  # 5 deviations


@pytest.mark.parametrize("query", ["uniform", "newest_share", "stratified", "recent_with_older"])
def test_nothing_is_served_before_the_first_episode(query: str) -> None:
    for held_out in (False, True):
        assert observed(0, query=query).batch(held_out=held_out) is None


def test_a_myopic_teacher_matters_to_labels_only() -> None:
    teacher = TeacherConfig(myopia=0.5)
    pipeline = observed(1, uses_labels=False, uses_returns=True, teacher=teacher)
    assert pipeline.is_informative


@pytest.mark.parametrize("query", ["uniform", "stratified"])
def test_rare_preferences_are_told_unless_rare_returns_are_drawn(query: str) -> None:
    pipeline = observed(0, query=query)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(30):
            pipeline.tally.add(torch.tensor([1.0] + [0.5] * 19))
            pipeline.metrics()
    assert len(caught) == (query == "uniform")


@pytest.mark.parametrize(("retire_after", "first_time"), [(15, 24), (16, 20), (31, 20), (32, 16)])
def test_answers_serve_until_they_are_too_old(retire_after: int, first_time: int) -> None:
    # Rollouts of 4 steps of 4 environments: answers are 0, 16, 32, ... steps old, given after 24,
    # 20, 16, ... steps.
    pipeline = observed(6, queries_per_iteration=4, batch_episodes=400, retire_after=retire_after)
    size = len(pipeline.buffer)
    fresh = pipeline.buffer.asked_at[:size] >= first_time
    trained = pipeline.buffer.first[:size] % 4 != 3
    batch = pipeline.batch()
    assert batch is not None
    assert len(batch.labels) == int((fresh & trained).sum()) > 0


def test_a_batch_has_half_as_many_answers_as_episodes() -> None:
    for uses_returns in (False, True):
        pipeline = observed(6, queries_per_iteration=8, batch_episodes=6, uses_returns=uses_returns)
        batch = pipeline.batch()
        assert batch is not None
        assert len(batch.labels) == 3
        # Here they are six different ones: with the returns there is nothing to fill up.
        assert len(batch.lengths) == 6
        moments = pipeline.replay.return_moments() if uses_returns else (0.0, 1.0)
        assert (batch.return_mean, batch.return_scale) == moments


def test_returns_fill_a_batch_of_answers_up() -> None:
    # Three pairs are up to six episodes; with the returns, which cost nothing, there are twelve.
    pipeline = observed(6, queries_per_iteration=1, batch_episodes=12, uses_returns=True)
    batch = pipeline.batch()
    assert batch is not None
    assert 0 < len(batch.labels) <= 6
    assert len(batch.lengths) == 12
    assert (batch.return_mean, batch.return_scale) == pipeline.replay.return_moments()
    returns = batch.returns[batch.first] - batch.returns[batch.second]
    assert torch.equal(batch.labels, torch.where(returns == 0, 0.5, (returns > 0).float()))


def test_without_labels_a_batch_holds_episodes_and_no_pair() -> None:
    pipeline = observed(3, uses_labels=False, uses_returns=True, queries_per_iteration=3)
    batch = pipeline.batch()
    assert batch is not None
    assert len(batch.lengths) == 8
    assert len(batch.labels) == len(batch.first) == len(batch.second) == 0


def test_returns_that_differ_are_informative_and_equal_ones_are_not() -> None:
    # The first episodes of all environments have 2 steps and return 2; the second ones 12.
    options: dict[str, Any] = {"uses_labels": False, "uses_returns": True}
    assert not observed(0, **options).is_informative
    assert not observed(1, [[4], [4]], **options).is_informative
    assert observed(2, [[4], [4]], **options).is_informative
    assert observed(1, [[2], [2]], **options).is_informative
    assert not observed(1, [[2], [2]], uses_labels=False).is_informative  # nothing reads returns


def test_the_pool_of_candidates_is_a_multiple_of_the_questions() -> None:
    def scores(transitions: Any, weights: Tensor, lengths: Tensor) -> Tensor:
        return torch.stack((torch.zeros(len(lengths)), lengths.float()))

    # A rate of 2, of which a quarter is held out in the long run: two are asked at first.
    settings = {"query": "disagreement", "queries_per_iteration": 2, "candidates": 1}
    pipeline = observed(1, scorer=scores, **settings)
    assert pipeline.budget.asked == pipeline.buffer.num_answered == 2


def test_the_replay_buffer_is_measured_in_mebibytes() -> None:
    pipeline = observed(1)
    mebibytes = pipeline.metrics()["memory/replay_mib"]
    assert mebibytes == pytest.approx(pipeline.replay.num_bytes / 1_048_576)


def test_a_correction_leaves_other_pairs_of_the_same_episodes() -> None:
    buffer = PreferenceBuffer(6, CPU)
    firsts, seconds = torch.tensor([1, 1, 6]), torch.tensor([3, 5, 3])
    buffer.add(firsts, seconds, torch.tensor([1.0, 0.0, 0.5]))
    buffer.correct(torch.tensor([1]), torch.tensor([3]), torch.tensor([0.0]))
    expected = torch.tensor([math.nan, 0.0, 0.5, 0.0])
    torch.testing.assert_close(buffer.labels[:4], expected, equal_nan=True)


def test_standing_answers_are_told_oldest_first() -> None:
    # Five answers in a ring of four: the first is gone, and the third is withdrawn.
    buffer = PreferenceBuffer(4, CPU)
    numbers = torch.arange(5)
    for number in range(5):
        row = numbers[number : number + 1]
        buffer.add(row, row + 10, torch.tensor([number / 4]))
    buffer.correct(numbers[2:3], numbers[2:3] + 10, torch.tensor([math.nan]))
    first, second, labels = buffer.standing()
    assert first.tolist() == [1, 3, 4]
    assert second.tolist() == [11, 13, 14]
    assert labels.tolist() == [0.25, 0.75, 1.0]


def test_what_is_known_of_returns() -> None:
    # Two rollouts of one episode of four steps each: 4, and 14 for the second.
    options: dict[str, Any] = {"uses_labels": False, "lengths": [[4]]}
    assert observed(2, **options).known_returns == ANY_RETURN
    options["uses_returns"] = True
    assert observed(0, **options).known_returns == ANY_RETURN
    assert observed(1, **options).known_returns == KnownReturns(least=4.0, deviation=1.0)
    assert observed(2, **options).known_returns == KnownReturns(least=4.0, deviation=5.0)


def test_processes_know_the_returns_of_all() -> None:
    def work(ranks: Ranks) -> FeedbackPipeline:
        lengths = ([[4]], [[2]])[ranks.rank]
        return observed(2, lengths, uses_labels=False, uses_returns=True, ranks=ranks)

    # 4 and 14 in the one, 2, 12, 22 and 32 in the other: mean 86 / 6, squares 1,868 / 6.
    for pipeline in in_ranks(2, work):
        assert (pipeline.least_return, pipeline.largest_return) == (2.0, 32.0)
        mean, deviation = pipeline.return_moments()
        assert mean == pytest.approx(86 / 6)
        assert deviation == pytest.approx(math.sqrt(1868 / 6 - (86 / 6) ** 2))


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        (([[9]], [[9]]), (0.0, 1.0)),  # no episode ends within the four steps
        (([[9]], [[4]]), (4.0, 1.0)),
        (([[4]], [[4]]), (4.0, 1.0)),
        (([[4]], [[3]]), (3.5, 0.5)),
    ],
)
def test_processes_know_the_moments_of_few_returns(
    lengths: tuple[list[list[int]], list[list[int]]], expected: tuple[float, float]
) -> None:
    def work(ranks: Ranks) -> FeedbackPipeline:
        own = lengths[ranks.rank]
        return observed(1, own, uses_labels=False, uses_returns=True, ranks=ranks)

    assert [one.return_moments() for one in in_ranks(2, work)] == [expected] * 2


def test_processes_share_the_questions_by_what_they_can_ask() -> None:
    def work(ranks: Ranks) -> tuple[FeedbackPipeline, dict[str, float]]:
        # Within four steps no episode of the first process ends, and sixteen of the second, four
        # of them held out.
        lengths = ([[9]], [[1], [1], [1], [1]])[ranks.rank]
        pipeline = observed(1, lengths, queries_per_iteration=4, ranks=ranks)
        return pipeline, pipeline.metrics()

    (idle, told), (busy, also_told) = in_ranks(2, work)
    assert (len(idle.buffer), len(busy.buffer)) == (0, 4)
    assert idle.budget.asked == busy.budget.asked == 4
    # Counts and memory are those of all.
    assert told["preference/episodes"] == also_told["preference/episodes"] == 16.0
    assert told["preference/kept_answers"] == 4.0
    assert told["memory/replay_mib"] == also_told["memory/replay_mib"]
    mine = [pipeline.replay.num_bytes / 2**20 for pipeline in (idle, busy)]
    assert told["memory/replay_mib"] == pytest.approx(sum(mine))


@pytest.mark.parametrize(
    ("lengths", "asked"),
    [
        (([[1]] * 4, [[1]] * 4), [3, 2]),
        (([[1]], [[1]] * 4), [2, 3]),  # four episodes are two pairs
        (([[1, 1, 1, 9]], [[1, 1, 1, 9]]), [1, 1]),  # three are one
    ],
)
def test_questions_are_shared_as_equally_as_the_episodes_of_two_processes_allow(
    lengths: tuple[list[list[int]], list[list[int]]], asked: list[int]
) -> None:
    def work(ranks: Ranks) -> FeedbackPipeline:
        own = lengths[ranks.rank]
        return observed(1, own, queries_per_iteration=5, holdout_every=40, ranks=ranks)

    assert [len(pipeline.buffer) for pipeline in in_ranks(2, work)] == asked


def test_people_are_asked_by_process_0_alone() -> None:
    def work(ranks: Ranks) -> FeedbackPipeline:
        options = {"labeller": "people", "queries_per_iteration": 2}
        return observed(0, people=Absent(), ranks=ranks, **options)

    first, second = in_ranks(2, work)
    assert first.labeller is not None
    assert second.labeller is None
    first, second = in_ranks(2, lambda ranks: observed(0, ranks=ranks))
    assert second.labeller is not None
