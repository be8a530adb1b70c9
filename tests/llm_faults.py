"""What a language model's server may answer in place of an answer, by name."""

import gzip
import re
from functools import partial

from tests.llm_server import (
    Fault,
    body_of,
    changed,
    dripping,
    dropped,
    edited,
    saying,
    silent,
    status,
    truncated,
    whole,
)


def nested(reply: bytes) -> bytes:
    """Return a good reply with something deep in it that nobody reads."""
    return b'{"deep": ' + b"[" * 100_000 + b"]" * 100_000 + b", " + reply[1:]


def log_probability(number: bytes) -> Fault:
    """Answer with this as every log-probability of a candidate."""
    return edited(partial(re.sub, rb'("logprob": )(-[\d.e-]+)', rb"\g<1>" + number))


GARBLED: dict[str, Fault] = {
    "nested JSON": body_of(b"[" * 100_000),
    "nested JSON in a good reply": edited(nested),
    "tokens without end": whole(usage={"prompt_tokens": 10**30, "completion_tokens": 1}),
    "tokens below zero": whole(usage={"prompt_tokens": -5, "completion_tokens": 1}),
    "usage of another type": whole(usage={"prompt_tokens": "100", "completion_tokens": [1]}),
    "a log-probability of 400 digits": log_probability(b"-" + b"1" * 400),
    "a log-probability of 5,000 digits": log_probability(b"-" + b"1" * 5_000),
    "a log-probability that is no number": log_probability(b"NaN"),
    "an infinite log-probability": log_probability(b"Infinity"),
    "a log-probability in quotes": log_probability(b'"-1"'),
    "log-probabilities of another type": changed(logprobs={"content": 5}),
    "a token of another type": changed(logprobs={"content": [{"token": 5}]}),
    "candidates of another type": edited(
        partial(re.sub, rb'("top_logprobs": )', rb'\g<1>5, "x": ')
    ),
    "choices of another type": whole(choices={"0": {}}),
    "a message of another type": changed(message="Good"),
    "content of another type": changed(message={"content": {"text": "Good"}}),
    "a model of another type": whole(model=["stand-in"]),
    "half a character": edited(lambda reply: reply.replace(b'"stand-in"', b'"\\ud800"')),
    "not UTF-8": edited(lambda reply: reply.replace(b"stand-in", b"\xff\xfe")),
    "50 MB of content": saying("x" * 50_000_000),
    "an unknown compression": body_of(b"{}", headers={"Content-Encoding": "br"}),
    "compressed by its name only": body_of(b"{}", headers={"Content-Encoding": "gzip"}),
}  # fmt: skip
"""Replies that are one counted fault each."""

FAULTS: dict[str, Fault] = GARBLED | {
    "a bomb": body_of(gzip.compress(bytes(2**25), 1), headers={"Content-Encoding": "gzip"}),
    "a body cut off": truncated,
    "a byte now and then": dripping,
    "no word": silent,
    "no reply": dropped,
    "no content": saying(None, "length"),
    "another answer": saying("Perhaps"),
    "content in parts": saying([{"type": "text", "text": "Good"}]),
    "bad request": status(400),
    "no key": status(401),
    "not found": status(404),
    "too many requests": status(429, {"Retry-After": "0.01"}),
    "too many requests for a year": status(429, {"Retry-After": "31536000"}),
    "server error": status(500, text="x" * 100_000),
    "unavailable": status(503, {"Retry-After": "never"}),
    "redirect": status(307, {"Location": "http://127.0.0.1:9/v1/chat/completions"}),
    "a status of its own": status(799),
}
"""Everything that a server may do to a question."""
