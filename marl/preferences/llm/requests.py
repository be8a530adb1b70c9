"""Questions as the server gets them, and the key under which each answer is kept."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from marl.config.llm import LlmConfig
from marl.preferences.llm.prompts import Messages, Template

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
