"""What a server can do, found out once by asking.

Each part of a request is judged by what comes back, not by what the server says: one ignores an
unknown field, another answers 400, a third 500. The ladder, best first: log-probabilities; votes
under a JSON schema; votes under a grammar (if allowed); votes read strictly from free text.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from marl.config.llm import LlmConfig
from marl.preferences.llm.faults import Fault
from marl.preferences.llm.prompts import Messages, Template
from marl.preferences.llm.replies import Reply, choice_of, log_odds
from marl.preferences.llm.requests import Feature, Features, request_body

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
