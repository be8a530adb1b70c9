"""Episodes that a person plays by keyboard, as demonstrations of a dataset.

An environment waits for the person, so that a step takes as long as it needs. Agents that the
person does not drive are driven by a policy.

Axes: L steps, N agents, A actions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from envs import EnvStep, Frame, VecEnv
from envs.frames import INK, Circle
from marl.policy import Policy
from marl.preferences.dataset.dataset import PreferenceDataset
from marl.preferences.dataset.format import EpisodeRecord
from marl.preferences.people.camera import Viewer
from marl.preferences.people.session import StaleError
from marl.utils.files import output

PARTICLE_MOVES = {
    " ": (0, "none"),
    "ArrowRight": (1, "right"),
    "ArrowLeft": (2, "left"),
    "ArrowUp": (3, "up"),
    "ArrowDown": (4, "down"),
}
"""What keys do in `particles` tasks: the action, and its name."""
OTHER_KEYS = "1234567890abcdefghijklmnopqrstuvwxyz"
"""Keys of the actions 0, 1, ... of any other task."""
_RING = 0.045
"""Radius of the ring round the agent that is driven, as a share of the view."""


class IllegalMoveError(ValueError):
    """An action that the agent cannot take now."""


@dataclass(frozen=True, kw_only=True)
class Move:
    """An action, and the key that takes it."""

    key: str
    """As a browser names it in ``KeyboardEvent.key``."""
    action: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a person is shown: an agent that waits for its action, or an episode that is over."""

    id: str
    """Changes with every action and every new episode, so that nothing sent counts twice."""
    step: int
    """From 0."""
    agent: int | None
    """None: the episode is over, to be kept or played again."""
    moves: tuple[Move, ...]
    """The legal ones."""
    frame: Frame
    """The state in which the agents act; of an episode that is over the last such one."""
    episode_return: float | None
    """Sum of the task's rewards; None while it is played."""


class Demonstrating:
    """One person's episodes in one environment; an episode is on the disk when `keep` returns.

    In every step the driven agents wait for an action each, in turn. Episode k of the dataset
    starts as `seed` + k says, however often it is played again.
    """

    def __init__(
        self,
        env: VecEnv,
        data: PreferenceDataset,
        *,
        episodes: int,
        driven: Sequence[int],
        others: Policy | None = None,
        greedy: bool = False,
        seed: int = 0,
    ) -> None:
        """`env` has one environment; `others` drives the agents that are not `driven`."""
        self.env = env
        self.data = data
        self.goal = episodes
        self._driven = tuple(driven)
        self._others = others
        self._greedy = greedy
        self._seed = seed
        self.kept = 0
        """Episodes kept so far."""
        self._attempts = 0
        self._viewer = Viewer(env)
        self._begin()

    def is_done(self) -> bool:
        """Whether enough episodes are kept."""
        return self.kept >= self.goal

    def turn(self) -> Turn:
        """Return what is shown now."""
        agent = self._waiting()
        step = len(self._rows["state"])
        moves: tuple[Move, ...] = ()
        if agent is not None:
            legal = self._legal(agent)
            known = all_moves(self.env.spec.name, self.env.spec.action_sizes[agent])
            moves = tuple(move for move in known if legal[move.action])
        place = f"{step}-over" if agent is None else f"{step}-{agent}"
        return Turn(
            id=f"{self.kept}-{self._attempts}-{place}",
            step=step,
            agent=agent,
            moves=moves,
            frame=self._last_frame if agent is None else ringed(self._frame_now(), agent),
            episode_return=self._return if self._ended is not None else None,
        )

    def act(self, turn_id: str, action: int) -> None:
        """Take an action of the agent that waits.

        Raises `StaleError` if that is no longer this one, and `IllegalMoveError`.
        """
        turn = self._current(turn_id)
        if turn.agent is None:
            raise StaleError
        if action not in {move.action for move in turn.moves}:
            raise IllegalMoveError(
                f"{self.env.spec.agent_name(turn.agent)} cannot take action {action} now"
            )
        self._chosen[turn.agent] = action
        if self._waiting() is None:
            self._advance()

    def keep(self, turn_id: str) -> None:
        """Write the episode that is over, and begin the next; raise `StaleError` if none is."""
        turn = self._current(turn_id)
        if self._ended is None or turn.agent is not None:
            raise StaleError
        with output(self.data.folder, "free some space, or let it be written"):
            self.data.add_episode(self._record(self._ended))
        self.kept += 1
        self._begin()

    def again(self, turn_id: str) -> None:
        """Forget the episode and begin it anew, from the same start."""
        self._current(turn_id)
        self._begin()

    def _current(self, turn_id: str) -> Turn:
        """Return the current turn; raise `StaleError` if it is another."""
        turn = self.turn()
        if self.is_done() or turn.id != turn_id:
            raise StaleError
        return turn

    def _begin(self) -> None:
        """Begin an episode."""
        numbers = self.data.numbers()
        seed = self._seed + (numbers[-1] + 1 if numbers else 0)
        self._attempts += 1
        self._step: EnvStep = self.env.reset(seed)
        self._rows: dict[str, list[npt.NDArray[Any]]] = {"state": []}
        self._ended: EnvStep | None = None
        self._return = 0.0
        if self._others is not None:
            self._others.reset(seed)
        self._choose()
        self._advance()

    def _choose(self) -> None:
        """Let the policy act for its agents; -1 stands where a person has not chosen yet."""
        spec, step = self.env.spec, self._step
        chosen = np.full(spec.num_agents, -1, np.int64)
        if self._others is not None:
            mask = None if step.action_mask is None else step.action_mask[0]
            chosen[:] = self._others.act(step.obs[0], mask=mask, greedy=self._greedy)
            chosen[list(self._driven)] = -1
        for agent in range(spec.num_agents):
            if step.alive is not None and not step.alive[0, agent]:
                chosen[agent] = int(self._legal(agent).argmax())  # it does nothing
        self._chosen = chosen

    def _waiting(self) -> int | None:
        """Return the first driven agent without an action; None where all have one."""
        if self._ended is not None:
            return None
        return next((agent for agent in self._driven if self._chosen[agent] < 0), None)

    def _legal(self, agent: int) -> npt.NDArray[np.bool_]:
        """Return which of the agent's own (A,) actions are legal."""
        size = self.env.spec.action_sizes[agent]
        if self._step.action_mask is None:
            return np.ones(size, np.bool_)
        legal: npt.NDArray[np.bool_] = self._step.action_mask[0, agent, :size]
        return legal

    def _advance(self) -> None:
        """Take steps until a driven agent waits for its action, or the episode is over."""
        while self._ended is None and self._waiting() is None:
            before, actions = self._step, self._chosen
            given = {"obs": before.obs, "state": before.state}
            given |= {"alive": before.alive, "action_mask": before.action_mask}  # type: ignore[dict-item]
            for name, array in given.items():
                if array is not None:
                    self._rows.setdefault(name, []).append(array[0].copy())
            self._rows.setdefault("actions", []).append(actions.copy())
            self._last_frame = self._frame_now()
            step = self.env.step(actions[None])
            self._return += float(step.rewards[0])
            if step.facts is not None:
                self._rows.setdefault("step_facts", []).append(step.facts[0].copy())
            self._step = step
            if bool(step.terminated[0] | step.truncated[0]):
                self._ended = step
            else:
                self._choose()

    def _frame_now(self) -> Frame:
        """Return the state in which the agents are to act."""
        return self._viewer.frame(0, self._step, self._chosen[None])

    def _record(self, end: EnvStep) -> EpisodeRecord:
        """Return the episode that is over, and ended with the step `end`."""
        final_alive = None if end.final_alive is None else end.final_alive[0].copy()
        return EpisodeRecord(
            **{name: np.stack(rows) for name, rows in self._rows.items()},
            final_obs=end.final_obs[0].copy(),
            final_state=end.final_state[0].copy(),
            final_alive=final_alive,
            episode_return=self._return,
            terminated=bool(end.terminated[0]),
            demonstration=True,
        )


def all_moves(environment: str, size: int) -> tuple[Move, ...]:
    """Return the moves of an agent with so many actions, in the environment of that name."""
    if environment.startswith("particles/"):
        named = PARTICLE_MOVES.items()
        return tuple(Move(key=key, action=action, name=name) for key, (action, name) in named)
    keys = OTHER_KEYS[:size]
    return tuple(
        Move(key=key, action=action, name=f"action {action}") for action, key in enumerate(keys)
    )


def ringed(frame: Frame, agent: int) -> Frame:
    """Return a frame with a ring round an agent, if it is anywhere."""
    anchor = frame.anchors[agent]
    if anchor is None:
        return frame
    left, bottom, right, top = frame.view
    radius = _RING * max(right - left, top - bottom)
    ring = Circle(centre=anchor, radius=radius, colour=INK, filled=False)
    return Frame(**{**vars(frame), "shapes": (*frame.shapes, ring)})
