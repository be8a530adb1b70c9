"""Collects T steps of E environments into preallocated tensors.

Axes: T time, E environments, N agents, B finished episodes; O, S, A features,
F facts.
"""

import time
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from envs import EnvError, EnvSpec, EnvStep, HasHiddenRewards, VecEnv
from envs.devices import is_elsewhere, step_on_host
from envs.plugins import explained, source_of, users_call
from envs.validation import fitting_step
from marl.config import ConfigError
from marl.data.staging import Staging, as_tensor
from marl.data.types import (
    FINAL_FIELDS,
    FinishedEpisodes,
    Rollout,
    Transitions,
    allocate,
    step_fields,
)
from marl.learners.base import Actor


def rollout_buffers(spec: EnvSpec, num_steps: int, hidden_rewards: bool) -> dict[str, Tensor]:
    """Return buffers for one rollout, in the shapes of `Rollout` and its transitions."""
    lead = (num_steps, spec.num_envs)
    fields = step_fields(spec)
    finals = {f"next_{name}": fields[name] for name in FINAL_FIELDS if name in fields}
    buffers = allocate(fields | finals, lead)
    buffers |= {
        "rewards": torch.zeros(lead),
        "terminated": torch.zeros(lead, dtype=torch.bool),
        "truncated": torch.zeros(lead, dtype=torch.bool),
    }
    if spec.facts:
        buffers["facts"] = torch.zeros(*lead, len(spec.facts))
    if hidden_rewards:
        buffers["hidden_rewards"] = torch.zeros(lead)
    buffers["log_probs"] = torch.zeros(*lead, spec.num_agents)
    buffers["sampled_actions"] = buffers["actions"]
    if spec.action_kind != "discrete":
        buffers["sampled_actions"] = torch.zeros_like(buffers["actions"])
    return buffers


def executed(spec: EnvSpec, actions: Tensor) -> Tensor:
    """Return what an environment receives where a policy drew `actions`."""
    return actions if spec.action_kind == "discrete" else actions.clamp(-1.0, 1.0)


class HiddenStates:
    """The hidden state of recurrent actors from step to step, and before every chunk of steps.

    Of a feed-forward actor both are None. The tensors of a rollout are reused by the next.
    """

    def __init__(self, num_steps: int, chunk_length: int) -> None:
        self.num_chunks = -(-num_steps // chunk_length)
        self.chunk_length = chunk_length
        self.current: Float[Tensor, "E ..."] | None = None
        self.chunks: Float[Tensor, "C E ..."] | None = None
        """Before the first step of every chunk."""

    def begin(self, actor: Actor, num_envs: int) -> None:
        """Start a rollout: with the state after the last one, or that of new episodes."""
        if self.current is None:
            self.current = actor.initial_hidden(num_envs)
        if self.current is not None and self.chunks is None:
            self.chunks = self.current.new_zeros(self.num_chunks, *self.current.shape)

    def record(self, t: int) -> None:
        """Keep the state before step `t` if a chunk begins with it."""
        if self.current is not None and self.chunks is not None and t % self.chunk_length == 0:
            self.chunks[t // self.chunk_length] = self.current

    def reset_done(self, done: Bool[Tensor, "E"]) -> None:
        """Reset the state to zero where the episode has ended."""
        if self.current is not None:
            ended = done.to(self.current.device).view(-1, *[1] * (self.current.ndim - 1))
            self.current = self.current.masked_fill(ended, 0.0)


@runtime_checkable
class StepCallback(Protocol):
    """Called around every step of a rollout; must not change what it is given."""

    def before_rollout(self) -> None:
        """Save the state to return to if the rollout has to be undone."""
        ...

    def undo_rollout(self) -> None:
        """Return to the state at the last `before_rollout`."""
        ...

    def before_step(self, step: EnvStep, actions: npt.NDArray[Any]) -> None:
        """Take the step that the agents observe, and the actions that are about to be applied."""
        ...

    def after_step(self, done: npt.NDArray[np.bool_]) -> None:
        """Take which of the E episodes the step has ended."""
        ...


_WRITTEN = {
    "obs": "obs",
    "state": "state",
    "action_mask": "action_mask",
    "next_obs": "final_obs",
    "next_state": "final_state",
}
"""Buffers that an environment may write on a device, and the fields of `EnvStep` that it gives."""


class Collector:
    """Runs the current policy; the tensors of a rollout are reused by the next one."""

    def __init__(
        self,
        env: VecEnv,
        num_steps: int,
        *,
        seed: int,
        generator: torch.Generator,
        device: torch.device,
        hidden_rewards: bool = False,
        chunk_length: int = 1,
        callback: StepCallback | None = None,
        undoes: bool = False,
    ) -> None:
        """`hidden_rewards` also records the dense reward that a sparse task hides.

        A rollout keeps the hidden state of recurrent actors every `chunk_length` steps. With
        `undoes`, a rollout that raises leaves the state of its beginning.
        """
        self.hidden_source = env if hidden_rewards and isinstance(env, HasHiddenRewards) else None
        if hidden_rewards and self.hidden_source is None:
            raise ConfigError(
                f'environment {env.spec.name} has no hidden_rewards(); algorithm = "dense", '
                "diagnose_hidden and preferences.teacher.myopia need them. If its own reward is "
                "dense, set `--env.options reward_mode episodic`, which hides it"
            )
        self.env = env
        self.num_steps = num_steps
        self.callback = callback
        self.generator = generator
        self.device = device
        self.hidden = HiddenStates(num_steps, chunk_length)
        self.seconds = {"physics": 0.0, "inference": 0.0}
        self._is_checked = False
        """Whether the first step was compared with the spec; `marl check` compares many."""
        self._resets, self._steps = users_call(env, "reset"), users_call(env, "step")
        with explained(f"{env.spec.name}: reset", blamed=self._resets):
            first = env.reset(seed)
        fitting_step(env.spec, first, "reset", self._resets)
        self._current = _copied(first)
        buffers = rollout_buffers(env.spec, num_steps, hidden_rewards)
        local = {"actions", "sampled_actions", "log_probs"}
        local |= {name for name, field in _WRITTEN.items() if is_elsewhere(getattr(first, field))}
        self._buffers = Staging(buffers, device, local=local)
        self._open_returns = torch.zeros(env.spec.num_envs, dtype=torch.float64)
        self._open_lengths = torch.zeros(env.spec.num_envs, dtype=torch.int64)
        self._steps_before = 0
        self._undoes = undoes
        self._before: tuple[dict[str, Any], Tensor] | None = None
        """The state before the last rollout, and that of the generator."""
        self._undone: dict[str, Any] | None = None
        """The state to continue from, after a rollout that was undone."""

    def collect(self, actor: Actor, *, greedy: bool = False) -> tuple[Rollout, Tensor | None]:
        """Return T steps under `actor`, and the (T, E) hidden rewards if they are recorded.

        Actions are drawn or, if `greedy`, the most likely ones. Raises `EnvError` naming the
        array, step, environment and agent that is not finite. After an error a collector that
        undoes tries the same rollout again.
        """
        if not self._undoes:
            return self._collect(actor, greedy)
        if self._undone is not None:
            self.load_state_dict(self._undone)
        self._before = (self.state_dict(), self.generator.get_state())
        if self.callback is not None:
            self.callback.before_rollout()
        try:
            return self._collect(actor, greedy)
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Go back to before the last rollout, which the next `collect` then repeats.

        Only a collector that undoes can, and without a rollout since it changes nothing.
        """
        if self._before is None:
            return
        self._undone, draws = self._before
        self._before = None
        self.generator.set_state(draws)
        if self.callback is not None:
            self.callback.undo_rollout()

    @torch.no_grad()
    def _collect(self, actor: Actor, greedy: bool) -> tuple[Rollout, Tensor | None]:
        """Return what `collect` does."""
        started = time.perf_counter()
        physics = 0.0
        spec, buffers, on_device = self.env.spec, self._buffers, self._buffers.device
        buffers.begin()
        lead, hidden = (self.num_steps, spec.num_envs), self.hidden
        noise = None if greedy else actor.noise(lead, self.generator)
        hidden.begin(actor, spec.num_envs)
        for t in range(self.num_steps):
            self._record(t, self._current)
            obs = buffers.send("obs", t)
            mask = buffers.send("action_mask", t) if spec.masks_actions else None
            hidden.record(t)
            draws = None if noise is None else noise[t]
            actions, log_probs, hidden.current = actor.act(obs, hidden.current, mask, draws)
            on_device["sampled_actions"][t] = actions
            on_device["log_probs"][t] = log_probs
            sent = executed(spec, actions)
            on_device["actions"][t] = sent
            taken = buffers.fetch(sent)
            if self.callback is not None:
                self.callback.before_step(step_on_host(self._current), taken)
            before = time.perf_counter()
            step = self._stepped(taken, t)
            physics += time.perf_counter() - before
            self._record_outcome(t, step)
            if self.callback is not None:
                self.callback.after_step(step.terminated | step.truncated)
            hidden.reset_done(buffers["terminated"][t] | buffers["truncated"][t])
            self._current = step
        self._current = _copied(self._current)
        self._check_finite(self.num_steps)
        rollout = self._rollout()
        self.seconds["physics"] += physics
        self.seconds["inference"] += time.perf_counter() - started - physics
        self._steps_before += self.num_steps
        return rollout, on_device.get("hidden_rewards")

    def _stepped(self, actions: npt.NDArray[Any], t: int) -> EnvStep:
        """Return the environment's step; what it raises, or gets wrong at first, is an error."""
        where = f"step {self._steps_before + t}"
        try:
            with explained(f"{self.env.spec.name}: {where}", blamed=self._steps):
                step = self.env.step(actions)
                if not self._is_checked:
                    fitting_step(self.env.spec, step, where, self._steps)
                    self._is_checked = True
        except EnvError:
            self._check_finite(t)  # of what is not finite no legal action is drawn
            raise
        return step

    def take_seconds(self) -> dict[str, float]:
        """Return the seconds spent in physics and inference since the last call."""
        seconds, self.seconds = self.seconds, dict.fromkeys(self.seconds, 0.0)
        return seconds

    def _record(self, t: int, step: EnvStep) -> None:
        """Store what the agents see before they act."""
        write = self._buffers.write
        write("obs", t, step.obs)
        write("state", t, step.state)
        if step.action_mask is not None:
            write("action_mask", t, step.action_mask)
        if step.alive is not None:
            write("alive", t, step.alive)

    def _record_outcome(self, t: int, step: EnvStep) -> None:
        """Store what their actions led to."""
        write = self._buffers.write
        write("next_obs", t, step.final_obs)
        write("next_state", t, step.final_state)
        write("rewards", t, step.rewards)
        write("terminated", t, step.terminated)
        write("truncated", t, step.truncated)
        if step.alive is not None:
            ended = (step.terminated | step.truncated)[:, None]
            before = self._buffers["alive"][t].numpy()
            final = before if step.final_alive is None else step.final_alive
            write("next_alive", t, np.where(ended, final, step.alive))
        if step.facts is not None:
            write("facts", t, step.facts)
        if self.hidden_source is not None:
            write("hidden_rewards", t, self.hidden_source.hidden_rewards())

    def _rollout(self) -> Rollout:
        """Return the buffers as a rollout."""
        tensors = self._buffers.send_rest(sent=("obs", "action_mask"))
        transitions = Transitions(
            obs=tensors["obs"],
            state=tensors["state"],
            actions=tensors["actions"],
            next_obs=tensors["next_obs"],
            next_state=tensors["next_state"],
            terminated=tensors["terminated"],
            alive=tensors.get("alive"),
            next_alive=tensors.get("next_alive"),
            action_mask=tensors.get("action_mask"),
        )
        elapsed = self._elapsed()
        return Rollout(
            transitions=transitions,
            truncated=tensors["truncated"],
            sampled_actions=tensors["sampled_actions"],
            log_probs=tensors["log_probs"],
            task_rewards=tensors["rewards"],
            elapsed=elapsed.to(self.device),
            episodes=self._finished_episodes(elapsed),
            facts=tensors.get("facts"),
            hidden=self.hidden.chunks,
        )

    def _elapsed(self) -> Int64[Tensor, "T E"]:
        """Return how many steps of its episode came before each."""
        done = self._buffers["terminated"] | self._buffers["truncated"]
        steps = torch.arange(self.num_steps).unsqueeze(-1)
        begins = torch.where(done, steps + 1, -self._open_lengths).cummax(dim=0).values
        begins = torch.cat((-self._open_lengths.unsqueeze(0), begins[:-1]))
        return steps - begins

    def _finished_episodes(self, elapsed: Int64[Tensor, "T E"]) -> FinishedEpisodes:
        """Return the episodes that ended, ordered by their end, and keep count of open ones."""
        buffers = self._buffers
        done = buffers["terminated"] | buffers["truncated"]
        envs, times = done.T.nonzero(as_tuple=True)
        totals = buffers["rewards"].to(torch.float64).cumsum(dim=0)[times, envs]
        is_first = torch.ones_like(envs, dtype=torch.bool)
        is_first[1:] = envs[1:] != envs[:-1]
        previous_total = torch.where(is_first, -self._open_returns[envs], totals.roll(1))
        order = times.argsort(stable=True)
        finished = FinishedEpisodes(
            end_time=times[order],
            env=envs[order],
            lengths=elapsed[times, envs][order] + 1,
            returns=(totals - previous_total)[order].to(torch.float32),
            terminated=buffers["terminated"][times, envs][order],
            facts=buffers["facts"][times, envs][order] if "facts" in buffers else None,
        )
        all_totals = buffers["rewards"].to(torch.float64).sum(dim=0)
        last_total = -self._open_returns
        is_last = torch.ones_like(is_first)
        is_last[:-1] = envs[:-1] != envs[1:]
        last_total[envs[is_last]] = totals[is_last]
        self._open_returns = all_totals - last_total
        self._open_lengths = torch.where(done[-1], 0, elapsed[-1] + 1)
        return finished

    def _check_finite(self, num_steps: int) -> None:
        """Raise `EnvError` if the environment returned NaN or infinity in the first steps."""
        names = ("obs", "state", "next_obs", "next_state", "rewards", "hidden_rewards")
        buffers = self._buffers
        arrays = {name: buffers[name][:num_steps] for name in names if name in buffers}
        # What the reset after the last step shows is in no buffer yet.
        shown = _copied(self._current)
        arrays |= {f"{name} ": as_tensor(getattr(shown, name))[None] for name in ("obs", "state")}
        for name, array in arrays.items():
            if bool(array.sum().isfinite()) or bool(array.isfinite().all()):
                continue
            t, index, *rest = array.isfinite().logical_not().nonzero()[0].tolist()
            t += num_steps if name.endswith(" ") else 0
            spec = self.env.spec
            agent = f", {spec.agent_name(rest[0])}" if name.strip().endswith("obs") else ""
            at = f" ({source_of(self._steps)})" if self._steps else ""
            raise EnvError(
                f"environment {spec.name} returned NaN or an infinite number in {name.strip()} at "
                f"step {self._steps_before + t} of copy {index}{agent}{at}; `marl check` tests an "
                "environment"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the environment, what the agents see now, hidden states, and the open episodes.

        After a rollout that was undone: as before it.
        """
        if self._undone is not None:
            return self._undone
        current = {
            name: value
            for name, value in vars(step_on_host(self._current)).items()
            if value is not None
        }
        state = {
            "env": self.env.state_dict(),
            "current": current,
            "open_returns": self._open_returns,
            "open_lengths": self._open_lengths,
            "steps_before": self._steps_before,
        }
        hidden = self.hidden.current
        return state if hidden is None else state | {"hidden": hidden}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a collector over the same environment."""
        self.env.load_state_dict(state["env"])
        shown = step_on_host(self._current)
        seen = {name: _like(getattr(shown, name), x) for name, x in state["current"].items()}
        self._current = EnvStep(**seen)
        self._open_returns = _like(self._open_returns, state["open_returns"])
        self._open_lengths = _like(self._open_lengths, state["open_lengths"])
        self._steps_before = int(state["steps_before"])
        hidden = state.get("hidden")
        self.hidden.current = None if hidden is None else hidden.to(self.device)
        self._before = self._undone = None


def _like(own: Any, saved: Any) -> Any:
    """Return a saved array or tensor; raise `ValueError` if it is of another kind than `own`."""
    if own is not None and (own.shape, own.dtype) != (saved.shape, saved.dtype):
        raise ValueError(f"{saved.dtype}{saved.shape} was saved, not {own.dtype}{own.shape}")
    return saved


def _copied(step: EnvStep) -> EnvStep:
    """Return a step that survives the environment's next call."""
    arrays: dict[str, Any] = {
        name: np.array(value) if isinstance(value, np.ndarray) else as_tensor(value).clone()
        for name, value in vars(step).items()
        if value is not None
    }
    return EnvStep(**arrays)
