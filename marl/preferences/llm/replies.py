"""What a server sent, taken apart field by field; nothing it promised is believed.

A reply is kept as the text, and the candidates at the token that carries the answer, so that a
change of margins or of parsing needs no new question.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from marl.preferences.llm.faults import Fault

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
