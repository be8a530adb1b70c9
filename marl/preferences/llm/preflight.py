"""Getting to know a server: does it have the model, what can it do, is the model any good."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from marl.config import ConfigError
from marl.config.llm import LlmConfig
from marl.preferences.llm.cache import AnswerStore
from marl.preferences.llm.client import Asker
from marl.preferences.llm.faults import LASTING, Fault
from marl.preferences.llm.prompts import Messages, Template
from marl.preferences.llm.protocol import (
    Features,
    Reply,
    Request,
    Score,
    Verdict,
    make_requests,
    probe,
    questions,
    score,
    verdict,
)

# Pairs of descriptions in, judgements out: questions, requests, replies, scores, verdicts.


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A pair's verdict and what it was made of."""

    verdict: Verdict
    scores: tuple[Score | Fault, Score | Fault]
    """Of its two questions."""


class Judge:
    """Judges pairs by a template, for a task."""

    def __init__(self, config: LlmConfig, template: Template, asker: Asker, task: str) -> None:
        self._config, self._template, self._asker = config, template, asker
        self._task = task

    async def judge(self, texts: Sequence[tuple[str, str]], features: Features) -> list[Judgement]:
        """Return one judgement per (first, second); equal questions are asked once."""
        asked = [
            tuple(self._requests(question, features) for question in self._questions(*pair))
            for pair in texts
        ]
        every = [request for pair in asked for requests in pair for request in requests]
        replies = await self._asker.answers(every)
        return [self._judgement(one, two, replies, features) for one, two in asked]

    def _questions(self, first: str, second: str) -> tuple[Messages, Messages]:
        return questions(first, second, self._template, self._task)

    def _requests(self, messages: Messages, features: Features) -> list[Request]:
        base_url = self._asker.transport.base_url
        return make_requests(messages, self._template, self._config, base_url, features)

    def _judgement(
        self,
        one: Sequence[Request],
        two: Sequence[Request],
        replies: dict[str, Reply | Fault],
        features: Features,
    ) -> Judgement:
        soft, choices = "logprobs" in features, self._template.choices
        scores = (
            score([replies[request.key] for request in one], choices, soft=soft),
            score([replies[request.key] for request in two], choices, soft=soft),
        )
        return Judgement(
            verdict=verdict(scores, self._template.form, self._config),
            scores=scores,
        )


# Is this model worth asking? A few pairs whose order nobody doubts.


_LEAST_SHARE, _LARGEST_SHARE = 0.3, 0.7
"""Outside of these the hard answers follow the position, or always give the same grade."""

_REASONS = {
    "low_mass": "other words were likelier than the two choices (preferences.llm.min_mass)",
    "margin": "the two choices were about equally likely (preferences.llm.margin)",
    "disagreement": "the two orders disagree",
}
"""In words, why a pair has no answer."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What the preflight measured."""

    pairs: int
    right: int
    unanswered: int
    first_choice: str
    first_share: float
    """Share of hard answers that are the template's first choice; NaN without any."""
    mass: float
    """Smallest probability that the two choices had together; NaN without any."""
    reason: str
    """Why the first pair without an answer has none; empty if all have one."""

    @property
    def accuracy(self) -> float:
        """Share right; a pair without an answer counts half."""
        return (self.right + 0.5 * self.unanswered) / self.pairs

    def __str__(self) -> str:
        text = (
            f"{self.right} of {self.pairs} pairs with known answers right, "
            f"{self.unanswered} without an answer (which count as half: {self.accuracy:.0%}); "
            f"the likelier choice was {self.first_choice!r} in {self.first_share:.0%}; "
            f"the two choices had at least {self.mass:.2f} of the probability together"
        )
        reason = _REASONS.get(self.reason, self.reason)
        return f"{text}; the first without an answer: {reason}" if reason else text

    @property
    def is_one_sided(self) -> bool:
        """Whether the hard answers say more about the model than about the episodes."""
        return not _LEAST_SHARE <= self.first_share <= _LARGEST_SHARE


def figures(
    verdicts: Sequence[Verdict], scores: Sequence[Score | Fault], first_choice: str
) -> Figures:
    """Return what the verdicts on known pairs, the better one first, and their scores tell."""
    given = [score for score in scores if isinstance(score, Score)]
    firsts = sum(score.takes_first for score in given)
    missing = [verdict for verdict in verdicts if verdict.label != verdict.label]
    return Figures(
        pairs=len(verdicts),
        right=sum(verdict.label > 0.5 for verdict in verdicts),
        unanswered=len(missing) + sum(verdict.label == 0.5 for verdict in verdicts),
        first_choice=first_choice,
        first_share=firsts / len(given) if given else float("nan"),
        mass=min((score.mass for score in given), default=float("nan")),
        reason=missing[0].outcome if missing else "",
    )


_CONCLUSIVE = frozenset(("answered", "tie", "margin", "low_mass", "disagreement", "unusable"))
"""Outcomes that say something about the model, not about the server or the caps."""


class Server:
    """What is known about the server; found out once and noted in the store."""

    def __init__(
        self, config: LlmConfig, template: Template, store: AnswerStore, asker: Asker
    ) -> None:
        self._config, self._template, self._store, self._asker = config, template, store, asker
        about = (config.model, config.thinking, config.use_grammar, config.top_logprobs)
        limits = (config.max_tokens, config.soft_tokens)
        words = json.dumps([asker.transport.base_url, template.identity, *limits, *about])
        self._note = f"features:{hashlib.sha256(words.encode()).hexdigest()}"
        self._is_outdated = False
        noted = store.note(self._note)
        self.features: Features | None = None if noted is None else frozenset(noted)

    async def get_ready(self) -> Features:
        """Return what the server can do, asking it unless that is known.

        Raises the `Fault` that is in the way, or `ConfigError` if it does not have the model.
        """
        if self.features is not None:
            return self.features
        if self._config.offline:
            raise Fault("offline", "the store knows nothing about this server and model")
        if self._asker.spending.is_out_of_time:
            raise Fault("budget", "the time to wait for the model is used up")
        if self._asker.breaker.is_open:
            raise Fault("breaker", "the server failed too often just now")
        try:
            await self._check_model()
            send = partial(self._asker.probe, afresh=self._is_outdated)
            self.features = await probe(send, self._template, self._config)
        except Fault as fault:
            self._asker.counts[f"fault_{fault.kind}"] += 1
            self._asker.breaker.failed(lasting=True, retry_after=fault.retry_after)
            raise
        self._asker.breaker.succeeded()
        self._store.set_note(self._note, sorted(self.features))
        return self.features

    def forget(self) -> None:
        """Ask anew what the server can do before the next questions."""
        self.features = None
        self._is_outdated = True

    async def _check_model(self) -> None:
        """Raise `ConfigError` if the server lists its models and this one is not among them."""
        try:
            models = await self._asker.transport.models()
        except Fault as fault:
            if fault.kind in ("missing", "garbled", "rejected"):
                return  # not every server has such a list
            raise
        if models and self._config.model not in models:
            shown = ", ".join(models[:20])
            raise ConfigError(
                f"preferences.llm.model: {self._asker.transport.base_url} has no "
                f"{self._config.model!r}; it lists {shown}"
            )


def must_be_changed(fault: Fault) -> bool:
    """Return whether a fault at the start can only be mended by the user."""
    return fault.kind in LASTING or fault.kind == "rejected"


async def preflight(
    judge: Judge, features: Features, known: Sequence[tuple[str, str]], template: Template
) -> Figures | None:
    """Return the figures on pairs with known answers, or raise the `Fault` in the way.

    Pairs in doubt since an earlier kill are left out rather than paid for twice; None if no
    others are left.
    """
    judgements = await judge.judge(known, features)
    sure = [judgement for judgement in judgements if judgement.verdict.outcome != "in_doubt"]
    scores = [score for judgement in sure for score in judgement.scores]
    for found in scores:
        if isinstance(found, Fault) and found.kind not in _CONCLUSIVE:
            raise found
    if not sure:
        return None
    return figures([judgement.verdict for judgement in sure], scores, template.choices[0])
