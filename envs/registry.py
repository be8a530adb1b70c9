"""Environments by name: `make_env("particles/nav_6", num_envs=64)` or `"my_envs:two_keys"`.

The part of a name before the slash is a family of environments: one entry of `FAMILIES`, with the
names to list (`envs.catalogue`), and a module with a function `maker(member) -> Maker | None`,
which may accept more names. The module is imported when one of its names is used, never before.
A name with a colon is an import path of the user's own. What optional packages need to be
installed stands at the end.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from envs.base import EnvError, VecEnv, close_env
from envs.catalogue import (
    FLEET_NAMES,
    GYM_TEAMS,
    JAXMARL_TEAMS,
    JUMANJI_NAMES,
    MAMUJOCO_NAMES,
    PARTICLE_NAMES,
    PROBES,
    SMACV2_MAPS,
    SMAX_NAMES,
    VMAS_NAMES,
)
from envs.plugins import (
    NoSubmoduleError,
    callables_in,
    did_you_mean,
    explained,
    load_attribute,
    source_of,
)
from envs.sparse import SparseRewards
from envs.validation import MEMBERS, missing_members


@dataclass(frozen=True)
class Maker:
    """What is called to make an environment, and the options that its name already fixes."""

    call: Callable[..., Any]
    fixed: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Family:
    """Environments that one module makes."""

    module: str
    summary: str
    """One line for `marl envs`."""
    reward_mode: str = ""
    """How its rewards are paid unless the user says otherwise; empty: as the environments do."""
    names: Sequence[str] = ()
    """Its usual environments, after the slash; an empty name stands for the family's own."""
    needs: str = ""
    """Optional package that it needs, one of `EXTRAS` or `BY_HAND`; empty: none."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Optional packages that single environments need."""

    @property
    def is_installed(self) -> bool:
        """Whether what the family needs is there."""
        return _is_installed(self.needs)

    @property
    def how_to_install(self) -> str | None:
        """What to do to install what the family needs."""
        return install_hint(self.needs)

    def members(self) -> list[str]:
        """Return the names to list: those whose packages are installed."""
        return [name for name in self.names if _is_installed(self.packages.get(name, ""))]

    def maker(self, member: str) -> Maker | None:
        """Return how to make a member; None where there is none of that name.

        What the family needs must be installed.
        """
        found: Maker | None = importlib.import_module(self.module).maker(member)
        return found


FAMILIES: dict[str, Family] = {
    "mamujoco": Family(
        module="envs.mujoco.mamujoco",
        summary="one MuJoCo robot whose joints are shared among agents",
        reward_mode="episodic",
        names=MAMUJOCO_NAMES,
    ),
    "fleet": Family(
        module="envs.mujoco.fleet",
        summary="MuJoCo robots that share one return; any number, e.g. hopper_3",
        reward_mode="episodic",
        names=FLEET_NAMES,
    ),
    "particles": Family(
        module="envs.particles",
        summary="points on a plane that look for landmarks; any number, e.g. nav_9",
        reward_mode="episodic",
        names=PARTICLE_NAMES,
    ),
    "gym": Family(
        module="envs.adapters.gym_teams",
        summary="gymnasium teams by id (extras lbforaging, rware); your own: gym/my_envs:Team-v0",
        names=tuple(GYM_TEAMS),
        packages=GYM_TEAMS,
    ),
    "smax": Family(
        module="envs.jaxmarl.smax",
        summary="battles of scripted against learning units, in JAX; for 512 environments or more",
        reward_mode="episodic",
        needs="jaxmarl",
        names=SMAX_NAMES,
    ),
    "jaxmarl": Family(
        module="envs.jaxmarl.teams",
        summary="JaxMARL's other cooperative tasks, in JAX: Overcooked, Hanabi, particles",
        reward_mode="episodic",
        needs="jaxmarl",
        names=tuple(JAXMARL_TEAMS),
        packages=JAXMARL_TEAMS,
    ),
    "jumanji": Family(
        module="envs.jumanji",
        summary="Jumanji's teams, in JAX: robot warehouse, foraging, connector",
        reward_mode="episodic",
        needs="jumanji",
        names=JUMANJI_NAMES,
    ),
    "vmas": Family(
        module="envs.vmas",
        summary="robots on a plane, in PyTorch, batched",
        reward_mode="episodic",
        needs="vmas",
        names=VMAS_NAMES,
    ),
    "smacv2": Family(
        module="envs.smacv2",
        summary="StarCraft II itself: battles of teams drawn anew in every episode",
        reward_mode="episodic",
        needs="smacv2",
        names=SMACV2_MAPS,
    ),
    "probe": Family(
        module="envs.probes",
        summary="tiny tasks with a known optimum, to test learning",
        reward_mode="episodic",
        names=PROBES,
    ),
}
REWARD_OPTIONS = ("reward_mode", "reward_every", "reward_outcome")
"""Options of every environment: see `SparseRewards`."""
_EXAMPLE = "an import path such as my_envs:two_keys"


def make_env(name: str, num_envs: int, **options: Any) -> VecEnv:
    """Return a batch of `num_envs` environments of the task `name`.

    `name` is one of `env_names()`, another size of the same family (`particles/nav_9`), or
    `module:attribute`, imported with the working directory on the path and called as
    ``attribute(num_envs=..., **options)``; what takes no `num_envs` is called as the factory of a
    PettingZoo ``ParallelEnv``, and copied (`envs.adapters.pettingzoo`). With `reward_mode` any of
    them is paid by `SparseRewards`, which also has the other `REWARD_OPTIONS`. Without it the
    shipped families are paid as `FAMILIES` says, and what comes from an import path as it pays by
    itself. What has an option `reward_mode` of its own gets it and is not touched.
    """
    prefix = name.partition("/")[0]
    is_path = _is_path(name)
    maker = _imported_family(name) if is_path else _shipped(name)
    taken = inspect.signature(maker.call).parameters
    pays_itself = "reward_mode" in taken
    ours = () if pays_itself else REWARD_OPTIONS
    paid = {key: options.pop(key) for key in ours if key in options}
    _check_options(name, maker, options)
    is_theirs = is_path or prefix == "gym"
    own = explained(f"environment {name!r}: making it") if is_theirs else nullcontext()
    with own:
        env = maker.call(num_envs=num_envs, **maker.fixed, **options)
    missing = missing_members(env)
    if missing:
        raise EnvError(
            f"{name} made a {type(env).__name__} without {', '.join(missing)}; "
            f"an environment has {', '.join(MEMBERS)} (see envs.VecEnv); envs.SimulatedEnv has "
            "them all and asks for three functions of arrays"
        )
    made: VecEnv = env
    if getattr(made.spec, "num_envs", num_envs) != num_envs:
        raise EnvError(
            f"{name!r} was asked for {num_envs} environments and made {made.spec.num_envs}; "
            f"give EnvSpec the num_envs that {source_of(maker.call)} is called with"
        )
    default = "" if is_path else FAMILIES[prefix].reward_mode
    if pays_itself or not (paid or default):
        return made
    return SparseRewards(made, **({"reward_mode": default or "dense"} | paid))


@contextmanager
def open_env(name: str, num_envs: int, **options: Any) -> Iterator[VecEnv]:
    """Yield what `make_env` makes, and close it afterwards."""
    env = make_env(name, num_envs, **options)
    try:
        yield env
    finally:
        close_env(env)


def env_names() -> list[str]:
    """Return the names that `make_env` knows and can make here, grouped by family."""
    return [
        f"{prefix}/{member}" if member else prefix
        for prefix, family in FAMILIES.items()
        if family.is_installed
        for member in family.members()
    ]


def _is_installed(package: str) -> bool:
    """Return whether an optional package is there; an empty name stands for none."""
    return not package or find_spec(package) is not None


def _family_of(name: str) -> Family:
    """Return the installed family that a name begins with."""
    family = FAMILIES.get(name.partition("/")[0])
    if family is None:
        raise EnvError(f"there is no environment {name!r}{_instead(name)}")
    if not family.is_installed:
        raise EnvError(f"environment {name!r} is not installed: {family.how_to_install}")
    return family


def _shipped(name: str) -> Maker:
    """Return the maker of a member of a family."""
    prefix, _, member = name.partition("/")
    family = _family_of(name)
    maker = family.maker(member)
    if maker is None:
        names = [f"{prefix}/{known}" if known else prefix for known in family.members()]
        raise EnvError(
            f"there is no environment {name!r}{did_you_mean(name, names)}; after {prefix}/ there "
            f"are {', '.join(family.members()) or 'none'}"
        )
    return maker


def _instead(name: str) -> str:
    """Return what to give instead of an unknown name, which may be that of a file."""
    file = Path(f"{name.removesuffix('.py')}.py")
    if file.is_file():
        makers = [f"{file.stem}:{maker}" for maker in callables_in(file)]
        wanted = " or ".join(makers) or "one of its functions or classes, but it has none"
        return f"; of {file}, give {wanted}"
    within = [known for known in env_names() if known.partition("/")[2] == name]
    meant = f" (did you mean {' or '.join(map(repr, within[:3]))}?)" if within else ""
    return (
        f"{meant or did_you_mean(name, env_names())}; give {_EXAMPLE}, or a name that begins with "
        f"{', '.join(f'{known}/' for known in FAMILIES)} (`marl envs` lists them)"
    )


def check_family(name: str) -> None:
    """Raise `EnvError` unless a name is an import path or begins with an installed family."""
    if not _is_path(name):
        _family_of(name)


def _is_path(name: str) -> bool:
    """Return whether a name is an import path of the user's own."""
    return ":" in name and name.partition("/")[0] not in FAMILIES


def _imported_family(name: str) -> Maker:
    """Return the maker behind an import path: the user's own, or the PettingZoo adapter."""
    try:
        call = load_attribute(name, "environment", _EXAMPLE)
    except NoSubmoduleError:
        raise
    except (EnvError, ModuleNotFoundError) as error:
        hint = install_hint(name.partition(":")[0])
        if hint and ModuleNotFoundError in (type(error), type(error.__cause__)):
            raise EnvError(f"{error}; {hint}") from error
        raise
    if "num_envs" in inspect.signature(call).parameters:
        return Maker(call)
    from envs.adapters.pettingzoo import pettingzoo

    return Maker(partial(pettingzoo, call, name))


def _check_options(name: str, maker: Maker, options: dict[str, Any]) -> None:
    """Raise on an option that the environment does not have, or that it needs and lacks."""
    parameters = inspect.signature(maker.call).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    free = [p for p in parameters if p.name not in {"num_envs", *maker.fixed}]
    valid = [parameter.name for parameter in free]
    if "reward_mode" not in valid:
        valid += REWARD_OPTIONS
    for option in options:
        if option in maker.fixed:
            raise EnvError(
                f"environment {name!r}: the name already sets {option}={maker.fixed[option]!r}; "
                f"choose another name instead of the option"
            )
        if option not in valid:
            raise EnvError(
                f"environment {name!r} has no option {option!r}"
                f"{did_you_mean(option, valid)}; "
                f"its options are {', '.join(valid)}"
            )
    needed = [p.name for p in free if p.default is p.empty and p.name not in options]
    if needed:
        flags = " ".join(f"{option} VALUE" for option in needed)
        raise EnvError(
            f"environment {name!r} needs the option {', '.join(needed)}; give it with "
            f"`--env.options {flags}`"
        )


INSTALL_SMACV2 = (
    "SMACv2 needs three things: the package, "
    "pip install git+https://github.com/oxwhirl/smacv2.git; StarCraft II (for Linux from "
    "github.com/Blizzard/s2client-proto#downloads) in ~/StarCraftII, or anywhere if the "
    "environment variable SC2PATH names the folder; and the maps, the folder SMAC_Maps of the "
    "package's smacv2/env/starcraft2/maps, copied to $SC2PATH/Maps/SMAC_Maps"
)
EXTRAS = {
    "mpe2": "mpe2",
    "pettingzoo.sisl": "sisl",
    "lbforaging": "lbforaging",
    "rware": "rware",
    "jaxmarl": "smax",
    "jumanji": "jumanji",
    "vmas": "vmas",
}
"""Module, or package of modules, and the extra of this distribution that installs it."""
BY_HAND = {"smacv2": INSTALL_SMACV2}
"""Package that no extra can install, and what to do instead."""


def install_hint(module: str) -> str | None:
    """Return how to install what `module` needs, or None if that is not known here."""
    for package, extra in EXTRAS.items():
        if f"{module}.".startswith(f"{package}."):
            command = f"pip install -c constraints.txt '.[{extra}]'"
            return f"{package} needs an extra; where this project lies, run: {command}"
    return BY_HAND.get(module.partition(".")[0])
