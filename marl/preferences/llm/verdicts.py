"""The label that the replies to a pair's two questions make.

Axes: none; log-odds are of the template's first choice against its second. With l_1 the log-odds
that the first episode is better when it is shown first, and l_2 when it is shown second,
P = sigmoid((l_1 + l_2) / 2): whatever favours a position cancels. Pointwise, with g the log-odds
of a good grade, P = sigmoid(g_first - g_second).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from marl.config.preferences import LlmConfig
from marl.preferences.llm.prompts import Messages, Template, cleaned
from marl.preferences.llm.protocol import (
    Answers,
    Fault,
    Features,
    Reply,
    Request,
    choice_of,
    log_odds,
    make_requests,
)

VOTE_PRIOR = 0.5
"""Added to both counts of votes: all of five for one choice are log-odds of 2.4, not infinite."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What the replies to one question say."""

    log_odds: float
    mass: float
    """Probability, or share of the votes, that the two choices have together."""

    @property
    def takes_first(self) -> bool:
        """Whether the first choice is the likelier one."""
        return self.log_odds > 0.0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """P(first preferred) of one pair, and how it came about."""

    label: float
    """NaN: no answer."""
    outcome: str
    """``answered``, ``tie``, or why there is no answer."""
    flipped: bool = False
    """The two orders preferred different episodes."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A pair's verdict and what it was made of."""

    verdict: Verdict
    scores: tuple[Score | Fault, Score | Fault]
    """Of its two questions."""


def questions(first: str, second: str, template: Template, task: str) -> tuple[Messages, Messages]:
    """Return the two questions about a pair: both orders, or one for each episode."""
    if template.form == "pointwise":
        one = template.messages(task=task, episode=first)
        return one, template.messages(task=task, episode=second)
    shown_first = template.messages(task=task, first=first, second=second)
    return shown_first, template.messages(task=task, first=second, second=first)


def score(replies: Sequence[Reply | Fault], choices: Sequence[str], *, soft: bool) -> Score | Fault:
    """Return the score of one question from its single reply (soft) or from its votes.

    Where fewer than half of the votes came, the first fault says why.
    """
    came = [reply for reply in replies if isinstance(reply, Reply)]
    if 2 * len(came) < len(replies):
        return next(reply for reply in replies if isinstance(reply, Fault))
    if soft:
        odds, mass = log_odds(came[0].candidates, choices)
        return Score(log_odds=odds, mass=mass)
    votes = [choice_of(reply.text, choices) for reply in came]
    first, second = votes.count(0), votes.count(1)
    odds = math.log((first + VOTE_PRIOR) / (second + VOTE_PRIOR))
    return Score(log_odds=odds, mass=(first + second) / len(replies))


def verdict(scores: tuple[Score | Fault, Score | Fault], form: str, config: LlmConfig) -> Verdict:
    """Return the label of a pair from the scores of its two questions."""
    one, two = scores
    if isinstance(one, Fault):
        return Verdict(label=math.nan, outcome=one.kind)
    if isinstance(two, Fault):
        return Verdict(label=math.nan, outcome=two.kind)
    if min(one.mass, two.mass) < config.min_mass:
        return Verdict(label=math.nan, outcome="low_mass")
    gap = one.log_odds - two.log_odds
    flipped = False
    if form == "pairwise":
        gap = gap / 2.0
        flipped = one.log_odds * two.log_odds > 0.0  # the same letter in both orders
    if flipped and config.disagreement != "average":
        label = 0.5 if config.disagreement == "tie" else math.nan
        return Verdict(label=label, outcome="disagreement", flipped=True)
    probability = 1.0 / (1.0 + math.exp(-gap))
    if abs(probability - 0.5) < config.margin:
        if config.below_margin == "tie":
            return Verdict(label=0.5, outcome="tie", flipped=flipped)
        return Verdict(label=math.nan, outcome="margin", flipped=flipped)
    return Verdict(label=probability, outcome="answered", flipped=flipped)


class Judge:
    """Judges pairs of texts by a template, for a task."""

    def __init__(
        self, config: LlmConfig, template: Template, answers: Answers, base_url: str
    ) -> None:
        """`answers` is what asks a server, at `base_url`."""
        self._config, self._template, self._answers = config, template, answers
        self._base_url = base_url
        self._task = cleaned(config.task)

    async def judge(self, texts: Sequence[tuple[str, str]], features: Features) -> list[Judgement]:
        """Return one judgement per (first, second); equal questions are asked once."""
        asked = [
            [self._requests(question, features) for question in self._questions(*pair)]
            for pair in texts
        ]
        every = [request for pair in asked for requests in pair for request in requests]
        replies = await self._answers(every)
        return [self._judgement(one, two, replies, features) for one, two in asked]

    def _questions(self, first: str, second: str) -> tuple[Messages, Messages]:
        return questions(first, second, self._template, self._task)

    def _requests(self, messages: Messages, features: Features) -> list[Request]:
        return make_requests(messages, self._template, self._config, self._base_url, features)

    def _judgement(
        self,
        one: Sequence[Request],
        two: Sequence[Request],
        replies: dict[str, Reply | Fault],
        features: Features,
    ) -> Judgement:
        choices = self._template.choices
        scores = (
            score([replies[request.key] for request in one], choices, soft=features.soft),
            score([replies[request.key] for request in two], choices, soft=features.soft),
        )
        return Judgement(verdict=verdict(scores, self._template.form, self._config), scores=scores)
