"""What can go wrong between a question and its reply, and what each fault asks for.

The openai client raises for most failures, but some broken replies raise nothing at all:
`protocol.parsed` finds those.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

FaultKind = Literal[
    "refused",  # no server listens at the address
    "dropped",  # the connection broke before the reply was whole
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
"""No question will be answered until somebody changes something: opens the breaker at once."""
UNPAID: frozenset[FaultKind] = frozenset(
    ("refused", "overloaded", "server", "key", "missing", "redirected", "rejected")
)
"""The server said, or could only say, that it did not answer."""
MAX_RETRY_AFTER = 3_600.0
"""Seconds that a server may ask to be left alone; a longer Retry-After counts as this."""


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
    import openai  # whoever reads an answer cache needs no client

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
