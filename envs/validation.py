"""Checks of what an environment is given and returns: its spec, one step, the actions.

`envs.checker` plays an environment and uses them on every step; the collector of rollouts uses
`fitting_step` on the first one, environments use `checked_actions` on every call.
"""

import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from envs.base import STEP_ARRAYS, ActionKind, BoolArray, EnvError, EnvSpec, EnvStep
from envs.devices import step_on_host
from envs.native import described
from envs.parts import part_layout, wrong_parts
from envs.plugins import source_of

MEMBERS = ("spec", "reset", "step", "state_dict", "load_state_dict")
"""What every environment has."""


def missing_members(env: Any) -> list[str]:
    """Return the members of the contract that an object lacks."""
    return [member for member in MEMBERS if not hasattr(env, member)]


class Problems:
    """Sentences about what is wrong; the first of each kind is kept."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._first: dict[str, str] = {}

    def add(self, kind: str, sentence: str) -> None:
        """Keep the sentence unless this kind of problem is known already.

        An error of ours names the environment itself.
        """
        is_named = sentence.startswith((f"{self._name}: ", f"{self._name}, "))
        self._first.setdefault(kind, sentence if is_named else f"{self._name}: {sentence}")

    def warn(self, kind: str, sentence: str) -> None:
        """Keep a sentence about something that may be meant."""
        self._first.setdefault(kind, f"warning: {self._name}: {sentence}")

    def drop(self, kind: str) -> None:
        """Forget a sentence, if there is one of this kind."""
        self._first.pop(kind, None)

    def __contains__(self, kind: object) -> bool:
        return kind in self._first

    def __len__(self) -> int:
        return len(self._first)

    def sentences(self) -> list[str]:
        """Return the sentences in the order they were found."""
        return list(self._first.values())


def check_spec(spec: EnvSpec, problems: Problems) -> None:
    """Note sizes that cannot be."""
    if spec.action_kind not in get_args(ActionKind):
        problems.add(
            "action_kind",
            f"spec.action_kind is {spec.action_kind!r}; say 'discrete', 'continuous' or "
            "'composite'",
        )
    widths = tuple(sum(max(part, 1) for part in parts) for parts in spec.action_parts)
    if widths != (spec.action_sizes if spec.action_kind == "composite" else ()):
        problems.add(
            "action_parts",
            f"spec.action_parts is {spec.action_parts!r} and spec.action_sizes "
            f"{spec.action_sizes!r}; give the parts of every agent's composite action, k for a "
            "choice among k and 0 for a number, and as many columns, k and 1; none of others",
        )
    for field in ("num_envs", "state_size", "max_steps"):
        value = getattr(spec, field)
        if not isinstance(value, int) or value < 1:
            problems.add(field, f"spec.{field} is {value!r}; give an integer of at least 1")
    for field in ("obs_sizes", "action_sizes"):
        sizes = getattr(spec, field)
        if not sizes or not all(isinstance(size, int) and size >= 1 for size in sizes):
            problems.add(field, f"spec.{field} is {sizes!r}; give one size of at least 1 per agent")
    check_layout(spec, problems)
    if len(spec.obs_sizes) != len(spec.action_sizes):
        problems.add(
            "num_agents",
            f"spec has {len(spec.obs_sizes)} obs_sizes and {len(spec.action_sizes)} "
            "action_sizes; give one of each per agent",
        )
    if spec.agent_names and len(spec.agent_names) != len(spec.obs_sizes):
        problems.add(
            "agent names",
            f"spec.agent_names has {len(spec.agent_names)} names for {len(spec.obs_sizes)} "
            "agents; give one each, or none",
        )
    names = [fact.name for fact in spec.facts]
    if len(set(names)) < len(names) or not all(name.isidentifier() for name in names):
        problems.add(
            "fact names", f"spec.facts are named {names}; give each an identifier of its own"
        )


def check_layout(spec: EnvSpec, problems: Problems) -> None:
    """Note pictures and lists of entities that do not fit the sizes of what is observed."""
    for field, shape, axes, sizes in (
        ("obs_image", spec.obs_image, 3, set(spec.obs_sizes)),
        ("state_images", spec.state_images, 4, {spec.state_size}),
    ):
        if shape and (len(shape) != axes or min(shape) < 1 or sizes != {math.prod(shape)}):
            problems.add(
                field,
                f"spec.{field} is {shape!r}, which does not fit sizes of {sorted(sizes)}; give "
                f"{axes} numbers whose product is the size, or nothing",
            )
    for entities in spec.entities:
        end = entities.first + entities.count * entities.size
        least = min(
            entities.first, entities.count - 1, entities.size - 1, entities.first_action + 1
        )
        if least < 0 or not spec.obs_sizes or end > min(spec.obs_sizes):
            problems.add(
                "entities",
                f"spec.entities: {entities!r} does not fit into {min(spec.obs_sizes, default=0)} "
                "observed features",
            )
        if entities.first_action >= 0 and (
            spec.action_kind != "discrete"
            or entities.first_action + entities.count > min(spec.action_sizes, default=0)
        ):
            problems.add(
                "entity actions",
                f"spec.entities: {entities!r} names actions that there are not; they are the "
                "numbers of discrete actions, one for each entity",
            )


def answered(
    spec: EnvSpec, answer: Any, where: str, called: Callable[..., Any] | None = None
) -> EnvStep:
    """Return what the call `where`, such as ``step 0``, answered, if it is a step with rewards.

    The message names the function that was `called`, its file and line.
    """
    shape = (spec.num_envs,)
    if not isinstance(answer, EnvStep):
        wrong = f"{type(answer).__name__}; return an envs.EnvStep"
    elif np.shape(answer.rewards) != shape:
        wrong = f"{described(answer.rewards)} as rewards; return numbers of shape {shape}"
    else:
        return answer
    raise EnvError(f"{spec.name}: {where} returned {wrong}{_at(called)}")


def fitting_step(
    spec: EnvSpec, answer: Any, where: str, called: Callable[..., Any] | None = None
) -> EnvStep:
    """Return what was answered, or raise `EnvError` with every array that does not fit the spec.

    The message names the function that was `called`, its file and line.
    """
    if not isinstance(answer, EnvStep):
        return answered(spec, answer, where, called)
    problems = Problems(spec.name)
    _check_arrays(spec, step_on_host(answer), where, problems)
    if problems:
        advice = f"`marl check` tells all that is wrong with it{_at(called)}"
        raise EnvError("\n".join([*problems.sentences(), advice]))
    return answer


def _at(called: Callable[..., Any] | None) -> str:
    """Return the place of a function in brackets; nothing where it is not known."""
    return "" if called is None else f" ({source_of(called)})"


def check_step(spec: EnvSpec, step: EnvStep, where: str, problems: Problems) -> None:
    """Note every field of a step that does not fit the spec."""
    known = len(problems)
    _check_arrays(spec, step, where, problems)
    if len(problems) > known:
        return
    _check_padding(spec, step, where, problems)
    _check_mask(spec, step.action_mask, where, problems)
    both = np.flatnonzero(step.terminated & step.truncated)
    if both.size:
        problems.add(
            "exclusive",
            f"{where}: copy {both[0]} is terminated and truncated; an episode ends as one of "
            "them: terminated if the task itself ended",
        )
    done = step.terminated | step.truncated
    if step.alive is not None and not step.alive.any(axis=1).all():
        copy = np.flatnonzero(~step.alive.any(axis=1))[0]
        problems.add(
            "alive",
            f"{where}: copy {copy} has no living agent; end the episode when the last agent "
            f"dies{' and return alive of the next episode' if done[copy] else ''}",
        )
    if step.alive is not None and step.final_alive is not None:
        apart = np.flatnonzero((step.alive != step.final_alive).any(axis=1) & ~done)
        if apart.size:
            problems.add(
                "final_alive",
                f"{where}: final_alive of copy {apart[0]} differs from alive, but its episode goes "
                "on; the two are equal until an episode ends",
            )


def _check_arrays(spec: EnvSpec, step: EnvStep, where: str, problems: Problems) -> None:
    """Note wrong shapes and types, numbers that are not finite, and arrays against the spec."""
    for field, promised in STEP_ARRAYS.items():
        array, member = getattr(step, field), promised.promise
        is_given = array is not None
        if field == "final_alive" and not is_given:
            continue  # environments need not tell it
        if member and is_given != promised.is_given(spec):
            problems.add(
                field,
                f"{where}: {field} is {'given' if is_given else 'missing'}, but "
                f"spec.{member} is {getattr(spec, member)}; make the two agree",
            )
        elif is_given or not member:
            kind = "float" if field == "rewards" else promised.dtype_in(spec)
            shape = (spec.num_envs, *promised.shape(spec))
            _check_array(field, array, shape, kind, where, problems)


def _check_array(
    field: str,
    array: Any,
    shape: tuple[int, ...],
    kind: str,
    where: str,
    problems: Problems,
) -> None:
    """Note an array of the wrong type or shape, or with numbers that are not finite."""
    if not isinstance(array, np.ndarray):
        problems.add(
            field, f"{where}: {field} is a {type(array).__name__}; return a numpy {kind} array"
        )
        return
    fits = {
        "float32": array.dtype == np.float32,
        "uint8": array.dtype == np.uint8,
        "float": array.dtype.kind == "f",
        "bool": array.dtype == np.bool_,
    }
    if array.shape != shape or not fits[kind]:
        problems.add(
            field,
            f"{where}: {field} is {array.dtype} of shape {array.shape}; "
            f"the spec promises {kind} of shape {shape}",
        )
    elif kind in ("float", "float32") and not np.isfinite(array).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        problems.add(
            field, f"{where}: {field}{list(index)} is {array[index]}; return finite numbers"
        )


def _check_padding(spec: EnvSpec, step: EnvStep, where: str, problems: Problems) -> None:
    """Note features beyond an agent's own size that are not zero."""
    beyond = np.arange(spec.obs_size) >= np.asarray(spec.obs_sizes)[:, None]
    for field, obs in (("obs", step.obs), ("final_obs", step.final_obs)):
        wrong = np.argwhere((obs != 0) & beyond)
        if wrong.size:
            copy, agent, feature = (int(i) for i in wrong[0])
            problems.add(
                f"{field} padding",
                f"{where}: {field}[{copy}, {agent}, {feature}] is {obs[copy, agent, feature]}, "
                f"but {spec.agent_name(agent)} observes {spec.obs_sizes[agent]} features; pad with "
                "zeros",
            )


def _check_mask(
    spec: EnvSpec, action_mask: BoolArray | None, where: str, problems: Problems
) -> None:
    """Note agents without a legal action, and legal actions beyond an agent's own."""
    if action_mask is None:
        return
    stuck = np.argwhere(~action_mask.any(axis=2))
    if stuck.size:
        problems.add(
            "legal action",
            f"{where}: copy {stuck[0][0]}, {spec.agent_name(stuck[0][1])} has no legal action; "
            "leave one legal, also for the dead",
        )
    if spec.action_kind == "composite":
        layout = part_layout(spec.action_parts)
        none = ~layout.by_part(action_mask, False).any(axis=-1) & layout.exists
        if none.any() or (layout.is_number & ~action_mask).any():
            problems.add(
                "legal part",
                f"{where}: an action has a part without a legal choice, or a masked number; leave "
                "one choice of each part legal, and all numbers",
            )
    beyond = np.arange(spec.action_size) >= np.asarray(spec.action_sizes)[:, None]
    wrong = np.argwhere(action_mask & beyond)
    if wrong.size:
        problems.add(
            "mask padding",
            f"{where}: copy {wrong[0][0]}, {spec.agent_name(wrong[0][1])} may choose action "
            f"{wrong[0][2]}, "
            f"but has {spec.action_sizes[wrong[0][1]]} choices; mask the rest as illegal",
        )


def checked_actions(
    spec: EnvSpec, action_mask: BoolArray | None, actions: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Return the actions if every one of them is legal, else say which is not."""
    actions = np.asarray(actions)
    shape: tuple[int, ...] = (spec.num_envs, spec.num_agents)
    if spec.action_kind != "discrete":
        shape = (*shape, spec.action_size)
    kind_fits = (actions.dtype.kind in "iu") == (spec.action_kind == "discrete")
    if actions.shape != shape or not kind_fits:
        wanted = "integer" if spec.action_kind == "discrete" else "float"
        raise EnvError(
            f"{spec.name}: got {actions.dtype} actions of shape {actions.shape}; "
            f"give {wanted} actions of shape {shape}"
        )
    if spec.action_kind == "composite":
        wrong = wrong_parts(part_layout(spec.action_parts), actions, action_mask)
        if wrong.any():
            copy, agent = (int(i) for i in np.argwhere(wrong)[0])
            raise EnvError(
                f"{spec.name}: action {actions[copy, agent].tolist()} of copy {copy}, "
                f"{spec.agent_name(agent)} is illegal; its parts are "
                f"{spec.action_parts[agent]}: a legal choice among k is one-hot, a number (0) in "
                "[-1, 1]"
            )
        return actions
    if spec.action_kind == "continuous":
        allowed = np.abs(actions) <= 1.0 + 1e-6
    else:
        allowed = (actions >= 0) & (actions < np.asarray(spec.action_sizes))
    if action_mask is not None and allowed.all():
        allowed = np.take_along_axis(action_mask, actions[:, :, None], axis=2)[:, :, 0]
    if not allowed.all():
        where = tuple(int(i) for i in np.argwhere(~allowed)[0])
        raise EnvError(
            f"{spec.name}: action {actions[where]} of copy {where[0]}, "
            f"{spec.agent_name(where[1])} is illegal; stay within the action sizes "
            f"{spec.action_sizes}"
            f"{', the mask' if spec.masks_actions else ''}"
            f"{' and [-1, 1]' if spec.action_kind == 'continuous' else ''}"
        )
    return actions
