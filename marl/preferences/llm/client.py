"""Requests in, replies or faults out: the store first, then the server, with retries.

Calls, tokens, money and waiting are capped by a budget.
"""

import asyncio
import itertools
import os
import random
import re
import sqlite3
import ssl
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import openai

from marl.config import ConfigError
from marl.config.llm import LlmConfig
from marl.preferences.llm.cache import AnswerStore, Spending, Spent
from marl.preferences.llm.faults import LASTING, PASSING, UNPAID, Fault, fault_of
from marl.preferences.llm.prompts import Template
from marl.preferences.llm.protocol import Reply, Request, choice_of, parsed

# An event loop of one's own in a thread, so that training may itself run inside one.


T = TypeVar("T")


class Loop:
    """Runs coroutines to their end from ordinary code; started by the first."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what the coroutine returns; an interrupt of the caller cancels it."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
            self._thread.start()
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Stop the thread."""
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = self._thread = None


# How long to wait after a failure, and when to leave a server alone.


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


# One attempt at one question over HTTP: a validated reply, or a fault.


NO_KEY = "none"
"""What a local server gets; the client insists on something."""
_HIDDEN = "[key]"
POOL_SIZE = 8
"""Questions at once that share a pool of connections: with every question a pool looks at all of
its connections, which for 64 of them took a fifth of the time."""


class Transport:
    """A connection to the server of a configuration. Retries nothing and hides the key."""

    def __init__(self, config: LlmConfig) -> None:
        self._key = read_key(config)
        self._timeout = config.timeout
        pools = -(-config.concurrency // POOL_SIZE)
        certificates = ssl.create_default_context()
        self._clients = [
            openai.AsyncOpenAI(
                base_url=config.base_url or None,
                api_key=self._key or NO_KEY,
                max_retries=0,
                timeout=config.timeout,
                http_client=openai.DefaultAsyncHttpxClient(verify=certificates),
            )
            for _ in range(pools)
        ]
        self._client = self._clients[0]
        self._turns = itertools.cycle(self._clients)

    @property
    def base_url(self) -> str:
        """The endpoint, also where the configuration leaves it to the client."""
        return str(self._client.base_url)

    async def send(self, body: dict[str, Any]) -> Reply:
        """Return the reply to one request, or raise a `Fault`.

        `body` is what goes over the wire. The client's own time-out is per read, and a body that
        drips could take for ever: the whole attempt is timed here.
        """
        try:
            async with asyncio.timeout(self._timeout):
                # As extra body the messages go out as they are; the client would rebuild them.
                response = await next(self._turns).chat.completions.with_raw_response.create(
                    model=body["model"], messages=(), extra_body=body
                )
                return parsed(response.text)
        except TimeoutError:
            raise Fault("timeout", f"no whole reply within {self._timeout:g} s") from None
        except Exception as error:
            raise self._fault(error) from None

    async def models(self) -> list[str]:
        """Return the models that the server lists, or raise a `Fault`."""
        try:
            async with asyncio.timeout(self._timeout):
                page = await self._client.models.list()
            return sorted(str(model.id) for model in page.data or ())
        except TimeoutError:
            raise Fault("timeout", f"no list of models within {self._timeout:g} s") from None
        except (AttributeError, TypeError):
            raise Fault("garbled", "the list of models is none") from None
        except Exception as error:
            raise self._fault(error) from None

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            await client.close()

    def _fault(self, error: Exception) -> Fault:
        """Return what an exception stands for, with the key hidden and nothing attached."""
        fault = error if isinstance(error, Fault) else fault_of(error)
        return Fault(fault.kind, self.hide_key(fault.detail), fault.retry_after)

    def hide_key(self, text: str) -> str:
        """Return a text without the key, nor what a server may echo of it; printable only."""
        text = "".join(c if c.isprintable() else "?" for c in text)
        if self._key:
            text = text.replace(self._key, _HIDDEN)
        return re.sub(r"\b(sk|key)-[\w*.-]+", _HIDDEN, text)


def read_key(config: LlmConfig) -> str:
    """Return the key from the environment, empty where a server of one's own needs none.

    An endpoint that carries a secret in its address is refused: addresses are recorded.
    """
    address = urlsplit(config.base_url)
    if "@" in address.netloc or address.query:
        raise ConfigError(
            "preferences.llm.base_url: holds a user, a password or a query, and would be recorded "
            f"with the run; put the key into the environment variable {config.api_key_env}"
        )
    if config.base_url and address.scheme not in ("http", "https"):
        raise ConfigError(
            f"preferences.llm.base_url: got {config.base_url!r}, expected http://... or https://..."
        )
    if not config.api_key_env.isidentifier():
        raise ConfigError(
            "preferences.llm.api_key_env: expected the name of an environment variable, such as "
            "OPENAI_API_KEY, and not a key"
        )
    key = os.environ.get(config.api_key_env, "").strip()
    if not key and not config.base_url and not config.offline:
        raise ConfigError(
            f"preferences.llm: the environment variable {config.api_key_env} is not set; set it, "
            "or name a server of your own by preferences.llm.base_url"
        )
    return key


Sleep = Callable[[float], Awaitable[None]]


class Asker:
    """Answers requests; never raises for what a server does.

    `sleep` and `clock` are the waits between attempts and the breaker's time.
    """

    def __init__(
        self,
        config: LlmConfig,
        template: Template,
        store: AnswerStore,
        transport: Transport,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._template, self._store = config, template, store
        self._sleep = sleep
        self._rng = random.Random()  # only for waits, which are no part of a result
        self.transport = transport
        self.spending = Spending(config, store.spent(), store.note("seconds") or 0.0)
        self.breaker = Breaker(config.breaker_failures, config.breaker_seconds, clock)
        self.counts: Counter[str] = Counter()
        """``calls``, ``retries``, ``cache_hits`` and ``fault_...`` of this process."""
        self.other_model = ""
        """A name the server gave that is not the one asked for; hosted services add a date."""
        self._latencies: list[float] = []

    async def answers(self, requests: Sequence[Request]) -> dict[str, Reply | Fault]:
        """Return a reply or a fault under each request's key; equal requests are asked once."""
        pending = {request.key: request for request in requests}
        places = asyncio.Semaphore(self._config.concurrency)
        results: dict[str, Reply | Fault] = {}
        if self.breaker.is_half_open:
            trial = next((k for k, r in pending.items() if self._store.reply(k) is None), None)
            if trial is not None:
                results[trial] = await self._answer(pending.pop(trial), places)
        keys = list(pending)
        replies = await asyncio.gather(*(self._answer(pending[key], places) for key in keys))
        return results | dict(zip(keys, replies, strict=True))

    async def probe(self, body: dict[str, Any], *, afresh: bool = False) -> Reply:
        """Return the reply to a request about the server itself, or raise its `Fault`.

        `afresh` asks also where an answer is kept, which the server may not give any more.

        A probe is asked again even if an earlier one is in doubt, since nothing works without it;
        and once more after a failure of the server, since that may be its way to say no.
        """
        request = self._request(body)
        kept = None if afresh else self._store.reply(request.key)
        if kept is not None:
            return kept
        try:
            return await self._attempt(request)
        except Fault as fault:
            if fault.kind not in PASSING:
                raise
            await self._pause(1, fault)
            return await self._attempt(request)

    def metrics(self) -> dict[str, float]:
        """Return what this process asked and what went wrong, what the store's life has spent,
        and the mean seconds of an answered attempt since the last call."""
        spent = self.spending.spent
        counts = {"calls": 0, "cache_hits": 0, "retries": 0} | self.counts
        metrics = {f"llm_{name}": float(count) for name, count in counts.items()}
        if self._latencies:
            metrics["llm_latency"] = sum(self._latencies) / len(self._latencies)
            self._latencies.clear()
        return metrics | {
            "llm_breaker_opened": float(self.breaker.num_opened),
            "llm_spent_calls": float(spent.calls),
            "llm_spent_tokens": float(spent.tokens),
            "llm_spent_cost": spent.cost,
            "llm_spent_seconds": self.spending.seconds,
        }

    async def _answer(self, request: Request, places: asyncio.Semaphore) -> Reply | Fault:
        """Return the first usable reply to a request or to its changed form, or the last fault."""
        fault = Fault("unusable", "")
        for variant in (request, request.changed(self._template)):
            try:
                reply = self._store.reply(variant.key)
                if reply is not None:
                    self.counts["cache_hits"] += 1
                else:
                    self._check_asking(variant.key)
                    async with places:
                        reply = await self._insist(variant)
                self._check_usable(request, reply)
                return reply
            except Fault as error:
                self.counts[f"fault_{error.kind}"] += 1
                fault = error
                if fault.kind != "unusable":
                    break
            except sqlite3.Error as error:
                # What cannot be kept must not be bought.
                self.breaker.failed(lasting=True)
                self.counts["fault_store"] += 1
                fault = Fault("store", f"{self._store.path}: {error}")
                break
        return fault

    def _check_asking(self, key: str) -> None:
        """Raise a `Fault` where a question must not be sent at all."""
        if self.spending.is_out_of_time:
            raise Fault("budget", "the time to wait for the model is used up")
        if self._config.offline:
            raise Fault("offline", "not in the store, and preferences.llm.offline is set")
        if self._config.in_doubt == "abstain" and self._store.is_in_doubt(key):
            raise Fault("in_doubt", "under way when an earlier process was killed")

    def _check_usable(self, request: Request, reply: Reply) -> None:
        """Raise a `Fault` for a reply that carries no answer of the promised form."""
        if "logprobs" in request.body:
            if not reply.candidates:
                said = f"said {reply.text[:40]!r}, finish reason {reply.finish}"
                raise Fault("unusable", f"no log-probabilities at an answer; {said}")
        elif choice_of(reply.text, request.choices) is None:
            raise Fault("unusable", f"said {reply.text[:80]!r}, finish reason {reply.finish}")

    async def _insist(self, request: Request) -> Reply:
        """Return the reply to a request, tried until attempts or time run out."""
        last: Fault | None = None
        try:
            async with asyncio.timeout(self._config.deadline):
                for attempt in range(1, self._config.attempts + 1):
                    if self.breaker.is_open:
                        raise last or Fault("breaker", "the server failed too often just now")
                    try:
                        reply = await self._attempt(request)
                    except Fault as fault:
                        self._note_failure(fault)
                        is_last = attempt == self._config.attempts
                        too_long = fault.retry_after > self._config.deadline
                        if fault.kind not in PASSING or is_last or too_long:
                            raise
                        last = fault
                        self.counts["retries"] += 1
                        await self._pause(attempt, fault)
                    else:
                        self.breaker.succeeded()
                        return reply
        except TimeoutError:
            self.breaker.failed()
        waited = f"no reply within {self._config.deadline:g} s"
        raise Fault("deadline", f"{waited}; the last failure was {last}" if last else waited)

    def _note_failure(self, fault: Fault) -> None:
        """Tell the breaker; a question that only this server rejects says nothing about it."""
        if fault.kind in PASSING or fault.kind in LASTING:
            too_long = fault.retry_after > self._config.deadline
            self.breaker.failed(
                lasting=fault.kind in LASTING or too_long, retry_after=fault.retry_after
            )

    async def _pause(self, attempt: int, fault: Fault) -> None:
        config = self._config
        wait = backoff(attempt, config.backoff, config.max_backoff, self._rng)
        await self._sleep(max(wait, fault.retry_after))

    async def _attempt(self, request: Request) -> Reply:
        """Return the reply to one attempt, paid, counted and kept, or raise its `Fault`."""
        estimate = self.spending.estimate(request.body)
        await self.spending.reserve(estimate)
        used = estimate
        call = self._store.begin(request, estimate)
        started = time.perf_counter()
        outcome, detail, paid = "cancelled", "", True
        self.counts["calls"] += 1
        try:
            await self._store.commit()
            reply = await self.transport.send(request.body)
            used = self.spending.used(reply, estimate)
            if "logprobs" in request.body and reply.text.strip() and not reply.candidates:
                raise Fault("no_logprobs", "the server gave none")
            outcome = "answered"
            self._store.answered(call, request, reply, used)
            await self._store.commit()
            self._latencies.append(time.perf_counter() - started)
            if reply.model != self._config.model:
                self.other_model = reply.model
            return reply
        except Fault as fault:
            outcome, detail, paid = fault.kind, fault.detail, fault.kind not in UNPAID
            if not paid:
                used = Spent(calls=1)
            raise
        finally:
            if outcome != "answered":
                self._store.failed(call, outcome, detail, paid=paid)
            await self.spending.settle(estimate, used)

    def _request(self, body: dict[str, Any]) -> Request:
        return Request(
            body=body,
            choices=self._template.choices,
            prompt=self._template.identity,
            base_url=self.transport.base_url,
        )
