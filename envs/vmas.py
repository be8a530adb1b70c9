"""VMAS, vectorised two-dimensional robotics in PyTorch (arXiv 2207.03530); extra ``vmas``.

VMAS keeps its state in attributes of the environment, its scenario, its world, and all that they
hold; each scenario adds attributes of its own, some of which name another object, such as an
agent's goal. `saved_objects` therefore finds them by walking the objects, breadth first and the
world first, so that what the world consists of is known by its place there and not by who refers
to it.

Axes are those of `envs.base`.
"""

import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from envs.adapters.quirks import TeamReward, check_team_reward, different_rewards
from envs.base import BoolArray, EnvError, EnvSpec, EnvStep, FloatArray, check_num_envs, split_ends
from envs.catalogue import VMAS_NAMES
from envs.devices import keeps_arrays
from envs.registry import Maker
from envs.validation import checked_actions

LEFT_OUT = {
    "simple": "it has one agent",
    "simple_adversary": "two sides play against each other",
    "simple_crypto": "two sides play against each other",
    "simple_push": "two sides play against each other",
    "simple_tag": "two sides play against each other",
    "simple_world_comm": "two sides play against each other",
    "asym_joint": "it shows a feature of the simulator and is no task for a team",
    "circle_trajectory": "it shows a feature of the simulator and is no task for a team",
    "diff_drive": "it shows a feature of the simulator and is no task for a team",
    "drone": "it shows a feature of the simulator and is no task for a team",
    "goal": "it shows a feature of the simulator and is no task for a team",
    "het_mass": "it shows a feature of the simulator and is no task for a team",
    "kinematic_bicycle": "it shows a feature of the simulator and is no task for a team",
    "line_trajectory": "it shows a feature of the simulator and is no task for a team",
    "pollock": "it shows a feature of the simulator, and its observations never change",
    "vel_control": "it shows a feature of the simulator and is no task for a team",
    "waterfall": "it shows a feature of the simulator and is no task for a team",
}
"""Scenarios of VMAS that are not offered, and why."""


def maker(member: str) -> Maker | None:
    """Return how to make one scenario, e.g. `balance`; None for a name that VMAS has not."""
    if member in LEFT_OUT:
        raise EnvError(
            f"vmas/{member}: VMAS has this scenario, but {LEFT_OUT[member]}, so it is left out; "
            "`marl envs` lists the cooperative ones"
        )
    return Maker(Vmas, {"scenario": member}) if member in VMAS_NAMES else None


class Vmas:
    """E environments of a VMAS scenario.

    Some scenarios (navigation, passage) pay each agent a part of its own. The team's reward in each
    step is the mean over its agents, or their sum, as `team_reward` says; "error" refuses rewards
    that differ. The state is the agents' observations, one after another. `max_steps` interrupts an
    episode (truncated), as in VMAS; `finite_horizon` True makes it the end of the task instead.

    VMAS draws the starts of all E environments from one stream of random numbers, so that the
    episodes of one depend on when the others ended. The stream is this object's own, seeded by
    `reset`: other objects and the program's global generators neither feel nor disturb it.
    """

    def __init__(
        self,
        num_envs: int,
        scenario: str = "balance",
        *,
        max_steps: int = 100,
        finite_horizon: bool = False,
        continuous_actions: bool = True,
        team_reward: str = "mean",
        device: str = "cpu",
        **scenario_options: Any,
    ) -> None:
        """Prepare the environments; `scenario_options` are those of the VMAS scenario.

        On a `device` such as "cuda" or "cuda:1" observations and state stay there
        (`envs.devices`).
        """
        if num_envs < 1 or max_steps < 1:
            raise EnvError(
                f"vmas/{scenario}: num_envs is {num_envs} and max_steps is {max_steps}; "
                "expected at least 1"
            )
        self._team_reward = check_team_reward(team_reward)
        import vmas
        from vmas.simulator.environment import Environment

        self._device = _usable_device(f"vmas/{scenario}", device)
        self._keeps_arrays = keeps_arrays(device)
        self._shared_generators: list[Any] = Environment.vmas_random_state
        self._generators = list(self._shared_generators)
        self._cuda_generator: Tensor | None = None
        """State of the GPU's generator, which VMAS draws from there but does not keep."""
        self._ready = False
        self._make = partial(
            vmas.make_env,
            scenario,
            num_envs,
            continuous_actions=continuous_actions,
            max_steps=max_steps,
            terminated_truncated=True,
            device=self._device,
            **scenario_options,
        )
        with self._own_generators():
            self._env = self._make(seed=0)
        self._actions = VmasActions(self._env, self._device)
        self._dense: FloatArray = np.zeros(num_envs, np.float32)
        obs_sizes = _obs_sizes(self._env, scenario)
        self._spec = EnvSpec(
            name=f"vmas/{scenario}",
            num_envs=num_envs,
            obs_sizes=obs_sizes,
            state_size=sum(obs_sizes),
            action_kind="continuous" if continuous_actions else "discrete",
            action_sizes=self._actions.sizes,
            max_steps=max_steps,
            finite_horizon=finite_horizon,
        )

    @property
    def spec(self) -> EnvSpec:
        """The constants of this environment."""
        return self._spec

    def reset(self, seed: int) -> EnvStep:
        """Return the start of a new episode in every environment."""
        num_envs = self._spec.num_envs
        with self._own_generators():
            # NumPy's generator, which VMAS seeds too, takes 32 bits. Some scenarios carry state
            # from one episode to the next, so that only a new environment starts over.
            self._env.seed(seed % 2**32)
            self._env = self._make(seed=None)
            views = self._env.reset(seed=seed % 2**32)
        self._ready = True
        self._dense = np.zeros(num_envs, np.float32)
        obs, state = self._stacked(views)
        return EnvStep.first(obs=obs, state=state)

    def step(self, actions: npt.NDArray[Any]) -> EnvStep:
        """Return what the joint actions led to; environments that ended show their next episode."""
        if not self._ready:
            raise EnvError(f"{self._spec.name}: step before reset; call reset(seed) first")
        chosen = self._actions.split(checked_actions(self._spec, None, actions))
        with self._own_generators():
            views, rewards, ended, out_of_time, _ = self._env.step(chosen)
            final_obs, final_state = obs, state = self._stacked(views)
            ended, out_of_time = ended.cpu(), out_of_time.cpu()
            done = (ended | out_of_time).numpy()
            if done.any():
                obs, state = self._stacked(self._restart(done, views))
        terminated, truncated = split_ends(
            self._spec.finite_horizon, ended.numpy(), out_of_time.numpy()
        )
        self._dense = _joint_rewards(self._team_reward, rewards)
        return EnvStep(
            obs=obs,
            state=state,
            rewards=self._dense,
            terminated=terminated,
            truncated=truncated,
            final_obs=final_obs,
            final_state=final_state,
        )

    def hidden_rewards(self) -> FloatArray:
        """Return the (E,) dense rewards of the latest step."""
        return self._dense.copy()

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything that changes, generators included."""
        state: dict[str, Any] = {
            "objects": saved_objects(self._env),
            "generators": saved_generators(self._generators),
            "dense": self._dense.copy(),
            "ready": self._ready,
        }
        if self._cuda_generator is not None:
            state["cuda_generator"] = self._cuda_generator.numpy().copy()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from `state_dict()` of an environment made with the same options."""
        check_num_envs(self._spec, len(state["dense"]))
        load_objects(self._env, state["objects"], self._device)
        self._generators = loaded_generators(state["generators"])
        if "cuda_generator" in state:
            self._cuda_generator = torch.from_numpy(state["cuda_generator"].copy())
        self._dense = state["dense"].copy()
        self._ready = bool(state["ready"])

    def _restart(self, done: BoolArray, views: list[Tensor]) -> list[Tensor]:
        """Begin new episodes in the environments that are done; return what all agents see now."""
        if done.all():
            fresh: list[Tensor] = self._env.reset()
            return fresh
        for index in np.flatnonzero(done).tolist():
            self._env.reset_at(index, return_observations=False)
        fresh = self._env.get_from_scenario(
            get_observations=True, get_rewards=False, get_infos=False, get_dones=False
        )[0]
        # Where an episode goes on, a second look may show other noise: the first one counts.
        restarted = torch.from_numpy(done)[:, None].to(self._device)
        return [torch.where(restarted, new, old) for new, old in zip(fresh, views, strict=True)]

    def _stacked(self, views: list[Tensor]) -> tuple[FloatArray, FloatArray]:
        """Return (E, N, O) observations, padded with zeros, and the (E, S) state."""
        state = torch.cat(views, dim=1)
        sizes, width = self._spec.obs_sizes, self._spec.obs_size
        if min(sizes) == width:
            # The same memory in another shape: neither is written to.
            return self._shown(state.view(len(state), len(sizes), width)), self._shown(state)
        obs = state.new_zeros(len(state), len(sizes), width)
        for agent, view in enumerate(views):
            obs[:, agent, : sizes[agent]] = view
        return self._shown(obs), self._shown(state)

    def _shown(self, tensor: Tensor) -> Any:
        """Return a tensor as `EnvStep` holds it: of the device, or NumPy's of the same memory."""
        return tensor if self._keeps_arrays else tensor.numpy()

    @contextmanager
    def _own_generators(self) -> Iterator[None]:
        """Lend this environment's random numbers to VMAS, which keeps one state for all."""
        others = list(self._shared_generators)
        self._shared_generators[:] = self._generators
        try:
            with self._own_cuda_generator():
                yield
        finally:
            self._generators = list(self._shared_generators)
            self._shared_generators[:] = others

    @contextmanager
    def _own_cuda_generator(self) -> Iterator[None]:
        """The same for the GPU's generator; nothing on the CPU."""
        if self._device.type != "cuda":
            yield
            return
        others = torch.cuda.get_rng_state(self._device)
        if self._cuda_generator is not None:
            torch.cuda.set_rng_state(self._cuda_generator, self._device)
        try:
            yield
        finally:
            self._cuda_generator = torch.cuda.get_rng_state(self._device)
            torch.cuda.set_rng_state(others, self._device)


def _usable_device(name: str, device: str) -> torch.device:
    """Return the device of a name; `EnvError` if it is not there."""
    try:
        usable = torch.device(device)
        torch.zeros(1, device=usable)
    except (RuntimeError, AssertionError):  # a torch without CUDA asserts that it has it
        raise EnvError(
            f"{name}: the option device is {device!r}, which PyTorch {torch.__version__} cannot "
            "use here; leave the option out, or install a PyTorch for the GPU and its driver"
        ) from None
    return usable


def _joint_rewards(mode: TeamReward, rewards: list[Tensor]) -> FloatArray:
    """Return the (E,) rewards of the team from those of each agent."""
    paid = torch.stack(rewards).view(len(rewards), -1).cpu()
    if mode == "sum":
        return paid.sum(dim=0).numpy()
    if mode == "error":
        unlike = ~torch.isclose(paid, paid[:1], rtol=1e-6, atol=1e-6).all(dim=0)
        if unlike.any():
            copy = int(unlike.nonzero()[0, 0])
            listing = {f"agent {agent}": reward for agent, reward in enumerate(paid[:, copy])}
            raise EnvError(f"copy {copy}: {different_rewards(listing)}")
    return paid.mean(dim=0).numpy()


def _obs_sizes(env: Any, scenario: str) -> tuple[int, ...]:
    """Return the features each agent observes, or raise on observations that are not vectors."""
    shapes = [space.shape for space in env.observation_space]
    if any(shape is None or len(shape) != 1 for shape in shapes):
        raise EnvError(
            f"vmas/{scenario} observes {shapes}; expected one vector per agent, so set the "
            "scenario's options such that it gives vectors"
        )
    return tuple(shape[0] for shape in shapes)


class VmasActions:
    """The action spaces of a VMAS environment's agents.

    Continuous: [-1, 1] is scaled to each agent's own range; messages, where it sends them, to
    [0, 1]. Discrete: VMAS's own numbers, 0 being to do nothing.
    """

    def __init__(self, env: Any, device: torch.device) -> None:
        self._device = device
        self._continuous: bool = env.continuous_actions
        spaces = list(env.action_space)
        if self._continuous:
            self.sizes: tuple[int, ...] = tuple(space.shape[0] for space in spaces)
            """Dimensions or choices of each agent's action."""
            self._low = [torch.from_numpy(space.low).to(device) for space in spaces]
            self._high = [torch.from_numpy(space.high).to(device) for space in spaces]
        else:
            self.sizes = tuple(int(space.n) for space in spaces)

    def split(self, actions: npt.NDArray[Any]) -> list[Tensor]:
        """Return one (E, A) or (E, 1) tensor per agent from legal actions."""
        if not self._continuous:
            chosen = torch.from_numpy(actions.astype(np.int64)).to(self._device)
            return [chosen[:, agent, None] for agent in range(len(self.sizes))]
        given = torch.from_numpy(actions.astype(np.float32)).to(self._device)
        return [
            # VMAS refuses what rounding takes past the ends of a range.
            ((low + high) / 2.0 + given[:, agent, :size] * (high - low) / 2.0).clamp(low, high)
            for agent, (size, low, high) in enumerate(
                zip(self.sizes, self._low, self._high, strict=True)
            )
        ]


_OBJECT, _TENSOR, _TEXT, _CONSTANT = "object ", "tensor ", "text ", "constant"


def saved_objects(env: Any) -> dict[str, Any]:
    """Return copies of the tensors and numbers of a VMAS environment, by path and attribute.

    An object or a tensor reached twice is saved where it is met first and referred to by that
    path elsewhere, since changing it in one place changes it in the other.
    """
    objects = _walk(env)
    names = {id(found): path for path, found in objects.items()}
    tensors: dict[int, str] = {}
    return {
        path: {
            key: _saved(child, f"{path}/{key}", names, tensors)
            for key, child in _parts(found).items()
        }
        for path, found in objects.items()
    }


def load_objects(env: Any, saved: dict[str, Any], device: torch.device) -> None:
    """Put `saved_objects()` of an environment made with the same options into `env`."""
    objects = _walk(env)
    for path, parts in saved.items():
        # Lists and dicts that play adds, e.g. of the forces on each entity.
        objects.setdefault(path, {} if "key 0" in parts else [])
    tensors: dict[str, Tensor] = {}
    for path, parts in saved.items():
        loaded = {
            key: _loaded(value, f"{path}/{key}", objects, tensors, device)
            for key, value in parts.items()
            if not (isinstance(value, str) and value == _CONSTANT)
        }
        _put(objects[path], loaded, len(parts))


def _walk(env: Any) -> dict[str, Any]:
    """Return all objects, lists and dicts that `env` consists of, by path."""
    scenario_home = type(env.scenario).__module__
    objects: dict[str, Any] = {"world": env.world, "scenario": env.scenario, "env": env}
    seen = {id(found) for found in objects.values()}
    queue = deque(objects.items())
    while queue:
        path, parent = queue.popleft()
        for key, child in _parts(parent).items():
            if id(child) not in seen and _is_walked(child, scenario_home):
                seen.add(id(child))
                objects[f"{path}/{key}"] = child
                queue.append((f"{path}/{key}", child))
    return objects


def _is_walked(child: Any, scenario_home: str) -> bool:
    """Return whether a part may change and hold others: containers, and what VMAS defines."""
    if isinstance(child, dict | list | tuple):
        return True
    home = type(child).__module__
    # VMAS loads a scenario's file as a module apart; one of them draws torch's distributions.
    at_home = home == scenario_home or home.startswith(("vmas.", "torch.distributions."))
    return at_home and hasattr(child, "__dict__") and not isinstance(child, Enum)


def _parts(parent: Any) -> dict[str, Any]:
    """Return the parts of an object by name, of a sequence by index, of a dict by position."""
    if isinstance(parent, dict):
        keys = {f"key {index}": key for index, key in enumerate(parent)}
        return keys | {f"value {index}": value for index, value in enumerate(parent.values())}
    if isinstance(parent, list | tuple):
        return {str(index): child for index, child in enumerate(parent)}
    return vars(parent)


def _saved(child: Any, path: str, names: dict[int, str], tensors: dict[int, str]) -> Any:
    """Return what is saved of one part: itself, its path, or that it never changes."""
    if id(child) in names:
        return _OBJECT + names[id(child)]
    if isinstance(child, Tensor):
        first = tensors.setdefault(id(child), path)
        return child.detach().cpu().numpy().copy() if first == path else _TENSOR + first
    if isinstance(child, str):
        return _TEXT + child
    return child if isinstance(child, bool | int | float | None) else _CONSTANT


def _loaded(
    value: Any,
    path: str,
    objects: dict[str, Any],
    tensors: dict[str, Tensor],
    device: torch.device,
) -> Any:
    """Return the part that was saved as `value`."""
    if isinstance(value, np.ndarray):
        tensors[path] = torch.from_numpy(value.copy()).to(device)
        return tensors[path]
    if not isinstance(value, str):
        return value
    if value.startswith(_OBJECT):
        return objects[value.removeprefix(_OBJECT)]
    return (
        tensors[value.removeprefix(_TENSOR)] if value.startswith(_TENSOR) else value[len(_TEXT) :]
    )


def _put(parent: Any, parts: dict[str, Any], size: int) -> None:
    """Write the parts into an object, a list or a dict that had `size` parts, constants too."""
    if isinstance(parent, dict):
        # A key that is saved as constant, or consists of others, is the key that is there.
        there = dict(enumerate(parent))
        fresh = {}
        for index in range(size // 2):
            key = parts.get(f"key {index}", there.get(index))
            key = there.get(index) if isinstance(key, dict | list | tuple) else key
            fresh[key] = parts.get(f"value {index}", parent.get(key))
        parent.clear()
        parent.update(fresh)
    elif isinstance(parent, list):
        parent[size:] = []
        for name, part in parts.items():
            parent[int(name) : int(name) + 1] = [part]
    elif not isinstance(parent, tuple):
        vars(parent).update(parts)


def saved_generators(states: list[Any]) -> dict[str, Any]:
    """Return the states of PyTorch's, NumPy's and Python's generators as arrays and numbers."""
    torch_state, numpy_state, python_state = states
    return {
        "torch": torch_state.numpy().copy(),
        "numpy": {
            "keys": numpy_state[1].copy(),
            "position": int(numpy_state[2]),
            "has_gauss": int(numpy_state[3]),
            "gauss": float(numpy_state[4]),
        },
        "python": {"words": np.array(python_state[1], np.int64), "gauss": python_state[2]},
    }


def loaded_generators(saved: dict[str, Any]) -> list[Any]:
    """Return the states that `saved_generators` was given."""
    numpy, python = saved["numpy"], saved["python"]
    version = random.getstate()[0]
    return [
        torch.from_numpy(saved["torch"].copy()),
        ("MT19937", numpy["keys"].copy(), numpy["position"], numpy["has_gauss"], numpy["gauss"]),
        (version, tuple(python["words"].tolist()), python["gauss"]),
    ]
