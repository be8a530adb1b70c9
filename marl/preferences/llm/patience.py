"""How long to wait after a failure, and when to leave a server alone."""

import random
from collections.abc import Callable


def backoff(attempt: int, first: float, longest: float, rng: random.Random) -> float:
    """Return the seconds to wait after failed attempt 1, 2, ...: doubling, half of it at random.

    The random half keeps many questions that failed together from coming back together.
    """
    wait = min(longest, first * 2.0 ** (attempt - 1))
    return wait * (0.5 + 0.5 * rng.random())


class Breaker:
    """Open after `limit` failures in a row: nothing is asked for `seconds`.

    Then it is half open: one question tries, and its success closes it.
    """

    def __init__(self, limit: int, seconds: float, clock: Callable[[], float]) -> None:
        self._limit, self._seconds, self._clock = limit, seconds, clock
        self._failures = 0
        self._open_until: float | None = None
        self.num_opened = 0
        """How often it opened."""

    @property
    def is_open(self) -> bool:
        """Whether nothing may be asked now."""
        return self._open_until is not None and self._clock() < self._open_until

    @property
    def is_half_open(self) -> bool:
        """Whether a single question should try."""
        return self._open_until is not None and not self.is_open

    def succeeded(self) -> None:
        """Note that the server answered."""
        self._failures = 0
        self._open_until = None

    def failed(self, *, lasting: bool = False, retry_after: float = 0.0) -> None:
        """Note a failure; a lasting one opens the breaker at once."""
        self._failures += 1
        if lasting or self._failures >= self._limit or self.is_half_open:
            self.num_opened += not self.is_open
            wait = max(self._seconds, retry_after)
            self._open_until = max(self._open_until or 0.0, self._clock() + wait)
