"""Says loudly, and once each time, that the labeller cannot do its work; training goes on."""

import warnings
from collections import Counter
from collections.abc import Sequence

from marl.config.llm import LlmConfig
from marl.preferences.llm.asker import Asker
from marl.preferences.llm.faults import Fault
from marl.preferences.llm.judge import Judgement


class LabellerWarning(UserWarning):
    """The labeller is in trouble; training goes on with the answers it has."""


class Trouble:
    """Turns what happened into warnings: when it starts, and again when it is over."""

    def __init__(self, asker: Asker, config: LlmConfig) -> None:
        self._asker, self._config = asker, config
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
                f"a cap is reached ({self._asker.spending}); at_cap = {self._config.at_cap}",
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
        if other := self._asker.other_model:
            self.tell_once("model", f"the server answers as {other!r}")

    def tell_once(self, topic: str, message: str) -> None:
        """Warn about a topic unless that was done before."""
        if topic not in self._told:
            self._told.add(topic)
            self._warn(message)

    def _warn(self, message: str) -> None:
        model, server = self._config.model, self._asker.transport.base_url
        warnings.warn(f"{model} at {server}: {message}", LabellerWarning, stacklevel=5)
