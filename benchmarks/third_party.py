"""Makers of environments that their packages do not make as a PettingZoo `ParallelEnv`.

For `benchmarks/environments.py`; each needs its package.
"""

from functools import partial
from typing import Any, ClassVar

import numpy as np
from pettingzoo import ParallelEnv


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


def held_pong(held: int = 4, **options: Any) -> Any:
    """Return cooperative_pong in which every action is held for some frames and the last is drawn.

    A game of 900 frames is 225 steps of 4. PettingZoo's own draws and copies the picture several
    times a frame, which takes most of its time.
    """
    return _HeldPong(held, options)


class _HeldPong(ParallelEnv):  # type: ignore[misc, type-arg]  # untyped base
    """The game of `cooperative_pong_v6`, driven without its turns; see `held_pong`."""

    metadata: ClassVar = {"name": "held_pong", "render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def __init__(self, held: int, options: dict[str, Any]) -> None:
        from pettingzoo.butterfly.cooperative_pong.cooperative_pong import CooperativePong

        self._make = partial(CooperativePong, **options)
        self._held = held
        self._seed(None)
        self.possible_agents = list(self._game.agents)
        self.max_steps = -(-self._game.max_cycles // held)

    def _seed(self, seed: int | None) -> None:
        self._game = self._make(np.random.default_rng(seed))
        self._game.render = lambda: None

    def observation_space(self, agent: str) -> Any:
        """Return the space of pictures, the same for both."""
        return self._game.observation_space[0]

    def action_space(self, agent: str) -> Any:
        """Return the choice between to stay, up and down."""
        return self._game.action_space[0]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Throw a ball."""
        if seed is not None:
            self._seed(seed)
        self._game.reset()
        self.agents = self.possible_agents[:]
        picture = self.render()
        return self._each(picture), self._each({})

    def step(self, actions: dict[str, int]) -> Any:
        """Move both paddles and the ball for as many frames as actions are held."""
        game, reward = self._game, 0.0
        for _ in range(self._held):
            for agent in self.possible_agents:
                game.step(int(actions[agent]), agent)
            reward += game.rewards[self.possible_agents[0]]
            if game.terminate or game.truncate:
                self.agents = []
                break
        picture = self.render()
        over = game.terminate, game.truncate and not game.terminate
        return self._each(picture), *map(self._each, (reward, *over)), self._each({})

    def render(self) -> Any:
        """Return the picture."""
        self._game.draw()
        return self._game.observe()

    def _each(self, value: Any) -> dict[str, Any]:
        return dict.fromkeys(self.possible_agents, value)
