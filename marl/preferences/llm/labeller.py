"""The language-model labeller: episode pairs in, P(first preferred) out.

Axes: B pairs.
"""

import asyncio
import math
import sqlite3
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from anyio.from_thread import BlockingPortal, start_blocking_portal
from jaxtyping import Float
from torch import Tensor

from envs import EnvSpec
from marl.config import ConfigError
from marl.config.preferences import AskForm, LlmConfig
from marl.preferences.labellers import EpisodePairs, Labeller, checked_labels, name_of
from marl.preferences.llm.cache import AnswerCache, BudgetError, Labelled
from marl.preferences.llm.client import Client, Sleep, Transport
from marl.preferences.llm.preflight import Figures, Server, must_be_changed, preflight
from marl.preferences.llm.prompts import (
    Describe,
    described,
    load_template,
    make_description,
)
from marl.preferences.llm.protocol import Fault, Features
from marl.preferences.llm.verdicts import Judge, Judgement, Score, Verdict

P = ParamSpec("P")
T = TypeVar("T")
Texts = Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A pair as the model is asked about it."""

    first: str
    """What is told of the first episode."""
    second: str
    numbers: tuple[int, int]
    """Of the two episodes in their run."""
    returns: tuple[float, float]


def asked_about(describe: Describe, name: str, pairs: EpisodePairs) -> list[Asked]:
    """Return pairs as the model is asked about them; `name` is that of the description."""
    sides = pairs.first, pairs.second
    texts = zip(*(described(describe, name, side) for side in sides), strict=True)
    numbers = zip(*(side.numbers.tolist() for side in sides), strict=True)
    returns = zip(*(side.returns.tolist() for side in sides), strict=True)
    return [
        Asked(first=first, second=second, numbers=number, returns=gained)
        for (first, second), number, gained in zip(texts, numbers, returns, strict=True)
    ]


def completed(
    verdicts: Sequence[Verdict], pairs: EpisodePairs, fallbacks: Sequence[Labeller]
) -> Float[Tensor, "B"]:
    """Return the labels of some pairs; what a cap left open is answered by a fallback."""
    labels = torch.tensor([verdict.label for verdict in verdicts])
    rows = torch.tensor([verdict.outcome == "budget" for verdict in verdicts]).nonzero().squeeze(-1)
    for fallback in fallbacks if len(rows) else ():
        answers = checked_labels(fallback, name_of(fallback), pairs.rows(rows))
        labels[rows] = answers.to(labels.device)
    return labels


class LabellerWarning(UserWarning):
    """The labeller cannot do its work; training goes on with the answers it has."""


class LabelCounts:
    """Counts of labels: how many, why not, and how biased."""

    def __init__(self, form: AskForm) -> None:
        self._form = form
        self._counts: Counter[str] = Counter()

    def add(self, judgements: Sequence[Judgement]) -> None:
        """Count judged pairs."""
        for judgement in judgements:
            verdict = judgement.verdict
            if math.isnan(verdict.label):
                self._counts["abstained"] += 1
                self._counts[f"abstained_{verdict.outcome}"] += 1
            else:
                self._counts["answered"] += 1
                self._counts["ties"] += verdict.label == 0.5
            scores = [score for score in judgement.scores if isinstance(score, Score)]
            self._counts["scores"] += len(scores)
            self._counts["firsts"] += sum(score.takes_first for score in scores)
            if len(scores) == 2:
                self._counts["whole"] += 1
                self._counts["flips"] += verdict.flipped

    def add_fallbacks(self, count: int) -> None:
        """Count pairs that another labeller was asked about, since a cap was reached."""
        self._counts["fallbacks"] += count

    def metrics(self) -> dict[str, float]:
        """Return the counts and rates; rates are NaN before there is anything to count.

        The share of the first choice ("A", or the good grade) is over hard answers; far from one
        half the model follows the position, or does not tell the episodes apart. The flip rate is
        the share of pairs in which the two orders preferred different episodes.
        """
        counts = self._counts
        shown = {"answered": 0.0, "abstained": 0.0, "ties": 0.0} | {
            name: float(count)
            for name, count in counts.items()
            if name not in ("scores", "firsts", "whole", "flips")
        }
        shown["first_choice_share"] = _share(counts["firsts"], counts["scores"])
        if self._form == "pairwise":
            shown["flip_rate"] = _share(counts["flips"], counts["whole"])
        return {f"llm_{name}": value for name, value in shown.items()}

    def state_dict(self) -> dict[str, int]:
        """Return the counts."""
        return dict(self._counts)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from `state_dict()`."""
        self._counts = Counter(state)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


class FaultReporter:
    """Turns faults into warnings: when answers cease, and again when they come back."""

    def __init__(self, client: Client, config: LlmConfig) -> None:
        self._client, self._config = client, config
        self._told: set[str] = set()
        self._is_down = False

    def report(self, judgements: Sequence[Judgement]) -> None:
        """Warn where no pair of a batch was answered, where a cap is reached, and where a model
        gives another name than the one asked for."""
        faults = [s for j in judgements for s in j.scores if isinstance(s, Fault)]
        kinds = Counter(fault.kind for fault in faults)
        if kinds.pop("budget", 0):
            self.tell_once(
                "budget",
                f"a cap is reached ({self._client.spending}); at_cap = {self._config.at_cap}",
            )
        failed = [fault for fault in faults if fault.kind != "budget"]
        is_down = bool(failed) and all(isinstance(s, Fault) for j in judgements for s in j.scores)
        if is_down and not self._is_down:
            # The failure itself says more than the breaker that it opened.
            telling = [f for f in failed if f.kind != "breaker"] or failed
            self._warn(
                f"no answer to any of {len(judgements)} pairs ({telling[0]}). Training goes on "
                f"with the answers it has; tried again after {self._config.breaker_seconds:g} s"
            )
        elif self._is_down and judgements and not faults:
            self._warn("answers again")
        self._is_down = is_down or (self._is_down and bool(faults))
        if other := self._client.other_model:
            self.tell_once("model", f"the server answers as {other!r}")

    def tell_once(self, topic: str, message: str) -> None:
        """Warn about a topic unless that was done before."""
        if topic not in self._told:
            self._told.add(topic)
            self._warn(message)

    def _warn(self, message: str) -> None:
        model, server = self._config.model, self._client.transport.base_url
        warnings.warn(f"{model} at {server}: {message}", LabellerWarning, stacklevel=5)


class LlmLabeller:
    """Asks a language model; where the server fails, pairs have no answer and the run goes on.

    It raises `ConfigError` for what only the user can change, and `BudgetError` at a cap where
    the configuration says so. `fallback` answers once a cap is reached, if it is given. All that
    was learned about the server, and every answer, is in the cache: asked before, it costs
    nothing and needs no network. `run` is the identity under which the audit finds the pairs.
    """

    def __init__(
        self,
        config: LlmConfig,
        spec: EnvSpec,
        fallback: Labeller | None = None,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        run: str = "",
    ) -> None:
        if not config.model:
            raise ConfigError(
                "preferences.llm.model: not set; name the model as its server lists it"
            )
        self.config = config
        self.template = load_template(config.prompt, config.ask)
        self._describe = make_description(config.describe, spec)
        self.labellers: tuple[Labeller, ...] = () if fallback is None else (fallback,)
        """The labeller that takes over at a cap, if there is one."""
        self._known = self._known_answers()
        transport = Transport(config)
        self.cache = AnswerCache(Path(config.cache), run)
        self.client = Client(config, self.template, self.cache, transport, sleep, clock)
        self.server = Server(config, self.template, self.cache, self.client)
        self._judge = Judge(config, self.template, self.client.answers, transport.base_url)
        self._counts = LabelCounts(config.ask)
        self._reporter = FaultReporter(self.client, config)
        resources = ExitStack()
        # A thread with an event loop of its own, so that training may itself run inside one.
        self._portal = resources.enter_context(start_blocking_portal("asyncio"))
        self.close = weakref.finalize(self, _close, self.cache, transport, self._portal, resources)
        """Frees the connections and the cache; called at the latest when the process ends."""
        self.figures: Figures | None = None
        """What the preflight found; None before it is done, and without one."""

    def __call__(self, pairs: EpisodePairs) -> Float[Tensor, "B"]:
        asked = asked_about(self._describe, self.config.describe, pairs)
        question = self.begin(asked)
        try:
            verdicts = self.end(asked, question)
        except BaseException:
            question.cancel()
            raise
        return completed(verdicts, pairs, self.labellers)

    def begin(self, asked: Sequence[Asked]) -> "Future[tuple[list[Judgement], float]]":
        """Start to ask, in a thread of its own; to be ended by `end`."""
        texts = [(pair.first, pair.second) for pair in asked]
        return self._portal.start_task_soon(self._timed, texts)

    def end(
        self, asked: Sequence[Asked], question: "Future[tuple[list[Judgement], float]]"
    ) -> list[Verdict]:
        """Wait for what `begin` has started, count it, keep it and return it.

        Raises `BudgetError` where a cap left a pair open and the configuration says so.
        """
        judgements, seconds = question.result()
        self._counts.add(judgements)
        self._reporter.report(judgements)
        self._keep(seconds, self._labelled(asked, judgements))
        verdicts = [judgement.verdict for judgement in judgements]
        if num_open := sum(verdict.outcome == "budget" for verdict in verdicts):
            if self.config.at_cap == "abort":
                raise BudgetError(
                    f"preferences.llm: a cap is reached ({self.client.spending}); every answer is "
                    f"in {self.cache.path}, where a run with a larger cap finds it for nothing"
                )
            if self.labellers:
                self._counts.add_fallbacks(num_open)
        return verdicts

    def start(self) -> None:
        """Probe the server and test the model before training starts.

        A server that cannot be reached is a warning: it is tried again at every call. One
        that refuses, and a model that fails the preflight, are a `ConfigError`.
        """
        try:
            self._wait_for(self._prepared)
        except Fault as fault:
            if must_be_changed(fault):
                raise ConfigError(
                    f"preferences.llm: {self.client.transport.base_url} turned the model "
                    f"{self.config.model!r} down ({fault})"
                ) from None
            self._reporter.tell_once(
                "start", f"not ready yet ({fault}); training starts without it"
            )

    def metrics(self) -> dict[str, float]:
        """Return counts of labels and their causes, and what they cost."""
        features = self.server.features
        candidates = math.nan if features is None else float(features.top_logprobs)
        return self._counts.metrics() | self.client.metrics() | {"llm_top_logprobs": candidates}

    def state_dict(self) -> dict[str, Any]:
        """Return the counts of labels; what was spent is in the cache."""
        return self._counts.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the counts of `state_dict()`."""
        self._counts.load_state_dict(state)

    def _known_answers(self) -> tuple[tuple[str, str], ...]:
        if self.config.preflight == "off":
            return ()
        if self.template.known:
            return self.template.known
        raise ConfigError(
            f"preferences.llm.prompt: {self.template.name} has no [[known]] pairs to check the "
            'model on; add some, or set preferences.llm.preflight = "off"'
        )

    def _wait_for(self, work: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what asynchronous work returns; an interrupt of the caller cancels it."""
        future = self._portal.start_task_soon(partial(work, *args, **kwargs))
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def _prepared(self) -> Features:
        """Return the server's features once the preflight is passed.

        Raises the `Fault` in the way, or `ConfigError` where the model is not there or unfit.
        """
        features = await self.server.ready()
        if features.top_logprobs < self.config.top_logprobs:
            self._reporter.tell_once(
                "way",
                f"is asked by {features.way_of_asking(self.config)}, for the server does not give "
                f"{self.config.top_logprobs} log-probabilities (preferences.llm.top_logprobs)",
            )
        if self._known:
            self.figures = await preflight(
                self._judge, features, self._known, self.template, self.config
            )
            if self.figures is not None:
                self._consider(self.figures)
            self._known = ()
        return features

    def _consider(self, found: Figures) -> None:
        """Refuse, or warn of, a model that does badly on known answers."""
        message = f"{self.config.model}: {found}"
        if found.accuracy < self.config.preflight_accuracy:
            if self.config.preflight == "refuse":
                raise ConfigError(
                    f"preferences.llm: the model fails the preflight. {message}. Choose another "
                    "model, prompt or way to ask, or accept it by preferences.llm.preflight = "
                    '"allow"'
                )
            self._reporter.tell_once("preflight", f"the model fails it, but is allowed. {message}")
        elif found.is_one_sided:
            self._reporter.tell_once("preflight", f"is one-sided. {message}")

    async def _timed(self, texts: Texts) -> tuple[list[Judgement], float]:
        """Return a judgement per pair, and the seconds that they took."""
        started = time.monotonic()
        return await self._judgements(texts), time.monotonic() - started

    async def _judgements(self, texts: Texts) -> list[Judgement]:
        """Return a judgement per pair, within the time that is left."""
        if not texts:
            return []
        try:
            async with asyncio.timeout(self.client.spending.seconds_left):
                return await self._judged(texts)
        except TimeoutError:
            self.client.spending.time_is_up = True
        return await self._judged(texts)  # what came in time is in the cache by now

    async def _judged(self, texts: Texts) -> list[Judgement]:
        try:
            features = await self._prepared()
        except Fault as fault:
            return _without_answers(fault, len(texts))
        except ConfigError as error:  # a server that was not there when training started
            self.client.counts["fault_unfit"] += 1
            self.client.breaker.failed(lasting=True)
            return _without_answers(Fault("unfit", str(error)), len(texts))
        judgements = await self._judge.judge(texts, features)
        if all(judgement.verdict.outcome == "no_logprobs" for judgement in judgements):
            self.server.forget()
        return judgements

    def _keep(self, seconds: float, labelled: Sequence[Labelled]) -> None:
        """Keep the time spent waiting, which outlives the process, and the labels."""
        self.client.spending.seconds += seconds
        try:
            self.cache.set_note("seconds", self.client.spending.seconds)
            self.cache.add_labels(labelled)
        except sqlite3.Error as error:
            self._reporter.tell_once("cache", f"{self.cache.path} cannot be written: {error}")

    def _labelled(self, asked: Sequence[Asked], judgements: Sequence[Judgement]) -> list[Labelled]:
        """Return the pairs as the audit wants them, answered or not."""
        return [
            Labelled(
                template=self.template,
                model=self.config.model,
                scores=judgement.scores,
                verdict=judgement.verdict,
                **vars(pair),
            )
            for pair, judgement in zip(asked, judgements, strict=True)
        ]


def _without_answers(fault: Fault, count: int) -> list[Judgement]:
    nothing = Verdict(label=math.nan, outcome=fault.kind)
    return [Judgement(verdict=nothing, scores=(fault, fault))] * count


def _close(
    cache: AnswerCache, transport: Transport, portal: BlockingPortal, resources: ExitStack
) -> None:
    portal.call(transport.close)
    resources.close()
    cache.close()
