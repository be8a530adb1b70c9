"""Settings of the labeller that is another reward model, the section ``[preferences.model]``.

Defaults live here and nowhere else; `Config` holds one and checks the ranges.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A reward model learned before, from a run or by `marl fit-reward`."""

    run: str = ""
    """Folder of that run or fit; its newest checkpoint is read when training starts."""
    length_control: bool = True
    """Judge by S - c * length, with c such that longer episodes are worth as much as shorter ones
    in the mean over all pairs seen: the model's habit of preferring long or short episodes is not
    passed on. Switch it off where the length is what counts."""
    temperature: float = 0.0
    """t > 0 gives soft labels sigmoid(gap / t), where 1 is the model's own probability; 0 gives
    hard ones."""


MODEL_RANGES: dict[str, tuple[float, float]] = {"temperature": (0, 1e6)}
"""Smallest and largest legal value of each number."""
