"""Requests, replies, and the faults that come in a reply's place.

Nothing that a server sends is believed: every reply is validated against strict types, and texts
and numbers are capped before they are kept. A reply is kept as its text and the candidates at the
token that carries the answer, so that a change of margins or of parsing needs no new question.

Axes: none; log-odds are of the template's first choice against its second.
"""

import hashlib
import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from marl.config.preferences import LlmConfig
from marl.preferences.llm.prompts import Messages, Template, cleaned

FaultKind = Literal[
    "refused",  # no server listens at the address
    "dropped",  # the connection broke before the reply was complete
    "timeout",  # one attempt took too long
    "overloaded",  # 429
    "server",  # 5xx, 408, 409
    "key",  # 401, 402, 403, or no money left on the account
    "missing",  # 404: no such model or path
    "redirected",  # 3xx: the server wants the question to be sent elsewhere
    "rejected",  # other 4xx: the server does not take this question
    "garbled",  # 200, but no valid reply in it, or too large a one
    "unusable",  # a reply, but none of the choices in it
    "length",  # the reply was cut off before its answer
    "no_logprobs",  # promised log-probabilities are absent
    "unfit",  # the server has another model, or the model is wrong on known answers
    "deadline",  # the question with all its attempts took too long
    "breaker",  # not asked: the server failed too often just now
    "in_doubt",  # not asked: it may have been paid for when a run was killed
    "offline",  # not asked: not in the cache
    "budget",  # not asked: a cap is reached
    "cache",  # the answer cannot be kept
]

PASSING: frozenset[FaultKind] = frozenset(
    ("refused", "dropped", "timeout", "overloaded", "server", "garbled")
)
"""Worth the same question again after a while."""
LASTING: frozenset[FaultKind] = frozenset(("key", "missing", "redirected"))
"""No question will be answered until the user changes something: opens the breaker at once."""
UNPAID: frozenset[FaultKind] = frozenset(
    ("refused", "overloaded", "server", "key", "missing", "redirected", "rejected")
)
"""The server said, or could only say, that it did not answer."""
MAX_RETRY_AFTER = 3_600.0
"""Seconds that a server may ask to be left alone; a longer Retry-After counts as this."""

Feature = Literal[
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "seed",
    "json_schema",
    "grammar",
    "no_cache",
    "thinking",
    "reasoning_effort",
]
"""Parts of a request that some servers do not take."""

END_OF_THINKING = "</think>"
LEAST_LOG_PROB = -20.0
"""Smaller log-probabilities count as this; servers write placeholders such as -9999."""
MAX_CANDIDATES = 200
"""Candidates at the answer's token that are kept, as many as may be asked for."""
MAX_KEPT = 4_000
"""Characters of a reply that are kept: its end, where the answer stands."""
MAX_NAME = 300
"""Characters of a token, of a model's name, and of why a reply ended, that are kept."""
MAX_TOKENS = 10**7
"""A server that says it used more is not believed."""


class Fault(Exception):  # noqa: N818 - also a value, in the place of a reply
    """No usable reply. `detail` never contains the key."""

    def __init__(self, kind: FaultKind, detail: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail
        self.retry_after = retry_after
        """Seconds the server asked to be left alone; 0 if it did not."""


def fault_of(error: Exception, now: datetime | None = None) -> Fault:
    """Return the fault that an exception of the client stands for."""
    import openai  # not needed to read an answer cache

    if isinstance(error, Fault):
        return error
    detail = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, openai.APITimeoutError):
        return Fault("timeout", detail)
    if isinstance(error, openai.APIConnectionError):
        cause = type(error.__cause__).__name__
        unreachable = ("ConnectError", "UnsupportedProtocol", "ConnectTimeout")
        return Fault("refused" if cause in unreachable else "dropped", f"{detail} ({cause})")
    if isinstance(error, openai.APIStatusError):
        kind = _kind_of_status(error.status_code)
        if kind == "redirected":
            detail = (
                f"status {error.status_code} to {error.response.headers.get('location', '?')}; no "
                "redirect is followed, set preferences.llm.base_url to where you mean"
            )
        if kind == "overloaded" and "insufficient_quota" in detail:
            kind = "key"
        wait = retry_after(error.response.headers, now or datetime.now(UTC))
        return Fault(kind, detail, wait)
    return Fault("garbled", f"{type(error).__name__}: {detail}")


def _kind_of_status(status: int) -> FaultKind:
    if 300 <= status < 400:
        return "redirected"
    if status in (401, 402, 403):
        return "key"
    if status == 404:
        return "missing"
    if status == 429:
        return "overloaded"
    return "server" if status in (408, 409) or status >= 500 else "rejected"


def retry_after(headers: Mapping[str, str], now: datetime) -> float:
    """Return the seconds that a Retry-After header asks for, in either of its two forms, else 0.

    At most `MAX_RETRY_AFTER`.
    """
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - now).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(0.0, seconds), MAX_RETRY_AFTER)  # NaN: max returns the 0


@dataclass(frozen=True, kw_only=True)
class Features:
    """What requests to a server use."""

    parts: frozenset[Feature]
    top_logprobs: int = 0
    """Candidates asked for at every token; 0: no log-probabilities, the answer is read."""

    def __contains__(self, part: Feature) -> bool:
        return part in self.parts

    @property
    def soft(self) -> bool:
        """Whether one answer gives a probability; otherwise a question is put to several votes."""
        return self.top_logprobs > 0

    def way_of_asking(self, config: LlmConfig) -> str:
        """Return how questions are answered, in words."""
        if self.soft:
            return f"the log-probabilities of the {self.top_logprobs} likeliest tokens"
        form = "in free text"
        if "json_schema" in self:
            form = "under a JSON schema"
        elif "grammar" in self:
            form = "under a grammar"
        return f"{config.votes} votes a question {form}"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question as sent, `body` being what goes over the wire."""

    body: dict[str, Any]
    choices: tuple[str, str]
    prompt: str
    """Identity of the template."""
    base_url: str

    @property
    def key(self) -> str:
        """A digest of everything that can change the answer: server, model, template, messages,
        temperature, seed, caps, constraint."""
        whole = {"base_url": self.base_url, "prompt": self.prompt, "body": self.body}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    def changed(self, template: Template) -> "Request":
        """Return the same question with a reminder and another seed.

        A bad reply at temperature 0 comes again whenever the question does.
        """
        body = dict(self.body, messages=list(template.nudged(tuple(self.body["messages"]))))
        if "seed" in body:
            body["seed"] += 1_000_003
        return Request(body=body, choices=self.choices, prompt=self.prompt, base_url=self.base_url)


def make_requests(
    messages: Messages, template: Template, config: LlmConfig, base_url: str, features: Features
) -> list[Request]:
    """Return the requests that answer one question: one, or a sample for each vote."""
    samples = 1 if features.soft else config.votes
    return [
        Request(
            body=request_body(messages, template.choices, config, features, sample),
            choices=template.choices,
            prompt=template.identity,
            base_url=base_url,
        )
        for sample in range(samples)
    ]


def request_body(
    messages: Messages,
    choices: Sequence[str],
    config: LlmConfig,
    features: Features,
    sample: int = 0,
) -> dict[str, Any]:
    """Return the JSON body of a request that uses exactly these features.

    `sample` enters the body as the user field where there is no seed, so that each vote has a key
    of its own.
    """
    soft = features.soft
    limit = config.soft_tokens if soft else config.max_tokens
    parts: dict[Feature, dict[str, Any]] = {
        "max_tokens": {"max_tokens": limit},
        "max_completion_tokens": {"max_completion_tokens": limit},
        "temperature": {"temperature": 0.0 if soft else config.vote_temperature},
        "seed": {"seed": config.seed + sample},
        "json_schema": {"response_format": _schema(choices)},
        "grammar": {"grammar": "root ::= " + " | ".join(f'"{c}"' for c in choices)},
        # llama.cpp reuses the state of earlier prompts, which changes log-probabilities slightly.
        "no_cache": {"cache_prompt": False},
        "thinking": {"chat_template_kwargs": {"enable_thinking": False}},
        "reasoning_effort": {
            "reasoning_effort": "none" if config.thinking == "off" else config.thinking
        },
    }
    body: dict[str, Any] = {"model": config.model, "messages": list(messages)}
    for name, part in parts.items():
        if name in features:
            body |= part
    if soft:
        body |= {"logprobs": True, "top_logprobs": features.top_logprobs}
    if sample and "seed" not in features:
        body["user"] = f"sample {sample}"
    return body


def _schema(choices: Sequence[str]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": list(choices)}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": schema},
    }


class _Validated(BaseModel):
    """What is read of a server's JSON: these fields with these types; others are passed over."""

    model_config = ConfigDict(strict=True, frozen=True)


_Read = TypeVar("_Read", bound=_Validated)


class _Candidate(_Validated):
    token: str
    logprob: FiniteFloat | None = None


class _Token(_Validated):
    token: str
    top_logprobs: Annotated[list[_Candidate], Field(fail_fast=True)] | None = None


class _LogProbs(_Validated):
    content: Annotated[list[_Token], Field(fail_fast=True)] | None = None


class _TextPart(_Validated):
    text: str = ""


class _Message(_Validated):
    content: str | Annotated[list[_TextPart], Field(fail_fast=True)] | None = None


class _Choice(_Validated):
    message: _Message
    finish_reason: str | None = None
    logprobs: _LogProbs | None = None


class _Usage(_Validated):
    prompt_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    completion_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None


class _Completion(_Validated):
    choices: Annotated[list[_Choice], Field(min_length=1, fail_fast=True)]
    model: str | None = None
    usage: _Usage | None = None


class _Model(_Validated):
    id: str


class _ModelList(_Validated):
    data: Annotated[list[_Model], Field(fail_fast=True)]


class _Answer(BaseModel):
    """An answer under the JSON schema."""

    model_config = ConfigDict(strict=True, extra="forbid")

    answer: str


class Reply(BaseModel):
    """One reply of the model, validated and capped."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    text: str
    finish: str
    """Why it ended; ``length`` where it ran into the cap on tokens."""
    model: str
    """The model's name as the server gave it; hosted services add a date."""
    candidates: tuple[tuple[str, float], ...]
    """(token, log-probability) at the first token of the answer; empty where the server gave
    none. The distribution is the model's own, also under a constraint."""
    prompt_tokens: int | None
    reply_tokens: int | None


Answers = Callable[[Sequence[Request]], Awaitable[dict[str, Reply | Fault]]]
"""From requests to a reply or a fault under each one's key."""


def parsed(body: bytes, hide: Callable[[str], str] = str) -> Reply:
    """Return the reply in a response's body, or raise a fault of kind ``garbled``.

    `hide` takes the key out of texts that are kept: a server may send back what it was sent.
    """
    completion = _validated(_Completion, body)
    choice = completion.choices[0]
    usage = completion.usage or _Usage()
    content = choice.message.content or ""
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    return Reply(
        text=_capped(hide(text)),
        finish=cleaned(hide(choice.finish_reason or ""))[:MAX_NAME],
        model=cleaned(hide(completion.model or ""))[:MAX_NAME],
        candidates=tuple(
            (hide(token[:MAX_KEPT])[:MAX_NAME], value)
            for token, value in _candidates(choice.logprobs)
        ),
        prompt_tokens=usage.prompt_tokens,
        reply_tokens=usage.completion_tokens,
    )


def parsed_models(body: bytes) -> list[str]:
    """Return the names in a server's list of models, or raise a fault of kind ``garbled``."""
    return sorted(model.id for model in _validated(_ModelList, body).data)


def _validated(kind: type[_Read], body: bytes) -> _Read:
    """Return what a body says, or raise a fault that names the first field that is wrong."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "reply"
        said = body[:80].decode("utf-8", "replace")
        raise Fault("garbled", f"{place}: {first['msg']}, in {said!r}") from None


def _capped(text: str) -> str:
    """Return a text, of a long one the end; by itself that end is no answer."""
    return text if len(text) <= MAX_KEPT else f"[...] {text[-MAX_KEPT:]}"


def _candidates(logprobs: _LogProbs | None) -> list[tuple[str, float]]:
    """Return the candidates at the first token that is neither thinking nor white space.

    Their log-probabilities lie in [`LEAST_LOG_PROB`, 0].
    """
    tokens = (logprobs.content if logprobs is not None else None) or []
    said, start = "", 0
    for index, item in enumerate(tokens):
        said = (said + item.token)[-len(END_OF_THINKING) - 8 :]
        if said.rstrip().endswith(END_OF_THINKING):
            start = index + 1
    for item in tokens[start:]:
        if item.token.strip():
            return [
                (one.token, min(max(one.logprob, LEAST_LOG_PROB), 0.0))
                for one in (item.top_logprobs or [])[:MAX_CANDIDATES]
                if one.logprob is not None
            ]
    return []


def choice_of(text: str, choices: Sequence[str]) -> int | None:
    """Return the index of the choice that is the whole answer, None if it is none of them.

    The answer may follow the model's thinking, may be an object with the key "answer", and may end
    in a full stop or a bracket; a choice somewhere inside a sentence is no answer ("A better
    attempt" is not "A"). A single letter must be a capital one.
    """
    answer = after_thinking(text)
    if answer.startswith("{"):
        try:
            answer = _Answer.model_validate_json(answer).answer.strip()
        except ValidationError:
            return None
    word = re.fullmatch(r"(\w+)[.!)]?", answer)
    return _matching(word[1], choices) if word else None


def after_thinking(text: str) -> str:
    """Return what a reply says after its thinking; nothing where it never stops to think."""
    _, end, answer = text.rpartition(END_OF_THINKING)
    if not end and answer.lstrip().startswith("<think>"):
        return ""
    return answer.strip()


def _matching(word: str, choices: Sequence[str]) -> int | None:
    for index, choice in enumerate(choices):
        if word == choice or (len(choice) > 1 and word.lower() == choice.lower()):
            return index
    return None


def log_odds(
    candidates: Sequence[tuple[str, float]], choices: Sequence[str]
) -> tuple[float, float]:
    """Return log P(first choice) - log P(second), and the probability of both together.

    Tokens that spell the same choice ("A", " A") are added up. A choice that is not listed is
    less likely than every candidate: it counts as the least of them, at no mass.
    """
    found = [0.0, 0.0]
    for token, log_prob in candidates:
        index = _matching(token.strip().rstrip(".!)"), choices)
        if index is not None:
            found[index] += math.exp(log_prob)
    least = math.exp(min((log_prob for _, log_prob in candidates), default=LEAST_LOG_PROB))
    first, second = (probability or least for probability in found)
    return math.log(first) - math.log(second), sum(found)
