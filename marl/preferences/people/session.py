"""One person's labelling of one dataset: which pair is shown next, and what was answered.

The next pair is a function of the answers so far. Nothing is remembered beside them, so that
stopping, going on and undoing all lead to the same pairs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from marl.preferences.dataset.answers import Answer, AnswerLog, Pair, now, read_questions
from marl.preferences.dataset.footage import filmed_episodes
from marl.preferences.dataset.untrusted import read_file
from marl.utils.files import atomic_write, held, output

Choice = Literal["first", "second", "tie", "bad", "skip"]
Training = Literal["running", "ended", "stopped"]

LABELS: dict[Choice, float | None] = {
    "first": 1.0,
    "second": 0.0,
    "tie": 0.5,
    "bad": 0.5,
    "skip": None,
}
"""P(first preferred); of two bad episodes, too, neither is better."""

MOST_LETTERS = 300
"""Of what the team should achieve."""

APART = 5
"""Answers between a pair and its repetition, so that it is judged anew, not remembered."""


class StaleError(Exception):
    """An answer or an undo belongs to a pair that is no longer the current one."""


@dataclass(frozen=True, kw_only=True)
class LabellingPlan:
    """What a person is asked."""

    asked_by_run: bool = False
    """Only what training wants to know; otherwise any pair of the dataset."""
    pairs: int | None = None
    """Answers after which it ends, repetitions and skipped pairs included; None: no limit."""
    repeats: float = 0.0
    """Share of what is shown that was shown before, with its sides swapped."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A pair that waits for its answer."""

    id: str
    """Changes with every answer and undo, so that none is ever taken twice or for another pair."""
    pair: Pair


@dataclass(frozen=True, kw_only=True)
class SelfAgreement:
    """What became of the pairs that were shown twice."""

    same: int
    repeats: int


@dataclass(frozen=True, kw_only=True)
class LabellingProgress:
    """How far a person is."""

    answered: int
    """Answers, repetitions and skipped pairs included."""
    goal: int | None
    """None: as many as training asks."""
    agreement: SelfAgreement
    learned: SelfAgreement
    """With how many of the answers that it has not learned from the learned reward agrees; of none:
    nothing is known."""


class Labelling:
    """Asks one person about pairs of a dataset; an answer is on the disk when `answer` returns.

    A pair stays the current one until it is answered, whatever training asks meanwhile.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        plan: LabellingPlan,
        *,
        skip_damaged: bool = False,
        training: Callable[[], Training] | None = None,
        learned: Callable[[Sequence[Answer]], tuple[int, int] | None] | None = None,
    ) -> None:
        """`training` says how the run that asks stands, `learned` is a `LearnedAgreement`."""
        self.folder = folder
        self._training = training
        self._learned = learned
        self.source = f"person:{name}"
        self.plan = plan
        self._skip_damaged = skip_damaged
        self.log = AnswerLog(folder / "answers.jsonl", skip_damaged=skip_damaged)
        self._current: Question | None = None

    def question(self) -> Question | None:
        """Return the pair to show now; None if there is none, or none yet."""
        mine = self._mine()
        if self._current is None and not self._is_enough(mine):
            pair = next_pair(mine, self._open_pairs(), self.plan.repeats)
            if pair is not None:
                self._current = self._asked(pair)
        return self._current

    def answer(self, question_id: str, choice: Choice, seconds: float | None) -> None:
        """Store the answer to the current question; raise `StaleError` if it is for another."""
        question = self.question()
        if question is None or question.id != question_id:
            raise StaleError
        first, second = question.pair
        self.log.append(
            Answer(
                first=first,
                second=second,
                label=LABELS[choice],
                source=self.source,
                at=now(),
                seconds=None if seconds is None else round(seconds, 3),
                both_bad=choice == "bad",
            )
        )
        self._current = None

    def undo(self, question_id: str | None) -> None:
        """Withdraw the latest answer; its pair is asked again.

        `question_id` is what the page shows meanwhile; `StaleError` if that is not current.
        """
        question = self.question()
        if question_id != (None if question is None else question.id):
            raise StaleError
        withdrawn = self.log.undo(self.source)
        if withdrawn is not None:
            self._current = self._asked((withdrawn.first, withdrawn.second))

    def is_done(self) -> bool:
        """Whether nothing more will be asked; training may always ask more."""
        return self._is_enough(self._mine()) or not self.plan.asked_by_run

    def training(self) -> Training | None:
        """Return how the run that asks stands; None: no run asks."""
        return None if self._training is None else self._training()

    def task(self) -> str:
        """Return what the team should achieve, as it was said last; empty: nobody has said it."""
        if not self._task_path.exists():
            return ""
        return read_file(self._task_path, 8 * MOST_LETTERS).decode(errors="replace")

    def set_task(self, task: str) -> None:
        """Keep what the team should achieve with the dataset: all who label it should mean one."""
        with output(self.folder, "free some space, or let it be written"):
            atomic_write(self._task_path, task[:MOST_LETTERS].encode())

    @property
    def _task_path(self) -> Path:
        return self.folder / "task.txt"

    def progress(self) -> LabellingProgress:
        """Return how far the person is."""
        everyone = self.log.answers()
        mine = self._of_me(everyone)
        goal = self.plan.pairs
        if not self.plan.asked_by_run:
            episodes = len(self._filmed())
            most = int(episodes * (episodes - 1) / 2 / (1.0 - self.plan.repeats))
            goal = most if goal is None else min(goal, most)
        new = self._of_me(first_to_decide(everyone))
        same, known = (self._learned(new) if self._learned else None) or (0, 0)
        return LabellingProgress(
            answered=len(mine),
            goal=goal,
            agreement=self_agreement(mine),
            learned=SelfAgreement(same=same, repeats=known),
        )

    def _asked(self, pair: Pair) -> Question:
        lines = self.log.num_lines(self.source)
        return Question(id=f"{lines}-{pair[0]}-{pair[1]}", pair=pair)

    def _mine(self) -> list[Answer]:
        return self._of_me(self.log.answers())

    def _of_me(self, answers: Sequence[Answer]) -> list[Answer]:
        return [answer for answer in answers if answer.source == self.source]

    def _is_enough(self, mine: list[Answer]) -> bool:
        return self.plan.pairs is not None and len(mine) >= self.plan.pairs

    def _open_pairs(self) -> Iterator[Pair]:
        """Return the pairs that may be shown, the most urgent first; some may be answered."""
        filmed = self._filmed()
        if not self.plan.asked_by_run:
            return all_pairs(filmed, self.source)
        asked = read_questions(self.folder, skip_damaged=self._skip_damaged) or []
        known = set(filmed)
        return iter([pair for pair in asked if known.issuperset(pair)])

    def _filmed(self) -> list[int]:
        """Return the numbers of the episodes that can be shown."""
        return filmed_episodes(self.folder, skip_damaged=self._skip_damaged)


def next_pair(answers: Sequence[Answer], open_pairs: Iterator[Pair], repeats: float) -> Pair | None:
    """Return what to show after one person's `answers`; None if nothing is left.

    `open_pairs` come in order of urgency and may contain answered ones. A share `repeats` of what
    is shown are earlier pairs with their sides swapped.
    """
    if int((len(answers) + 1) * repeats) > num_repeats(answers):
        once = _shown_once(answers)
        if once:
            draw = Random(len(answers)).randrange(len(once))
            return once[draw].second, once[draw].first
    known = {_key(answer) for answer in answers}
    for first, second in open_pairs:
        if frozenset((first, second)) not in known:
            return first, second
    return None


def all_pairs(episodes: Sequence[int], name: str) -> Iterator[Pair]:
    """Yield every pair of some episodes once, in an order and on sides that belong to `name`.

    It is a round-robin tournament: in each round every episode meets another one.
    """
    random = Random(name)
    ring: list[int | None] = [*random.sample(list(episodes), len(episodes))]
    if len(ring) % 2:
        ring.append(None)
    half = len(ring) // 2
    for _ in range(len(ring) - 1):
        for one, other in zip(ring[:half], reversed(ring[half:]), strict=True):
            if one is not None and other is not None:
                yield (one, other) if random.random() < 0.5 else (other, one)
        ring = [ring[0], ring[-1], *ring[1:-1]]


def num_repeats(answers: Sequence[Answer]) -> int:
    """Return how many of the answers were given to pairs that had been answered before."""
    return len(answers) - len({_key(answer) for answer in answers})


def self_agreement(answers: Sequence[Answer]) -> SelfAgreement:
    """Return how often a pair's second answer, sides taken into account, equals its first.

    Pairs that were skipped either time do not count.
    """
    before: dict[frozenset[int], float] = {}
    same = repeats = 0
    for answer in answers:
        if answer.label is None:
            continue
        forward = answer.label if answer.first < answer.second else 1.0 - answer.label
        if _key(answer) in before:
            repeats += 1
            same += before[_key(answer)] == forward
        else:
            before[_key(answer)] = forward
    return SelfAgreement(same=same, repeats=repeats)


def first_to_decide(answers: Sequence[Answer]) -> list[Answer]:
    """Return the first answer to each pair that is no skip, whoever gave it: a run learns from it.

    A later answer to the same pair tells nothing new of what was learned.
    """
    first: dict[frozenset[int], Answer] = {}
    for answer in answers:
        if answer.label is not None:
            first.setdefault(_key(answer), answer)
    return list(first.values())


def _shown_once(answers: Sequence[Answer]) -> list[Answer]:
    """Return the answered pairs that are old enough to be repeated and were not yet."""
    counts: dict[frozenset[int], int] = {}
    for answer in answers:
        counts[_key(answer)] = counts.get(_key(answer), 0) + 1
    old = answers[: max(0, len(answers) - APART)]
    return [a for a in old if a.label is not None and counts[_key(a)] == 1]


def _key(answer: Answer) -> frozenset[int]:
    return frozenset((answer.first, answer.second))


@contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """Lock a dataset for one person: two servers of one name would ask the same pairs twice."""
    path = folder / f".{name}.lock"
    with output(path, "answers are kept there; copy the run or dataset to a folder of your own"):
        folder.mkdir(exist_ok=True)
        path.touch()
    with held(
        path,
        f"{name} is labelling {folder} already; use that page, end it with Ctrl-C, or give another "
        "--name",
    ):
        yield
