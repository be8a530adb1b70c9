"""A batch of environments out of the JAX functions of one, compiled for the CPU.

`JaxEnv` is an environment in the sense of `envs.base`; what is simulated is a `JaxTask`, functions
of a single environment. Run many together, hundreds or more: a step has a cost of its own beside
that of its environments. JAX's threads work only while `step` waits for them, PyTorch's only
between steps, so that neither needs to leave the other a core; no setting of JAX or of the process
is changed.

Importing this module imports JAX. Axes are those of `envs.base`; K: episodes begun anew together.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from envs.base import EnvError, EnvSpec, EnvStep, check_num_envs, split_ends
from envs.devices import keeps_arrays
from envs.rng import env_seeds
from envs.validation import checked_actions


class View(NamedTuple):
    """What a team sees, of one environment; with the axis E in front, of all."""

    obs: jax.Array
    """(N, O) float32."""
    state: jax.Array
    """(S,) float32."""
    action_mask: jax.Array | None = None
    """(N, A) True where an action is legal."""
    alive: jax.Array | None = None
    """(N,) True while the agent lives."""
    facts: jax.Array | None = None
    """(F,) float32, of the episode so far."""


class JaxTask(Protocol):
    """The functions of one environment, which JAX can compile and map over many.

    Keys are the two uint32 words of a Threefry key (`typed`).
    """

    def begin(self, key: jax.Array) -> tuple[Any, View]:
        """Return the arrays of a new episode, and what is seen of it."""
        ...

    def advance(
        self, key: jax.Array, arrays: Any, actions: jax.Array
    ) -> tuple[Any, View, jax.Array, jax.Array]:
        """Return arrays and view one step later, the team's reward, and whether the task is over.

        `actions` are (N,) int32 or (N, A) float32. A limit of time is not the task's, but in
        `EnvSpec`.
        """
        ...


class Running(NamedTuple):
    """Everything that changes from step to step; every array starts with the axis E."""

    keys: jax.Array
    """(E, 2) uint32 words of each environment's key."""
    steps: jax.Array
    """(E,) int32 steps since the episode began."""
    arrays: Any
    """The task's own."""


class Outcome(NamedTuple):
    """What one step of all environments led to."""

    view: View
    """Where an episode ended, of its successor."""
    final: View
    """Before any restart."""
    rewards: jax.Array
    """(E,) float32."""
    terminated: jax.Array
    """(E,) booleans."""
    truncated: jax.Array
    """(E,) booleans."""


class JaxEnv:
    """E environments of a task."""

    def __init__(self, spec: EnvSpec, task: JaxTask, device: str = "cpu") -> None:
        """Prepare the environments; call `reset` before `step`.

        On a device such as "cuda" or "cuda:1" observations, state and masks stay there
        (`envs.devices`).
        """
        self._spec = spec
        self._device = _device(spec.name, device)
        self._keeps_arrays = keeps_arrays(device)
        self._compiled = Compiled(task, spec.max_steps, finite_horizon=spec.finite_horizon)
        self._running: Any = None
        self._mask: Any = None

    @property
    def spec(self) -> EnvSpec:
        """The constants of this environment."""
        return self._spec

    def reset(self, seed: int) -> EnvStep:
        """Return the start of a new episode in every environment."""
        num_envs = self._spec.num_envs
        # The 64 bits of an environment's seed are the two words of its Threefry key.
        keys = env_seeds(seed, num_envs).view(np.uint32).reshape(num_envs, 2)
        self._running, view = self._compiled.begin(jax.device_put(keys, self._device))
        self._mask = self._shown(view.action_mask)
        return EnvStep.first(
            obs=self._shown(view.obs),
            state=self._shown(view.state),
            action_mask=self._mask,
            alive=_array(view.alive),
            facts=_array(view.facts),
        )

    def step(self, actions: npt.NDArray[Any]) -> EnvStep:
        """Return what the joint actions led to; environments that ended show their successors."""
        self._check_begun("step")
        checked = checked_actions(self._spec, self._mask_to_check(actions), actions)
        kind = np.int32 if self._spec.action_kind == "discrete" else np.float32
        self._running, outcome = self._compiled.advance(self._running, checked.astype(kind))
        self._mask = self._shown(outcome.view.action_mask)
        return EnvStep(
            obs=self._shown(outcome.view.obs),
            state=self._shown(outcome.view.state),
            rewards=np.asarray(outcome.rewards),
            terminated=np.asarray(outcome.terminated),
            truncated=np.asarray(outcome.truncated),
            final_obs=self._shown(outcome.final.obs),
            final_state=self._shown(outcome.final.state),
            action_mask=self._mask,
            alive=_array(outcome.view.alive),
            final_alive=_array(outcome.final.alive),
            facts=_array(outcome.final.facts),
        )

    def arrays_of(self, index: int, what: str) -> Any:
        """Return the task's arrays of one environment, for `what`; nothing of others is fetched."""
        self._check_begun(what)
        return jax.device_get(self._compiled.pick(self._running.arrays, index))

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything that changes, keys as their words."""
        self._check_begun("state_dict")
        leaves, _ = jax.tree_util.tree_flatten_with_path(self._running)
        saved = {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves}
        mask = {} if self._mask is None else {"action_mask": np.array(self._mask)}
        return {"running": saved} | mask

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from `state_dict()` of an environment made with the same options."""
        saved = state["running"]
        check_num_envs(self._spec, len(saved[".steps"]))
        if self._running is None:
            self.reset(seed=0)
        self._running = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jax.device_put(
                np.array(saved[jax.tree_util.keystr(path)], leaf.dtype), self._device
            ),
            self._running,
        )
        self._mask = None
        if "action_mask" in state:
            mask = jax.device_put(state["action_mask"].copy(), self._device)
            self._mask = self._shown(mask)

    def _shown(self, array: jax.Array | None) -> Any:
        """Return a large array as `EnvStep` holds it: of the device, or NumPy's."""
        return array if self._keeps_arrays else _array(array)

    def _mask_to_check(self, actions: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
        """Return the mask; None where it is on a device that has found all actions legal."""
        if self._mask is None or isinstance(self._mask, np.ndarray):
            return self._mask
        fits = np.shape(actions) == self._mask.shape[:2]
        is_legal = fits and bool(self._compiled.legal(self._mask, actions))
        return None if is_legal else np.asarray(self._mask)

    def _check_begun(self, what: str) -> None:
        """Raise unless `reset` has been called."""
        if self._running is None:
            raise EnvError(f"{self._spec.name}: {what} before reset; call reset(seed) first")


def _device(name: str, device: str) -> Any:
    """Return JAX's device of a name such as ``cpu``, ``cuda`` or ``cuda:1``."""
    kind, _, index = device.partition(":")
    try:
        return jax.devices(kind)[int(index or 0)]
    except (RuntimeError, IndexError, ValueError):
        there = ", ".join(sorted({each.platform for each in jax.devices()}))
        raise EnvError(
            f"{name}: the option device is {device!r}, but JAX {jax.__version__} finds {there}; "
            "install jax[cuda12] for a GPU of NVIDIA's, or leave the option out"
        ) from None


def check_sizes(name: str, num_envs: int, max_steps: int) -> None:
    """Raise `EnvError` unless there are environments and steps."""
    if num_envs < 1 or max_steps < 1:
        raise EnvError(
            f"{name}: num_envs is {num_envs} and max_steps is {max_steps}; expected at least 1"
        )


def _array(array: jax.Array | None) -> Any:
    """Return an array that may not be given as NumPy's; on the CPU it is JAX's own memory."""
    return None if array is None else np.asarray(array)


RESTARTED_TOGETHER = 64
"""K: episodes that end are begun anew in groups of so many, since most steps end only a few."""


class Compiled:
    """The compiled functions of one task; it holds nothing that changes."""

    def __init__(self, task: JaxTask, max_steps: int, *, finite_horizon: bool) -> None:
        """`max_steps` and `finite_horizon` are those of `EnvSpec`."""
        self._task = task
        self._max_steps = max_steps
        self._finite_horizon = finite_horizon
        self.begin: Callable[..., Any] = jax.jit(self._begin)
        """(E, 2) keys -> `Running` and its first `View`."""
        self.advance: Callable[..., Any] = jax.jit(self._advance, donate_argnums=0)
        """`Running` and the agents' actions -> the next `Running`, and the `Outcome`."""
        self.legal: Callable[..., Any] = jax.jit(_legal)
        """An (E, N, A) mask and (E, N) actions -> whether all of them are legal."""
        self.pick: Callable[..., Any] = jax.jit(_pick)
        """Arrays and an environment's number -> that environment's arrays."""

    def _begin(self, keys: jax.Array) -> tuple[Running, View]:
        """Return new episodes, each drawn from its own key."""
        keys, reset_keys = _split(keys)
        arrays, view = jax.vmap(self._task.begin)(reset_keys)
        return _as_typed(Running(keys, jnp.zeros(len(keys), jnp.int32), arrays)), view

    def _advance(self, running: Running, actions: jax.Array) -> tuple[Running, Outcome]:
        """Return environments one step later; those whose episode ended are begun anew.

        Keys are drawn as `MultiAgentEnv.step` of JaxMARL draws them.
        """
        keys, step_keys = _split(running.keys)
        step_keys, reset_keys = _split(step_keys)
        arrays, seen, rewards, over = jax.vmap(self._task.advance)(
            step_keys, running.arrays, actions
        )
        steps = running.steps + 1
        out_of_time = steps >= self._max_steps
        terminated, truncated = split_ends(self._finite_horizon, over, out_of_time)
        done = terminated | truncated
        arrays, view = self._restart(done, reset_keys, _like(arrays, running.arrays), seen)
        outcome = Outcome(
            view=view,
            final=seen,
            rewards=rewards.astype(jnp.float32),
            terminated=terminated,
            truncated=truncated,
        )
        return Running(keys, jnp.where(done, 0, steps), arrays), outcome

    def _restart(
        self, done: jax.Array, keys: jax.Array, arrays: Any, view: View
    ) -> tuple[Any, View]:
        """Return arrays and view with new episodes where `done`, at most K of them at a time."""
        together = min(RESTARTED_TOGETHER, len(done))

        def some_left(carry: tuple[jax.Array, Any, View]) -> jax.Array:
            return carry[0].any()

        def restart(carry: tuple[jax.Array, Any, View]) -> tuple[jax.Array, Any, View]:
            left, *old = carry
            # Rows past the end fill the group up; they are read as the last one, never written.
            rows = jnp.nonzero(left, size=together, fill_value=len(done))[0]
            new = jax.vmap(self._task.begin)(keys[rows])
            arrays, view = jax.tree.map(
                lambda was, now: was.at[rows].set(now.astype(was.dtype), mode="drop"),
                tuple(old),
                new,
            )
            return left.at[rows].set(False, mode="drop"), arrays, view

        _, arrays, view = jax.lax.while_loop(some_left, restart, (done, arrays, view))
        return arrays, view


def _legal(mask: jax.Array, actions: jax.Array) -> jax.Array:
    """Return whether the mask allows every action; one that does not exist is not legal."""
    chosen = jax.nn.one_hot(actions, mask.shape[-1], dtype=jnp.bool_)
    return (chosen & mask).any(axis=-1).all()


def _pick(arrays: Any, index: int) -> Any:
    """Return the arrays of one environment."""
    return jax.tree.map(lambda leaf: leaf[index], arrays)


def typed(key: jax.Array) -> jax.Array:
    """Return a key from its words, whatever generator the user's JAX is set to."""
    return jax.random.wrap_key_data(key, impl="threefry2x32")


def _split(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return two sets of (E, 2) key words from one."""
    pairs = jax.random.key_data(jax.vmap(jax.random.split)(typed(keys)))
    return pairs[:, 0], pairs[:, 1]


def _as_typed(tree: Any) -> Any:
    """Return arrays whose types are fixed: a number that is weakly typed would compile twice."""
    return jax.tree.map(lambda array: array.astype(array.dtype), tree)


def _like(tree: Any, model: Any) -> Any:
    """Return arrays of exactly the types of `model`, so that one compilation serves every step."""
    return jax.tree.map(lambda array, of: array.astype(of.dtype), tree, model)
