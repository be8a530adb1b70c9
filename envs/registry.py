"""Environments by name: `make_env("particles/nav_6", num_envs=64)` or `"my_envs:TwoKeys"`."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from envs import particles, probes
from envs.base import EnvError, VecEnv
from envs.step_checks import MEMBERS, missing_members

_IMPORT_PATH_HINT = "an import path such as my_envs:TwoKeys"


@dataclass(frozen=True)
class _Maker:
    """What is called to make an environment, and the options that its name already fixes."""

    call: Callable[..., Any]
    fixed: dict[str, Any]


def make_env(name: str, num_envs: int, **options: Any) -> VecEnv:
    """Return the environment `name` with `num_envs` copies.

    `name` is one of `env_names()`, another size of the same family (`particles/nav_9`), or
    `module:Class`, imported with the working directory on the path and called as
    ``Class(num_envs=..., **options)``.
    """
    maker = _from_import_path(name) if ":" in name else _from_family(name)
    _check_options(name, maker, options)
    env = maker.call(num_envs=num_envs, **maker.fixed, **options)
    missing = missing_members(env)
    if missing:
        raise EnvError(
            f"{name} made a {type(env).__name__} without {', '.join(missing)}; "
            f"an environment has {', '.join(MEMBERS)} (see envs.VecEnv)"
        )
    made: VecEnv = env
    return made


def env_names() -> list[str]:
    """Return the names that `make_env` knows, grouped by family."""
    return [
        f"{family}/{member}" for family, (members, _) in _FAMILIES.items() for member in members()
    ]


def _mamujoco_members() -> list[str]:
    """Return the usual ways to cut each body; segmented bodies can be cut in others."""
    from envs.mamujoco import MAMUJOCO_NAMES

    return list(MAMUJOCO_NAMES)


def _mamujoco(member: str) -> _Maker | None:
    """Return the maker of one body cut into agents, e.g. `halfcheetah_2x3`."""
    from envs.mamujoco import MaMuJoCo, scenario_from_name

    bodies = {name.partition("_")[0] for name in _mamujoco_members()}
    if member.partition("_")[0] not in bodies:
        return None
    scenario, partition = scenario_from_name(member)
    return _Maker(MaMuJoCo, {"scenario": scenario, "partition": partition})


def _fleet_members() -> list[str]:
    """Return fleets of four; any number of bodies can be asked for."""
    from envs.fleet import FLEET_SCENARIOS

    return [f"{scenario.lower()}_4" for scenario in FLEET_SCENARIOS]


def _fleet(member: str) -> _Maker | None:
    """Return the maker of several bodies with one agent each, e.g. `halfcheetah_4`."""
    from envs.fleet import Fleet, fleet_from_name

    bodies = {name.partition("_")[0] for name in _fleet_members()}
    if member.partition("_")[0] not in bodies:
        return None
    scenario, num_bodies = fleet_from_name(member)
    return _Maker(Fleet, {"scenario": scenario, "num_bodies": num_bodies})


def _particles_members() -> list[str]:
    """Return the usual sizes; any number of agents can be asked for."""
    return ["nav_3", "nav_6", "nav_12", "spread_3"]


def _particles(member: str) -> _Maker | None:
    """Return the maker of a particle task, e.g. `nav_6`."""
    task, _, count = member.rpartition("_")
    calls = {"nav": particles.nav, "spread": particles.spread}
    if task not in calls or not count.isdecimal():
        return None
    return _Maker(calls[task], {"num_agents": int(count)})


def _probe(member: str) -> _Maker | None:
    """Return the maker of a task with a known optimum."""
    return _Maker(getattr(probes, member), {}) if member in probes.__all__ else None


_FAMILIES: dict[str, tuple[Callable[[], list[str]], Callable[[str], _Maker | None]]] = {
    "mamujoco": (_mamujoco_members, _mamujoco),
    "fleet": (_fleet_members, _fleet),
    "particles": (_particles_members, _particles),
    "probe": (lambda: list(probes.__all__), _probe),
}
"""Per family: the names it lists, and what finds a member's maker."""


def _from_family(name: str) -> _Maker:
    """Return the maker of a built-in environment, or raise with the names there are."""
    family, _, member = name.partition("/")
    maker = _FAMILIES[family][1](member) if family in _FAMILIES else None
    if maker is None:
        listing = "\n".join(
            f"  {group}/: {', '.join(members())}" for group, (members, _) in _FAMILIES.items()
        )
        raise EnvError(
            f"there is no environment {name!r}{_did_you_mean(name, env_names())}; "
            f"give {_IMPORT_PATH_HINT}, or one of\n{listing}"
        )
    return maker


def _from_import_path(name: str) -> _Maker:
    """Return what `module:attribute` names, found with the working directory on the path."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise EnvError(f"environment {name!r} lacks a side of its colon; give {_IMPORT_PATH_HINT}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that the user's own file fails to import is theirs to see.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise EnvError(
            f"environment {name!r}: no module {error.name!r} in {os.getcwd()} or the installed "
            f"packages; give {_IMPORT_PATH_HINT} and run where my_envs.py lies"
        ) from error
    if not callable(getattr(module, attribute, None)):
        there = [key for key, value in vars(module).items() if inspect.isclass(value)]
        raise EnvError(
            f"environment {name!r}: {module_name} has no class {attribute!r}"
            f"{_did_you_mean(attribute, there)}; its classes are {', '.join(there) or 'none'}"
        )
    return _Maker(getattr(module, attribute), {})


def _check_options(name: str, maker: _Maker, options: dict[str, Any]) -> None:
    """Raise on an option that the environment does not have, or that it needs and lacks."""
    parameters = inspect.signature(maker.call).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    if all(parameter.name != "num_envs" for parameter in parameters):
        raise EnvError(
            f"environment {name!r} takes no num_envs; "
            "it is called as Class(num_envs=..., **options)"
        )
    free = [p for p in parameters if p.name not in {"num_envs", *maker.fixed}]
    valid = [parameter.name for parameter in free]
    for option in options:
        if option in maker.fixed:
            raise EnvError(
                f"environment {name!r}: the name already sets {option}={maker.fixed[option]!r}; "
                f"choose another name instead of the option"
            )
        if option not in valid:
            raise EnvError(
                f"environment {name!r} has no option {option!r}{_did_you_mean(option, valid)}; "
                f"its options are {', '.join(valid) or 'none'}"
            )
    needed = [p.name for p in free if p.default is p.empty and p.name not in options]
    if needed:
        raise EnvError(f"environment {name!r} needs the option {', '.join(needed)}; give a value")


def _did_you_mean(word: str, known: list[str]) -> str:
    """Return a suggestion of the nearest known word, or nothing."""
    nearest = get_close_matches(word, known, n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""
