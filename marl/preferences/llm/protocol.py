"""From replies to a label.

Axes: none; log-odds are of the template's first choice against its second. With l_1 the log-odds
that the first episode is better when it is shown first, and l_2 when it is shown second,
P = sigmoid((l_1 + l_2) / 2): whatever favours a position cancels. Pointwise, with g the log-odds
of a good grade, P = sigmoid(g_first - g_second).
"""

import hashlib
import json
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from marl.config.llm import LlmConfig
from marl.preferences.llm.faults import Fault
from marl.preferences.llm.prompts import Messages, Template

# Questions as the server gets them, and the key under which each answer is kept.


Feature = Literal[
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "seed",
    "logprobs",
    "json_schema",
    "grammar",
    "no_cache",
    "thinking",
    "reasoning_effort",
]
"""Parts of a request that some servers do not take."""

Features = frozenset[Feature]


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
    samples = 1 if "logprobs" in features else config.votes
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
    soft = "logprobs" in features
    limit = config.soft_tokens if soft else config.max_tokens
    parts: dict[Feature, dict[str, Any]] = {
        "max_tokens": {"max_tokens": limit},
        "max_completion_tokens": {"max_completion_tokens": limit},
        "temperature": {"temperature": 0.0 if soft else config.vote_temperature},
        "seed": {"seed": config.seed + sample},
        "logprobs": {"logprobs": True, "top_logprobs": config.top_logprobs},
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


# What a server sent, taken apart field by field; nothing it promised is believed.
#
# A reply is kept as the text, and the candidates at the token that carries the answer, so that a
# change of margins or of parsing needs no new question.


END_OF_THINKING = "</think>"
LEAST_LOG_PROB = -20.0
"""Smaller ones count as this; servers write placeholders such as -9999."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One reply of the model, validated."""

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

    def to_json(self) -> str:
        """Return all of it as text for the store."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Reply":
        """Return the reply that `to_json` wrote."""
        values = json.loads(text)
        values["candidates"] = tuple((token, value) for token, value in values["candidates"])
        return cls(**values)


def parsed(body: str) -> Reply:
    """Return the reply in a response's body, or raise a fault of kind ``garbled``."""
    try:
        answer = json.loads(body)
    except ValueError:
        raise Fault("garbled", f"not JSON: {body[:80]!r}") from None
    if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
        raise Fault("garbled", f"no list of choices: {body[:80]!r}")
    choice = answer["choices"][0] if answer["choices"] else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise Fault("garbled", f"no message in the first choice: {body[:80]!r}")
    content = message.get("content")
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Reply(
        text=content if isinstance(content, str) else "",
        finish=str(choice.get("finish_reason")),
        model=str(answer.get("model")),
        candidates=_candidates(choice.get("logprobs")),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        reply_tokens=_count(usage.get("completion_tokens")),
    )


def _count(value: Any) -> int | None:
    """Return a number of tokens, None where it is none."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_count else None


def _candidates(logprobs: Any) -> tuple[tuple[str, float], ...]:
    """Return the candidates at the first token that is neither thinking nor white space."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    tokens = [item for item in content or () if isinstance(item, dict)]
    said, start = "", 0
    for index, item in enumerate(tokens):
        said += str(item.get("token"))
        if said.rstrip().endswith(END_OF_THINKING):
            start = index + 1
    for item in tokens[start:]:
        if str(item.get("token")).strip():
            listed = item.get("top_logprobs")
            return tuple(
                (one["token"], float(one["logprob"]))
                for one in (listed if isinstance(listed, list) else ())
                if isinstance(one, dict)
                and isinstance(one.get("token"), str)
                and isinstance(one.get("logprob"), int | float)
                and math.isfinite(one["logprob"])
            )
    return ()


def choice_of(text: str, choices: Sequence[str]) -> int | None:
    """Return the index of the choice that is the whole answer, None if it is none of them.

    The answer may follow the model's thinking, may be an object with the key "answer", and may end
    in a full stop or a bracket; a choice somewhere inside a sentence is no answer ("A better
    attempt" is not "A"). A single letter must be a capital one.
    """
    answer = text.rpartition(END_OF_THINKING)[2].strip()
    if answer.startswith("{"):
        answer = _answer_in_json(answer)
    word = re.fullmatch(r"(\w+)[.!)]?", answer)
    return _matching(word[1], choices) if word else None


def _answer_in_json(text: str) -> str:
    """Return the text under the only key "answer", empty if there is no such thing."""
    try:
        value = json.loads(text)
    except ValueError:
        return ""
    answer = value.get("answer") if isinstance(value, dict) and len(value) == 1 else None
    return answer.strip() if isinstance(answer, str) else ""


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
            found[index] += math.exp(min(max(log_prob, LEAST_LOG_PROB), 0.0))
    least = min((log_prob for _, log_prob in candidates), default=LEAST_LOG_PROB)
    least = math.exp(max(least, LEAST_LOG_PROB))
    first, second = (probability or least for probability in found)
    return math.log(first) - math.log(second), sum(found)


# What a server can do, found out once by asking.
#
# Each part of a request is judged by what comes back, not by what the server says: one ignores an
# unknown field, another answers 400, a third 500. The ladder, best first: log-probabilities;
# votes under a JSON schema; votes under a grammar (if allowed); votes read strictly from free
# text.


Send = Callable[[dict[str, Any]], Awaitable[Reply]]

_REFUSALS = ("rejected", "server", "missing", "garbled", "no_logprobs")
"""Faults by which servers turn down a field they do not know."""


async def probe(send: Send, template: Template, config: LlmConfig) -> Features:
    """Return the features that work, or raise the `Fault` that keeps even a bare question away.

    One request that uses everything is enough where nothing is missing; otherwise the cap on
    tokens is settled first and each other feature is tried alone.
    """
    wanted = _wanted(config)
    everything: Features = frozenset(("max_tokens", "logprobs", *wanted))
    messages = _question(template)
    if await _works(send, messages, template, config, everything, "logprobs"):
        return everything
    limit = await _token_limit(send, messages, template, config)
    found = {limit}
    for feature in wanted:
        if await _works(send, messages, template, config, frozenset((limit, feature)), feature):
            found.add(feature)
    for feature in _ladder(config):
        if await _works(send, messages, template, config, frozenset((limit, feature)), feature):
            found.add(feature)
            break
    return frozenset(found)


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


def _ladder(config: LlmConfig) -> tuple[Feature, ...]:
    """Return the ways to get an answer, best first; free text needs none of them."""
    grammar: tuple[Feature, ...] = ("grammar",) if config.use_grammar else ()
    return ("logprobs", "json_schema", *grammar)


def _question(template: Template) -> Messages:
    """Return a question of the template's own form about nothing in particular."""
    names = ("task", "first", "second", "episode")
    fields = dict.fromkeys(names, "length: 10 steps")
    return template.messages(**fields)


async def _token_limit(
    send: Send, messages: Messages, template: Template, config: LlmConfig
) -> Feature:
    """Return the name under which the server takes a cap on tokens, or raise its fault."""
    try:
        await send(request_body(messages, template.choices, config, frozenset(("max_tokens",))))
    except Fault as fault:
        if fault.kind != "rejected":
            raise
        features: Features = frozenset(("max_completion_tokens",))
        await send(request_body(messages, template.choices, config, features))
        return "max_completion_tokens"
    return "max_tokens"


async def _works(
    send: Send,
    messages: Messages,
    template: Template,
    config: LlmConfig,
    features: Features,
    judged: Feature,
) -> bool:
    """Return whether a request with these features is answered as the judged one promises."""
    try:
        reply = await send(request_body(messages, template.choices, config, features))
    except Fault as fault:
        if fault.kind not in _REFUSALS:
            raise
        return False
    if judged == "logprobs":
        return log_odds(reply.candidates, template.choices)[1] > 0.0
    if judged in ("json_schema", "grammar"):
        return choice_of(reply.text, template.choices) is not None
    return True


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
