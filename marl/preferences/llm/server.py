"""Getting to know a server: does it have the model, what can it do, is the model any good."""

import hashlib
import json
from collections.abc import Sequence
from functools import partial

from marl.config import ConfigError
from marl.config.llm import LlmConfig
from marl.preferences.llm.asker import Asker
from marl.preferences.llm.capabilities import probe
from marl.preferences.llm.faults import LASTING, Fault
from marl.preferences.llm.judge import Judge
from marl.preferences.llm.preflight import Figures, figures
from marl.preferences.llm.prompts import Template
from marl.preferences.llm.requests import Features
from marl.preferences.llm.store import AnswerStore

_CONCLUSIVE = frozenset(("answered", "tie", "margin", "low_mass", "disagreement", "unusable"))
"""Outcomes that say something about the model, not about the server or the caps."""


class Server:
    """What is known about the server; found out once and noted in the store."""

    def __init__(
        self, config: LlmConfig, template: Template, store: AnswerStore, asker: Asker
    ) -> None:
        self._config, self._template, self._store, self._asker = config, template, store, asker
        about = (config.model, config.thinking, config.use_grammar, config.top_logprobs)
        limits = (config.max_tokens, config.soft_tokens)
        words = json.dumps([asker.transport.base_url, template.identity, *limits, *about])
        self._note = f"features:{hashlib.sha256(words.encode()).hexdigest()}"
        self._is_outdated = False
        noted = store.note(self._note)
        self.features: Features | None = None if noted is None else frozenset(noted)

    async def get_ready(self) -> Features:
        """Return what the server can do, asking it unless that is known.

        Raises the `Fault` that is in the way, or `ConfigError` if it does not have the model.
        """
        if self.features is not None:
            return self.features
        if self._config.offline:
            raise Fault("offline", "the store knows nothing about this server and model")
        if self._asker.spending.is_out_of_time:
            raise Fault("budget", "the time to wait for the model is used up")
        if self._asker.breaker.is_open:
            raise Fault("breaker", "the server failed too often just now")
        try:
            await self._check_model()
            send = partial(self._asker.probe, afresh=self._is_outdated)
            self.features = await probe(send, self._template, self._config)
        except Fault as fault:
            self._asker.counts[f"fault_{fault.kind}"] += 1
            self._asker.breaker.failed(lasting=True, retry_after=fault.retry_after)
            raise
        self._asker.breaker.succeeded()
        self._store.set_note(self._note, sorted(self.features))
        return self.features

    def forget(self) -> None:
        """Ask anew what the server can do before the next questions."""
        self.features = None
        self._is_outdated = True

    async def _check_model(self) -> None:
        """Raise `ConfigError` if the server lists its models and this one is not among them."""
        try:
            models = await self._asker.transport.models()
        except Fault as fault:
            if fault.kind in ("missing", "garbled", "rejected"):
                return  # not every server has such a list
            raise
        if models and self._config.model not in models:
            shown = ", ".join(models[:20])
            raise ConfigError(
                f"preferences.llm.model: {self._asker.transport.base_url} has no "
                f"{self._config.model!r}; it lists {shown}"
            )


def must_be_changed(fault: Fault) -> bool:
    """Return whether a fault at the start can only be mended by the user."""
    return fault.kind in LASTING or fault.kind == "rejected"


async def preflight(
    judge: Judge, features: Features, known: Sequence[tuple[str, str]], template: Template
) -> Figures | None:
    """Return the figures on pairs with known answers, or raise the `Fault` in the way.

    Pairs in doubt since an earlier kill are left out rather than paid for twice; None if no
    others are left.
    """
    judgements = await judge.judge(known, features)
    sure = [judgement for judgement in judgements if judgement.verdict.outcome != "in_doubt"]
    scores = [score for judgement in sure for score in judgement.scores]
    for score in scores:
        if isinstance(score, Fault) and score.kind not in _CONCLUSIVE:
            raise score
    if not sure:
        return None
    return figures([judgement.verdict for judgement in sure], scores, template.choices[0])
