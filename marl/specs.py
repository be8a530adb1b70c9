"""The environment's constants in a checkpoint, and whether it still is what it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from envs import EnvSpec, VecEnv, open_env
from marl.config import Config, ConfigError
from marl.config.files import build, plain


def saved_spec(spec: EnvSpec) -> dict[str, Any]:
    """Return a spec as plain values for a checkpoint; `num_envs` says nothing there and is 1."""
    values: dict[str, Any] = plain(replace(spec, num_envs=1))
    return values


def spec_in(saved: dict[str, Any], config: Config, where: str) -> EnvSpec:
    """Return the spec in a checkpoint that `where` names, without making the environment.

    Checkpoints of format 2 of a run hold none: there, the environment is made to ask it.
    """
    if "spec" in saved:
        return build(EnvSpec, saved["spec"], where, "spec.")
    with open_env(config.env.name, 1, **config.env.options) as env:
        return env.spec


@contextmanager
def reopened_env(config: Config, spec: EnvSpec, num_envs: int) -> Iterator[VecEnv]:
    """Yield copies of the environment in which a policy with this `spec` was trained, to be closed.

    Raises `ConfigError` if it has changed since.
    """
    with open_env(config.env.name, num_envs, **config.env.options) as env:
        check_same_spec(spec, env.spec, "the policy was trained")
        yield env


def check_same_spec(before: EnvSpec, now: EnvSpec, what: str) -> None:
    """Raise `ConfigError` naming what has changed in an environment since `what` was the case.

    The number of copies may differ, and the words in which facts are described.
    """
    then, here = _compared(before), _compared(now)
    changed = [name for name in then if then[name] != here[name]]
    if changed:
        raise ConfigError(
            f"{now.name} has changed since {what}: "
            + ", ".join(f"{k} (was {then[k]!r}, is {here[k]!r})" for k in changed)
            + "; bring the environment as it was, in code, options and versions"
        )


def _compared(spec: EnvSpec) -> dict[str, Any]:
    values = {f.name: getattr(spec, f.name) for f in fields(spec) if f.name != "num_envs"}
    return values | {"facts": [fact.name for fact in spec.facts]}
