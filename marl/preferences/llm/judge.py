"""Pairs of descriptions in, judgements out: questions, requests, replies, scores, verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass

from marl.config.llm import LlmConfig
from marl.preferences.llm.asker import Asker
from marl.preferences.llm.asking import Score, Verdict, questions, score, verdict
from marl.preferences.llm.faults import Fault
from marl.preferences.llm.prompts import Messages, Template
from marl.preferences.llm.replies import Reply
from marl.preferences.llm.requests import Features, Request, make_requests


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
