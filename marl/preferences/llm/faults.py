"""What can go wrong between a question and its reply, and what to do about each.

The openai client raises for most failures, but a body that is no JSON surfaces as a plain
`ValueError`, and some broken replies raise nothing at all; `replies.py` finds those.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

import openai

FaultKind = Literal[
    "refused",  # nobody listens there
    "dropped",  # the connection broke before the reply was whole
    "timeout",  # one attempt took too long
    "overloaded",  # 429
    "server",  # 5xx, 408, 409
    "key",  # 401, 403, or no money left on the account
    "missing",  # 404: no such model or path
    "rejected",  # 400, 413, 422: the server does not take this question
    "garbled",  # 200, but no reply in it
    "unusable",  # a reply, but none of the choices in it
    "no_logprobs",  # promised log-probabilities are absent
    "deadline",  # the question with all its attempts took too long
    "breaker",  # not asked: the server failed too often just now
    "in_doubt",  # not asked: it may have been paid for when a run was killed
    "offline",  # not asked: not in the store
    "budget",  # not asked: a cap is reached
    "store",  # the answer cannot be kept
]

PASSING: frozenset[FaultKind] = frozenset(
    ("refused", "dropped", "timeout", "overloaded", "server", "garbled")
)
"""Worth the same question again after a while."""
LASTING: frozenset[FaultKind] = frozenset(("key", "missing"))
"""No question will be answered until somebody changes something: opens the breaker at once."""
UNPAID: frozenset[FaultKind] = frozenset(
    ("refused", "overloaded", "server", "key", "missing", "rejected")
)
"""The server said, or could only say, that it did not answer."""


class Fault(Exception):  # noqa: N818 - also a value, in the place of a reply
    """No usable reply. `detail` never contains the key."""

    def __init__(self, kind: FaultKind, detail: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail
        self.retry_after = retry_after
        """Seconds the server asked to be left alone; 0 if it did not."""


def fault_of(error: Exception, now: datetime | None = None) -> Fault:
    """Return the fault that an exception of the client stands for; unknown ones are raised."""
    detail = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, openai.APITimeoutError):
        return Fault("timeout", detail)
    if isinstance(error, openai.APIConnectionError):
        cause = type(error.__cause__).__name__
        unreachable = ("ConnectError", "UnsupportedProtocol", "ConnectTimeout")
        return Fault("refused" if cause in unreachable else "dropped", f"{detail} ({cause})")
    if isinstance(error, openai.APIStatusError):
        kind = _kind_of_status(error.status_code)
        if kind == "overloaded" and "insufficient_quota" in detail:
            kind = "key"
        wait = retry_after(error.response.headers, now or datetime.now(UTC))
        return Fault(kind, detail, wait)
    if isinstance(error, openai.APIResponseValidationError | ValueError):
        return Fault("garbled", detail)
    raise error


def _kind_of_status(status: int) -> FaultKind:
    if status in (401, 402, 403):
        return "key"
    if status == 404:
        return "missing"
    if status == 429:
        return "overloaded"
    return "server" if status in (408, 409) or status >= 500 else "rejected"


def retry_after(headers: Mapping[str, str], now: datetime) -> float:
    """Return the seconds that a Retry-After header asks for, in either of its two forms, else 0."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - now).total_seconds())
    except (ValueError, TypeError):
        return 0.0
