"""Requests in, replies or faults out: from the cache first, then from the server.

An attempt is one HTTP exchange (`Transport`). A request is tried again after a passing fault, with
exponential back-off and jitter or after the server's Retry-After, within a deadline and a number
of attempts; a circuit breaker leaves a failing server alone for a while (`Client`).
"""

import asyncio
import itertools
import os
import random
import re
import sqlite3
import ssl
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2
import openai
import tenacity
from httpx2 import USE_CLIENT_DEFAULT

from marl.config import ConfigError
from marl.config.preferences import LlmConfig, check_url
from marl.preferences.llm.cache import AnswerCache, Spending, Spent
from marl.preferences.llm.prompts import Template
from marl.preferences.llm.protocol import (
    LASTING,
    PASSING,
    UNPAID,
    Fault,
    Reply,
    Request,
    after_thinking,
    choice_of,
    fault_of,
    parsed,
    parsed_models,
)
from marl.utils.text import one_line

NO_KEY = "none"
"""What a local server gets; the client insists on something."""
_HIDDEN = "[key]"
_SHORTEST_KEY = 6
"""A shorter one is a placeholder, such as EMPTY, and may well be part of an answer."""
OPENAI = "https://api.openai.com/v1"
MAX_BYTES = 2**20
"""Decoded bytes of a response that are read: beyond these, a reply is a fault. Every candidate at
every token that is asked for adds `_BYTES_A_CANDIDATE`."""
_BYTES_A_CANDIDATE = 256
MAX_DETAIL = 300
"""Characters of a fault's description that are kept."""
POOL_SIZE = 8
"""Questions at once that share a pool of connections: with every question a pool looks at all of
its connections, which for 64 of them took a fifth of the time."""

Sleep = Callable[[float], Awaitable[None]]


class CappedClient(httpx2.AsyncClient):
    """An HTTP client that reads no more than so many decoded bytes of a response, whatever its
    headers say, follows no redirect and keeps no cookie."""

    def __init__(self, max_bytes: int, **settings: Any) -> None:
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        super().__init__(follow_redirects=False, cookies=no_cookies, **settings)
        self._max_bytes = max_bytes

    async def send(
        self,
        request: httpx2.Request,
        *,
        stream: bool = False,
        auth: Any = USE_CLIENT_DEFAULT,
        follow_redirects: Any = USE_CLIENT_DEFAULT,
    ) -> httpx2.Response:
        """Return the response with its body read, as plain UTF-8, or raise a `Fault`."""
        request.headers["accept-encoding"] = "identity"
        response = await super().send(request, stream=True, auth=auth, follow_redirects=False)
        try:
            body = await self._body(response)
        finally:
            await response.aclose()
        kept = ("retry-after", "location")
        headers = {name: response.headers[name] for name in kept if name in response.headers}
        return httpx2.Response(response.status_code, headers=headers, content=body, request=request)

    async def _body(self, response: httpx2.Response) -> bytes:
        """Return the decoded body; gzip is read although none was asked for."""
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "", "gzip", "deflate"):
            raise Fault("garbled", f"the reply is compressed ({encoding[:40]!r}), unasked")
        inflate = zlib.decompressobj(wbits=47) if encoding in ("gzip", "deflate") else None
        body = bytearray()
        async for chunk in response.aiter_raw():
            room = self._max_bytes + 1 - len(body)
            try:
                body += chunk if inflate is None else inflate.decompress(chunk, room)
            except zlib.error as error:
                raise Fault("garbled", f"the reply is no {encoding}: {error}") from None
            if len(body) > self._max_bytes:
                raise Fault("garbled", f"the reply is larger than {self._max_bytes:,} bytes")
        return bytes(body)


class Transport:
    """A connection to the server of a configuration. Retries nothing and hides the key."""

    def __init__(self, config: LlmConfig) -> None:
        self.base_url = read_url(config)
        """The endpoint, also where the environment names it."""
        self._key = read_key(config, self.base_url)
        self._timeout = config.timeout
        pools = -(-config.concurrency // POOL_SIZE)
        certificates = ssl.create_default_context()
        candidates = config.soft_tokens * (1 + config.top_logprobs)
        max_bytes = MAX_BYTES + _BYTES_A_CANDIDATE * candidates
        self._clients = [
            openai.AsyncOpenAI(
                base_url=self.base_url,
                api_key=self._key or NO_KEY,
                max_retries=0,
                timeout=config.timeout,
                http_client=CappedClient(max_bytes, timeout=config.timeout, verify=certificates),
            )
            for _ in range(pools)
        ]
        self._turns = itertools.cycle(self._clients)

    async def send(self, body: dict[str, Any]) -> Reply:
        """Return the reply to one request, or raise a `Fault`.

        `body` is what goes over the wire. The client's own time-out is per read, and a body that
        sends a little at a time could take for ever: the timeout here is that of the whole attempt.
        """
        try:
            async with asyncio.timeout(self._timeout):
                # As extra body the messages go out as they are; the client would rebuild them.
                response = await next(self._turns).chat.completions.with_raw_response.create(
                    model=body["model"], messages=(), extra_body=body
                )
            return parsed(response.content, self.hide_key)
        except TimeoutError:
            raise Fault("timeout", f"no complete reply within {self._timeout:g} s") from None
        except Exception as error:
            raise self._fault(error) from None

    async def models(self) -> list[str]:
        """Return the models that the server lists, or raise a `Fault`."""
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._clients[0].models.with_raw_response.list()
            return parsed_models(response.content)
        except TimeoutError:
            raise Fault("timeout", f"no list of models within {self._timeout:g} s") from None
        except Exception as error:
            raise self._fault(error) from None

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            await client.close()

    def _fault(self, error: Exception) -> Fault:
        """Return what an exception stands for, with the key hidden and nothing attached."""
        fault = fault_of(error)
        detail = one_line(self.hide_key(fault.detail), MAX_DETAIL)
        return Fault(fault.kind, detail, fault.retry_after)

    def hide_key(self, text: str) -> str:
        """Return a text without the key, nor what a server may echo of it."""
        if len(self._key) >= _SHORTEST_KEY:
            text = text.replace(self._key, _HIDDEN)
        return re.sub(r"\b(sk|key)-[\w*.-]+", _HIDDEN, text)


def read_url(config: LlmConfig) -> str:
    """Return the endpoint: of the settings, of the environment, or OpenAI's own.

    One that could carry a secret is refused: addresses are recorded.
    """
    url, origin = config.base_url, "preferences.llm.base_url"
    if not url:
        url = os.environ.get("OPENAI_BASE_URL", "").strip() or OPENAI
        origin = "the environment variable OPENAI_BASE_URL"
    check_url(url, origin)
    return url.rstrip("/")


def read_key(config: LlmConfig, base_url: str) -> str:
    """Return the key from the environment, empty where a server of one's own needs none."""
    if not config.api_key_env.isidentifier():
        raise ConfigError(
            "preferences.llm.api_key_env: expected the name of an environment variable, such as "
            "OPENAI_API_KEY, and not a key"
        )
    key = os.environ.get(config.api_key_env, "").strip()
    if not key and base_url == OPENAI and not config.offline:
        raise ConfigError(
            f"preferences.llm: the environment variable {config.api_key_env} is not set; set it, "
            "or name a server of your own by preferences.llm.base_url"
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"preferences.llm: the environment variable {config.api_key_env} holds a character "
            "that no key has, such as a line break; set it anew"
        )
    return key


class Breaker:
    """A circuit breaker: after `limit` failures in a row it opens, nothing is asked for `seconds`.

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


class Client:
    """Answers requests; never raises for what a server does."""

    def __init__(
        self,
        config: LlmConfig,
        template: Template,
        cache: AnswerCache,
        transport: Transport,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`sleep` waits between two attempts, `clock` is the circuit breaker's time."""
        self._config, self._template, self._cache = config, template, cache
        self._sleep = sleep
        self._rng = random.Random()  # only for waits, which are no part of a result
        self._backoff = tenacity.wait_exponential(multiplier=config.backoff, max=config.max_backoff)
        self.transport = transport
        self.spending = Spending(config, cache.spent(), cache.note("seconds") or 0.0)
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
            trial = next((k for k, r in pending.items() if self._cache.reply(k) is None), None)
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
        request = Request(
            body=body,
            choices=self._template.choices,
            prompt=self._template.identity,
            base_url=self.transport.base_url,
        )
        kept = None if afresh else self._cache.reply(request.key)
        if kept is not None:
            return kept
        async for attempt in self._retrying(attempts=2):
            with attempt:
                return await self._attempt(request)
        raise AssertionError("tenacity ends by an answer or its last error")

    def metrics(self) -> dict[str, float]:
        """Return what this process asked and what went wrong, what the cache's life has spent,
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
                reply = self._cache.reply(variant.key)
                if reply is not None:
                    self.counts["cache_hits"] += 1
                else:
                    self._check_asking(variant.key)
                    async with places:
                        reply = await self._with_retries(variant)
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
                self.counts["fault_cache"] += 1
                fault = Fault("cache", f"{self._cache.path}: {error}")
                break
        return fault

    def _check_asking(self, key: str) -> None:
        """Raise a `Fault` where a question must not be sent at all."""
        if self.spending.is_out_of_time:
            raise Fault("budget", "the time to wait for the model is used up")
        if self._config.offline:
            raise Fault("offline", "not in the cache, and preferences.llm.offline is set")
        if self._config.in_doubt == "abstain" and self._cache.is_in_doubt(key):
            raise Fault("in_doubt", "under way when an earlier process was killed")

    def _check_usable(self, request: Request, reply: Reply) -> None:
        """Raise a `Fault` for a reply that carries no answer of the promised form."""
        is_soft = "logprobs" in request.body
        if is_soft and reply.candidates:
            return
        if not is_soft and choice_of(reply.text, request.choices) is not None:
            return
        if reply.finish == "length" and not after_thinking(reply.text):
            setting = "soft_tokens" if is_soft else "max_tokens"
            raise Fault(
                "length",
                f"cut off before its answer after {getattr(self._config, setting)} tokens; raise "
                f'preferences.llm.{setting}, or set preferences.llm.thinking = "off"',
            )
        said = f"said {reply.text[:80]!r}, finish reason {reply.finish!r}"
        raise Fault("unusable", f"no log-probabilities; {said}" if is_soft else said)

    async def _with_retries(self, request: Request) -> Reply:
        """Return the reply to a request, tried until attempts or time run out."""
        last: Fault | None = None
        try:
            async with asyncio.timeout(self._config.deadline):
                async for attempt in self._retrying(self._config.attempts):
                    with attempt:
                        if self.breaker.is_open:
                            raise last or Fault("breaker", "the server failed too often just now")
                        try:
                            reply = await self._attempt(request)
                        except Fault as fault:
                            last = fault
                            self._note_failure(fault)
                            raise
                        self.breaker.succeeded()
                        return reply
        except TimeoutError:
            self.breaker.failed()
        waited = f"no reply within {self._config.deadline:g} s"
        raise Fault("deadline", f"{waited}; the last failure was {last}" if last else waited)

    def _retrying(self, attempts: int) -> tenacity.AsyncRetrying:
        """Return how often, and after which waits, a passing fault is tried again."""
        return tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(attempts),
            wait=self._wait,
            retry=tenacity.retry_if_exception(self._may_retry),
            sleep=self._sleep,
            before_sleep=self._count_retry,
            reraise=True,
        )

    def _may_retry(self, error: BaseException) -> bool:
        return (
            isinstance(error, Fault)
            and error.kind in PASSING
            and error.retry_after <= self._config.deadline
            and not self.breaker.is_open
        )

    def _wait(self, state: tenacity.RetryCallState) -> float:
        """Return the seconds before the next attempt: doubling, half of them at random, or what
        the server asks for.

        The random half keeps many questions that failed together from coming back together.
        """
        fault = None if state.outcome is None else state.outcome.exception()
        asked = fault.retry_after if isinstance(fault, Fault) else 0.0
        return max(self._backoff(state) * self._rng.uniform(0.5, 1.0), asked)

    def _count_retry(self, _: tenacity.RetryCallState) -> None:
        self.counts["retries"] += 1

    def _note_failure(self, fault: Fault) -> None:
        """Tell the breaker; a question that only this server rejects says nothing about it."""
        if fault.kind in PASSING or fault.kind in LASTING:
            too_long = fault.retry_after > self._config.deadline
            self.breaker.failed(
                lasting=fault.kind in LASTING or too_long, retry_after=fault.retry_after
            )

    async def _attempt(self, request: Request) -> Reply:
        """Return the reply to one attempt, paid, counted and kept, or raise its `Fault`."""
        estimate = self.spending.estimate(request.body)
        await self.spending.reserve(estimate)
        used = estimate
        try:
            call = self._cache.begin(request, estimate)
            started = time.perf_counter()
            outcome, detail, paid = "cancelled", "", True
            self.counts["calls"] += 1
            try:
                await self._cache.commit()
                reply = await self.transport.send(request.body)
                used = self.spending.used(reply, estimate)
                if "logprobs" in request.body and reply.text.strip() and not reply.candidates:
                    raise Fault("no_logprobs", "the server gave none")
                outcome = "answered"
                self._cache.answered(call, request, reply, used)
                await self._cache.commit()
            except Fault as fault:
                outcome, detail, paid = fault.kind, fault.detail, fault.kind not in UNPAID
                if not paid:
                    used = Spent(calls=1)
                raise
            finally:
                if outcome != "answered":
                    self._cache.failed(call, outcome, detail, paid=paid)
        finally:
            await self.spending.settle(estimate, used)
        self._latencies.append(time.perf_counter() - started)
        if reply.model not in ("", self._config.model):
            self.other_model = reply.model
        return reply
