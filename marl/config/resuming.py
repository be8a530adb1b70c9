"""What may be another setting when a run goes on."""

import difflib
from collections.abc import Mapping
from typing import Any

from marl.config.io import config_from_dict, flat, set_dotted, to_dict
from marl.config.schema import Config
from marl.config.validation import ConfigError

MAY_CHANGE = (
    "total_steps",
    "checkpoint_every",
    "keep_checkpoints",
    "threads",
    "eval.every",
    "eval.episodes",
    "eval.num_envs",
    "preferences.max_labels",
    "preferences.deadline",
    "preferences.llm.max_calls",
    "preferences.llm.max_total_tokens",
    "preferences.llm.max_cost",
    "preferences.llm.max_seconds",
    "preferences.llm.concurrency",
    "preferences.llm.timeout",
    "preferences.llm.deadline",
    "preferences.llm.attempts",
)
"""Lengths, budgets, and how things are done that change no number."""


def changed(config: Config, changes: Mapping[str, Any], where: str) -> Config:
    """Return a run's settings with some of `MAY_CHANGE` changed; `where` names them in errors."""
    for name in changes:
        if name not in MAY_CHANGE:
            last = name.rpartition(".")[2]
            near = [one for one in MAY_CHANGE if one.rpartition(".")[2] == last]
            near = near or difflib.get_close_matches(name, MAY_CHANGE, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(
                f"{where}: {name} cannot change when a run goes on{hint} What can: "
                f"{', '.join(MAY_CHANGE)}. For anything else begin a new run from what this one "
                "has learned: marl train --init RUN"
            )
    values = to_dict(config)
    set_dotted(values, changes, where)
    return config_from_dict(values, where)


def fixed_differences(saved: Config, now: Config) -> list[str]:
    """Return what differs between two settings of a run that may not change, in words."""
    before, after = flat(to_dict(saved)), flat(to_dict(now))
    return [
        f"{key} ({before.get(key)!r} there, {after.get(key)!r} here)"
        for key in sorted(before | after)
        if key not in MAY_CHANGE and before.get(key) != after.get(key)
    ]
