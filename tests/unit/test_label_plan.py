"""Which pair is shown next, and what a person's answers say about them."""

from collections import Counter
from pathlib import Path

import pytest

from envs import Frame
from marl.preferences.dataset.answers import Answer, AnswerLog, now, read_questions, write_questions
from marl.preferences.dataset.footage import EpisodeFrames, write_frames
from marl.preferences.dataset.untrusted import DatasetError
from marl.preferences.people.session import (
    Labelling,
    LabellingPlan,
    SelfAgreement,
    StaleError,
    all_pairs,
    next_pair,
    self_agreement,
)

FRAME = Frame(shapes=(), view=(0.0, 0.0, 1.0, 1.0), anchors=())


def answered(first: int, second: int, label: float | None = 1.0) -> Answer:
    return Answer(first=first, second=second, label=label, source="person:ann", at=now())


def a_set(folder: Path, episodes: int) -> Path:
    """Return a set of so many episodes that show nothing."""
    for number in range(episodes):
        write_frames(folder, number, EpisodeFrames(steps=(0,), frames=(FRAME,)))
    return folder


@pytest.mark.parametrize("count", [2, 5, 8])
def test_a_tournament_has_every_pair_once_and_spreads_the_episodes(count: int) -> None:
    pairs = list(all_pairs(range(count), "ann"))
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) == count * (count - 1) // 2
    round_length = count // 2
    for start in range(0, len(pairs), round_length):
        seen = Counter(n for pair in pairs[start : start + round_length] for n in pair)
        assert max(seen.values()) == 1  # within a round each episode meets one other at most


def test_people_get_different_orders_and_each_the_same_again() -> None:
    assert list(all_pairs(range(8), "ann")) == list(all_pairs(range(8), "ann"))
    assert list(all_pairs(range(8), "ann")) != list(all_pairs(range(8), "bob"))


def test_answered_pairs_are_not_shown_again_in_either_order() -> None:
    answers = [answered(0, 1), answered(3, 2)]
    assert next_pair(answers, iter([(1, 0), (2, 3), (4, 5)]), 0.0) == (4, 5)
    assert next_pair(answers, iter([(1, 0), (2, 3)]), 0.0) is None


def test_a_share_of_the_pairs_is_repeated_with_sides_swapped() -> None:
    answers: list[Answer] = []
    tournament = list(all_pairs(range(20), "ann"))
    for _ in range(100):
        pair = next_pair(answers, iter(tournament), 0.2)
        assert pair is not None
        answers.append(answered(*pair))
    places: dict[frozenset[int], list[int]] = {}
    for place, answer in enumerate(answers):
        places.setdefault(frozenset((answer.first, answer.second)), []).append(place)
    twice = [both for both in places.values() if len(both) > 1]
    assert len(twice) == 20  # a share of 0.2 of 100
    for before, after in twice:
        assert after - before > 5
        assert answers[before].first == answers[after].second


def test_skipped_pairs_are_not_repeated() -> None:
    answers = [answered(n, n + 100, None) for n in range(50)]
    assert next_pair(answers, iter([(7, 8)]), 0.5) == (7, 8)


def test_agreement_takes_the_sides_into_account() -> None:
    answers = [
        answered(0, 1, 1.0),
        answered(2, 3, 0.5),
        answered(4, 5, 1.0),
        answered(6, 7, None),
        answered(1, 0, 0.0),  # again 0: the same
        answered(3, 2, 0.5),  # again a tie: the same
        answered(5, 4, 1.0),  # now 5: another
        answered(7, 6, 1.0),  # the first time it was skipped: no repetition
    ]
    assert self_agreement(answers) == SelfAgreement(same=2, repeats=3)


def test_an_answer_is_for_the_pair_shown_and_counts_once(tmp_path: Path) -> None:
    labelling = Labelling(a_set(tmp_path, 4), "ann", LabellingPlan(pairs=3))
    question = labelling.question()
    assert question is not None
    assert labelling.question() == question
    labelling.answer(question.id, "second", 1.23456)
    with pytest.raises(StaleError):
        labelling.answer(question.id, "second", None)
    (stored,) = AnswerLog(tmp_path / "answers.jsonl").answers()
    assert (stored.first, stored.second) == question.pair
    assert (stored.label, stored.source, stored.seconds) == (0.0, "person:ann", 1.235)


def test_it_goes_on_where_another_process_stopped(tmp_path: Path) -> None:
    folder, plan = a_set(tmp_path, 12), LabellingPlan(pairs=50, repeats=0.2)
    whole, shown = Labelling(folder, "ann", plan), []
    for _ in range(20):
        restarted = Labelling(folder, "ann", plan)
        question = whole.question()
        assert question is not None
        assert restarted.question() == question
        shown.append(question.pair)
        whole.answer(question.id, "tie", 1.0)
    assert whole.progress().answered == 20
    assert [(a.first, a.second) for a in whole.log.answers()] == shown


def test_undo_asks_the_same_pair_under_a_new_id(tmp_path: Path) -> None:
    labelling = Labelling(a_set(tmp_path, 6), "ann", LabellingPlan(pairs=5))
    first = labelling.question()
    assert first is not None
    labelling.answer(first.id, "skip", None)
    second = labelling.question()
    assert second is not None
    with pytest.raises(StaleError):
        labelling.undo(first.id)
    labelling.undo(second.id)
    again = labelling.question()
    assert again is not None
    assert again.pair == first.pair
    assert again.id != first.id
    with pytest.raises(StaleError):
        labelling.answer(first.id, "first", None)
    assert labelling.log.answers() == []


def test_it_ends_after_so_many_pairs_and_undo_opens_it_again(tmp_path: Path) -> None:
    labelling = Labelling(a_set(tmp_path, 6), "ann", LabellingPlan(pairs=1))
    question = labelling.question()
    assert question is not None
    labelling.answer(question.id, "first", None)
    assert labelling.question() is None
    assert labelling.is_done()
    labelling.undo(None)
    assert labelling.question() is not None


def test_the_goal_is_never_more_than_there_is(tmp_path: Path) -> None:
    labelling = Labelling(a_set(tmp_path, 4), "ann", LabellingPlan(pairs=50))
    while (question := labelling.question()) is not None:
        labelling.answer(question.id, "first", None)
    progress = labelling.progress()
    assert progress.answered == progress.goal == 6  # pairs of four episodes
    assert labelling.is_done()


def test_two_people_do_not_see_each_others_answers(tmp_path: Path) -> None:
    ann, bob = (
        Labelling(a_set(tmp_path, 4), name, LabellingPlan(pairs=9)) for name in ("ann", "bob")
    )
    question = ann.question()
    assert question is not None
    ann.answer(question.id, "first", None)
    assert bob.progress().answered == 0
    bob_question = bob.question()
    assert bob_question is not None
    bob.undo(bob_question.id)  # nothing of bob's: ann's answer stays
    assert len(ann.log.answers()) == 1


def test_training_chooses_and_the_current_pair_stays(tmp_path: Path) -> None:
    labelling = Labelling(a_set(tmp_path, 6), "ann", LabellingPlan(asked_by_run=True))
    assert labelling.question() is None
    assert not labelling.is_done()
    assert labelling.progress().goal is None
    write_questions(tmp_path, [(9, 1), (2, 3)])  # 9 has no frames
    question = labelling.question()
    assert question is not None
    assert question.pair == (2, 3)
    write_questions(tmp_path, [(4, 5)])
    assert labelling.question() == question
    labelling.answer(question.id, "first", None)
    following = labelling.question()
    assert following is not None
    assert following.pair == (4, 5)


def test_damaged_questions_are_named(tmp_path: Path) -> None:
    assert read_questions(tmp_path) is None
    (tmp_path / "questions.json").write_text('{"open": [[1]]}')
    with pytest.raises(DatasetError, match=r"questions\.json is damaged"):
        read_questions(tmp_path)
