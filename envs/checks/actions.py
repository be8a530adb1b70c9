"""Whether actions sent to an environment are legal.

Axes: E environment copies, N agents, A actions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import BoolArray, EnvError, EnvSpec


def checked_actions(
    spec: EnvSpec, action_mask: BoolArray | None, actions: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Return the actions if every one of them is legal, else say which is not."""
    actions = np.asarray(actions)
    shape: tuple[int, ...] = (spec.num_envs, spec.num_agents)
    if spec.action_kind == "continuous":
        shape = (*shape, spec.action_size)
    kind_fits = (actions.dtype.kind in "iu") == (spec.action_kind == "discrete")
    if actions.shape != shape or not kind_fits:
        wanted = "integer" if spec.action_kind == "discrete" else "float"
        raise EnvError(
            f"{spec.name}: got {actions.dtype} actions of shape {actions.shape}; "
            f"give {wanted} actions of shape {shape}"
        )
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
