"""Hard caps on what asking may use."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from marl.config import ConfigError
from marl.config.llm import LlmConfig
from marl.preferences.llm.faults import Fault
from marl.preferences.llm.replies import Reply
from marl.preferences.llm.store import Spent

_TEMPLATE_TOKENS = 256
"""Allowance for what a server's chat template adds to the messages."""


class BudgetError(ConfigError):
    """A cap is reached and the configuration says that the run ends then."""


class Spending:
    """Caps on calls, tokens, money and time that hold whatever is under way.

    Before an attempt its largest possible use is set aside, and given back in part when the true
    use is known. So a cap is never passed; it may be missed by less than one attempt.
    """

    def __init__(self, config: LlmConfig, spent: Spent, seconds: float) -> None:
        self._config = config
        self.spent = spent
        self._reserved = Spent()
        self._changed: asyncio.Condition | None = None
        self.time_is_up = False
        """Set when a wait was broken off."""
        self.seconds = seconds
        """Spent waiting for the model, over the life of the store."""

    @property
    def seconds_left(self) -> float | None:
        """Seconds that training may still wait; None where there is no cap."""
        cap = self._config.max_seconds
        return max(0.0, cap - self.seconds) if cap else None

    @property
    def is_out_of_time(self) -> bool:
        """Whether training may not wait any more."""
        return self.time_is_up or self.seconds_left == 0.0

    def __str__(self) -> str:
        spent, caps = self.spent, self._config
        rows = (
            (f"{spent.calls} of {caps.max_calls} calls", caps.max_calls),
            (f"{spent.tokens} of {caps.max_total_tokens} tokens", caps.max_total_tokens),
            (f"{spent.cost:.4g} of {caps.max_cost:g} in money", caps.max_cost),
            (f"{self.seconds:.0f} of {caps.max_seconds:g} s", caps.max_seconds),
        )
        return ", ".join(text for text, cap in rows if cap)

    def estimate(self, body: dict[str, Any]) -> Spent:
        """Return the most that an attempt can use. A token is at least one byte of text."""
        text = len(json.dumps(body["messages"], ensure_ascii=False).encode())
        prompt = text + _TEMPLATE_TOKENS
        limits = ("max_tokens", "max_completion_tokens")
        reply = next((body[name] for name in limits if name in body), self._config.max_tokens)
        return Spent(calls=1, tokens=prompt + reply, cost=self.cost(prompt, reply))

    def used(self, reply: Reply, estimate: Spent) -> Spent:
        """Return what an answered attempt used; the estimate where the server does not say."""
        if reply.prompt_tokens is None or reply.reply_tokens is None:
            return estimate
        prompt, said = reply.prompt_tokens, reply.reply_tokens
        return Spent(calls=1, tokens=prompt + said, cost=self.cost(prompt, said))

    def cost(self, prompt_tokens: int, reply_tokens: int) -> float:
        """Return the price of some tokens."""
        config = self._config
        price = prompt_tokens * config.prompt_price + reply_tokens * config.reply_price
        return price / 1e6

    async def reserve(self, estimate: Spent) -> None:
        """Set an estimate aside, waiting for attempts under way if it may fit afterwards.

        Raises a `Fault` of kind ``budget`` where it does not fit.
        """
        self._changed = self._changed or asyncio.Condition()
        async with self._changed:
            await self._changed.wait_for(self._settled(estimate))
            if not self._fits(self.spent + estimate):
                raise Fault("budget", "the next question would pass a cap")
            self._reserved += estimate

    async def settle(self, estimate: Spent, used: Spent) -> None:
        """Replace an estimate set aside by what was used."""
        if self._changed is None:
            raise RuntimeError("settled before anything was reserved")
        async with self._changed:
            self.spent += used
            self._reserved += Spent(
                calls=-estimate.calls, tokens=-estimate.tokens, cost=-estimate.cost
            )
            self._changed.notify_all()

    def _settled(self, estimate: Spent) -> Callable[[], bool]:
        """Return a test whether the attempts under way leave no doubt if the estimate fits."""
        return lambda: (
            self._reserved.calls == 0
            or self._fits(self.spent + self._reserved + estimate)
            or not self._fits(self.spent + estimate)
        )

    def _fits(self, total: Spent) -> bool:
        caps = self._config
        return (
            (caps.max_calls == 0 or total.calls <= caps.max_calls)
            and (caps.max_total_tokens == 0 or total.tokens <= caps.max_total_tokens)
            and (caps.max_cost == 0.0 or total.cost <= caps.max_cost)
        )
