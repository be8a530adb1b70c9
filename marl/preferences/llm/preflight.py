"""Probing a server before it is asked: its model, its features, and the model on known pairs.

Each part of a request is judged by what comes back, not by what the server says: one ignores an
unknown field, another answers 400, a third 500. The ladder, best first: log-probabilities of as
many candidates as the settings say, of 20, of 5; votes under a JSON schema; votes under a grammar
(if allowed); votes read strictly from free text.
"""

import hashlib
import json
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from marl.config import ConfigError
from marl.config.preferences import LlmConfig
from marl.preferences.llm.cache import AnswerCache
from marl.preferences.llm.client import Client
from marl.preferences.llm.prompts import Messages, Template, cleaned
from marl.preferences.llm.protocol import (
    LASTING,
    Fault,
    Feature,
    Features,
    Reply,
    choice_of,
    log_odds,
    request_body,
)
from marl.preferences.llm.verdicts import Judge, Score, Verdict

_LEAST_SHARE, _LARGEST_SHARE = 0.3, 0.7
"""Outside of these the hard answers follow the position, or always give the same grade."""
_FEWER_LOGPROBS = (20, 5)
"""Candidates asked for where a server turns more of them down."""
_REFUSALS = ("rejected", "server", "missing", "garbled", "no_logprobs")
"""Faults by which servers turn down a field they do not know."""
_CONCLUSIVE = frozenset(
    ("answered", "tie", "margin", "low_mass", "disagreement", "unusable", "length")
)
"""Outcomes that say something about the model, not about the server or the caps."""


class Server:
    """What a server can do; found out once and noted in the cache."""

    def __init__(
        self, config: LlmConfig, template: Template, cache: AnswerCache, client: Client
    ) -> None:
        self._config, self._template, self._cache, self._client = config, template, cache, client
        about = (config.model, config.thinking, config.use_grammar, config.top_logprobs)
        limits = (config.max_tokens, config.soft_tokens)
        words = json.dumps([client.transport.base_url, template.identity, *limits, *about])
        self._note = f"features:{hashlib.sha256(words.encode()).hexdigest()}"
        self._is_outdated = False
        noted = cache.note(self._note)
        self.features: Features | None = None
        if noted is not None:
            parts, top_logprobs = noted
            self.features = Features(parts=frozenset(parts), top_logprobs=top_logprobs)

    async def ready(self) -> Features:
        """Return what the server can do, asking it unless that is known.

        Raises the `Fault` that is in the way, or `ConfigError` if it does not have the model.
        """
        if self.features is not None:
            return self.features
        if self._config.offline:
            raise Fault("offline", "the cache knows nothing about this server and model")
        if self._client.spending.is_out_of_time:
            raise Fault("budget", "the time to wait for the model is used up")
        if self._client.breaker.is_open:
            raise Fault("breaker", "the server failed too often just now")
        try:
            await self._check_model()
            send = partial(self._client.probe, afresh=self._is_outdated)
            found = await probe(send, self._template, self._config)
            self._cache.set_note(self._note, [sorted(found.parts), found.top_logprobs])
        except sqlite3.Error as error:
            raise Fault("cache", f"{self._cache.path} cannot be written: {error}") from None
        except Fault as fault:
            self._client.counts[f"fault_{fault.kind}"] += 1
            self._client.breaker.failed(lasting=True, retry_after=fault.retry_after)
            raise
        self._client.breaker.succeeded()
        self.features = found
        return found

    def forget(self) -> None:
        """Ask anew what the server can do before the next questions."""
        self.features = None
        self._is_outdated = True

    async def _check_model(self) -> None:
        """Raise `ConfigError` if the server lists its models and this one is not among them."""
        try:
            models = await self._client.transport.models()
        except Fault as fault:
            if fault.kind in ("missing", "garbled", "rejected"):
                return  # not every server has such a list
            raise
        if models and self._config.model not in models:
            shown = self._client.transport.hide_key(", ".join(cleaned(m)[:80] for m in models[:20]))
            raise ConfigError(
                f"preferences.llm.model: {self._client.transport.base_url} has no "
                f"{self._config.model!r}; it lists {shown}"
            )


def must_be_changed(fault: Fault) -> bool:
    """Return whether a fault at the start can only be mended by the user."""
    return fault.kind in LASTING or fault.kind == "rejected"


Send = Callable[[dict[str, Any]], Awaitable[Reply]]


async def probe(send: Send, template: Template, config: LlmConfig) -> Features:
    """Return the features that work, or raise the `Fault` that keeps even a bare question away.

    One request that uses everything is enough where nothing is missing; otherwise the cap on
    tokens is settled first and each other feature is tried alone.
    """
    wanted = _wanted(config)
    everything = Features(
        parts=frozenset(("max_tokens", *wanted)), top_logprobs=config.top_logprobs
    )
    asking = _Asking(send, template, config)
    if await asking.works(everything):
        return everything
    limit = await asking.token_limit()
    found = {limit}
    for part in wanted:
        if await asking.works(Features(parts=frozenset((limit, part)))):
            found.add(part)
    for count in _counts(config.top_logprobs):
        if await asking.works(Features(parts=frozenset((limit,)), top_logprobs=count)):
            return Features(parts=frozenset(found), top_logprobs=count)
        if not asking.was_refused:
            break  # it answers, but not by log-probabilities: fewer are no help
    constraints: tuple[Feature, ...] = ("json_schema", "grammar")
    for part in constraints if config.use_grammar else constraints[:1]:
        if await asking.works(Features(parts=frozenset((limit, part)))):
            found.add(part)
            break
    return Features(parts=frozenset(found))


def _wanted(config: LlmConfig) -> tuple[Feature, ...]:
    """Return what is used wherever the server takes it."""
    thinking: dict[str, tuple[Feature, ...]] = {
        "default": (),
        "off": ("thinking", "reasoning_effort"),
    }
    return (
        "temperature",
        "seed",
        "no_cache",
        *thinking.get(config.thinking, ("reasoning_effort",)),
    )


def _counts(most: int) -> list[int]:
    """Return how many candidates to ask for, one after another."""
    return [most, *(count for count in _FEWER_LOGPROBS if count < most)]


class _Asking:
    """A question of the template's own form about nothing in particular, asked in several ways."""

    def __init__(self, send: Send, template: Template, config: LlmConfig) -> None:
        self._send, self._choices, self._config = send, template.choices, config
        names = ("task", "first", "second", "episode")
        self._question: Messages = template.messages(**dict.fromkeys(names, "length: 10 steps"))
        self.was_refused = False
        """Whether the last question got no reply at all."""

    async def works(self, features: Features) -> bool:
        """Return whether a request with these features is answered as they promise."""
        self.was_refused = False
        try:
            reply = await self._send(self._body(features))
        except Fault as fault:
            if fault.kind not in _REFUSALS:
                raise
            self.was_refused = fault.kind != "no_logprobs"
            return False
        if features.soft:
            return log_odds(reply.candidates, self._choices)[1] > 0.0
        if "json_schema" in features or "grammar" in features:
            return choice_of(reply.text, self._choices) is not None
        return True

    async def token_limit(self) -> Feature:
        """Return the name under which the server takes a cap on tokens, or raise its fault."""
        try:
            await self._send(self._body(Features(parts=frozenset(("max_tokens",)))))
        except Fault as fault:
            if fault.kind != "rejected":
                raise
            await self._send(self._body(Features(parts=frozenset(("max_completion_tokens",)))))
            return "max_completion_tokens"
        return "max_tokens"

    def _body(self, features: Features) -> dict[str, Any]:
        return request_body(self._question, self._choices, self._config, features)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What the preflight measured on a few pairs of known order."""

    asked_by: str
    """The way of asking that was found."""
    pairs: int
    right: int
    unanswered: int
    first_choice: str
    first_share: float
    """Share of hard answers that are the template's first choice; NaN without any."""
    mass: float
    """Smallest probability that the two choices had together; NaN without any."""
    reason: str
    """Why the first pair without an answer has none, in words; empty if all have one."""

    @property
    def accuracy(self) -> float:
        """Share right; a pair without an answer counts half."""
        return (self.right + 0.5 * self.unanswered) / self.pairs

    def __str__(self) -> str:
        parts = [
            f"asked by {self.asked_by}",
            f"{self.right} of {self.pairs} pairs with known answers right, {self.unanswered} "
            f"without an answer (which count as half: {self.accuracy:.0%})",
        ]
        if self.first_share == self.first_share:
            parts += [
                f"the likelier choice was {self.first_choice!r} in {self.first_share:.0%}",
                f"the two choices had at least {self.mass:.2f} of the probability together",
            ]
        if self.reason:
            parts.append(f"the first without an answer: {self.reason}")
        return "; ".join(parts)

    @property
    def is_one_sided(self) -> bool:
        """Whether the hard answers say more about the model than about the episodes."""
        return not _LEAST_SHARE <= self.first_share <= _LARGEST_SHARE


async def preflight(
    judge: Judge,
    features: Features,
    known: Sequence[tuple[str, str]],
    template: Template,
    config: LlmConfig,
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
    verdicts = [judgement.verdict for judgement in sure]
    way = features.way_of_asking(config)
    return figures(verdicts, scores, template.choices[0], way)


def figures(
    verdicts: Sequence[Verdict], scores: Sequence[Score | Fault], first_choice: str, way: str
) -> Figures:
    """Return what the verdicts on known pairs, the better one first, and their scores tell."""
    given = [score for score in scores if isinstance(score, Score)]
    firsts = sum(score.takes_first for score in given)
    missing = [verdict for verdict in verdicts if verdict.label != verdict.label]
    return Figures(
        asked_by=way,
        pairs=len(verdicts),
        right=sum(verdict.label > 0.5 for verdict in verdicts),
        unanswered=len(missing) + sum(verdict.label == 0.5 for verdict in verdicts),
        first_choice=first_choice,
        first_share=firsts / len(given) if given else float("nan"),
        mass=min((score.mass for score in given), default=float("nan")),
        reason=_reason(missing[0].outcome, scores) if missing else "",
    )


def _reason(outcome: str, scores: Sequence[Score | Fault]) -> str:
    """Return in words why a pair has no answer."""
    rules = {
        "low_mass": "other words were likelier than the two choices (preferences.llm.min_mass)",
        "margin": "the two choices were about equally likely (preferences.llm.margin)",
        "disagreement": "the two orders disagree",
    }
    faults = (found for found in scores if isinstance(found, Fault) and found.kind == outcome)
    return rules.get(outcome) or str(next(faults, outcome))
