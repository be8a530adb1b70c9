"""Families of environments: what a name before the slash stands for, and what it takes to install.

A family is one line in `FAMILIES` and a module with two functions: `members() -> list[str]`, the
names to list, and `maker(member) -> Maker | None`, which may accept more names than are listed.
The module is imported when one of its names is used or listed, never before.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from envs.extras import install_hint


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
    needs: str = ""
    """Optional package without which it cannot be used, one of `envs.extras`; empty: none."""

    @property
    def is_installed(self) -> bool:
        """Whether what the family needs is there."""
        return not self.needs or find_spec(self.needs) is not None

    @property
    def how_to_install(self) -> str | None:
        """What to do to install what the family needs."""
        return install_hint(self.needs)

    def members(self) -> list[str]:
        """Return the names to list; an empty name stands for the family's own."""
        listed: list[str] = importlib.import_module(self.module).members()
        return listed

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
    ),
    "fleet": Family(
        module="envs.mujoco.fleet",
        summary="MuJoCo robots that share one return; any number, e.g. hopper_3",
        reward_mode="episodic",
    ),
    "particles": Family(
        module="envs.particles",
        summary="points on a plane that look for landmarks; any number, e.g. nav_9",
        reward_mode="episodic",
    ),
    "gym": Family(
        module="envs.teams.gym_teams",
        summary="gymnasium teams by id (extras lbforaging, rware); your own: gym/my_envs:Team-v0",
    ),
    "smax": Family(
        module="envs.smax.environment",
        summary="battles of scripted against learning units, in JAX; for 512 copies or more",
        reward_mode="episodic",
        needs="jaxmarl",
    ),
    "vmas": Family(
        module="envs.vmas.environment",
        summary="robots on a plane, in PyTorch, batched",
        reward_mode="episodic",
        needs="vmas",
    ),
    "smacv2": Family(
        module="envs.smacv2.environment",
        summary="StarCraft II itself: battles of teams drawn anew in every episode",
        reward_mode="episodic",
        needs="smacv2",
    ),
    "probe": Family(
        module="envs.probes",
        summary="tiny tasks with a known optimum, to test learning",
        reward_mode="episodic",
    ),
}
