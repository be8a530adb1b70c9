"""Makers of environments that their packages do not make as a PettingZoo `ParallelEnv`.

For `benchmarks/environments.py`; each needs its package.
"""

from typing import Any


def magent_gather(**options: Any) -> Any:
    """Return MAgent2's gathering on a map of 60 x 60, whose hundreds of agents share the food."""
    from magent2.environments import gather_v5

    return gather_v5.parallel_env(**options)


def multigrid_empty(**options: Any) -> Any:
    """Return multigrid's empty room, in which two agents look for the goal."""
    import gymnasium
    import multigrid.envs  # noqa: F401  # which registers it
    from multigrid.pettingzoo import PettingZooWrapper

    env = gymnasium.make("MultiGrid-Empty-8x8-v0", agents=2, **options)
    return PettingZooWrapper(env.unwrapped)


def pogema_grid(max_steps: int = 64, **options: Any) -> Any:
    """Return Pogema's pathfinding of four agents on a random grid."""
    from pogema import GridConfig, pogema_v0

    grid = GridConfig(num_agents=4, size=8, max_episode_steps=max_steps, integration="PettingZoo")
    return pogema_v0(grid, **options)
