"""What a PettingZoo `ParallelEnv` has and answers, or what to say where it does not."""

from collections.abc import Callable
from typing import Any

from envs.base import EnvError
from envs.teams.calls import called

_MEMBERS = ("possible_agents", "reset", "step", "observation_space", "action_space")


def made(name: str, factory: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Return what the factory makes, if it is a `ParallelEnv`."""
    env = called(
        name,
        "it takes no num_envs, so it was called as the factory of a PettingZoo ParallelEnv; "
        "correct the options, or let an environment of your own take num_envs",
        factory,
        options,
    )
    missing = [member for member in _MEMBERS if not hasattr(env, member)]
    if hasattr(env, "agent_iter"):
        raise EnvError(
            f"{name} made an AEC environment, whose agents act in turn; name its parallel_env, or "
            "a function that wraps it with pettingzoo.utils.conversions.aec_to_parallel"
        )
    if missing:
        raise EnvError(
            f"{name} takes no num_envs, so it was taken for the factory of a PettingZoo "
            f"ParallelEnv, but it made a {type(env).__name__} without {', '.join(missing)}; "
            "an environment of your own is called as Class(num_envs=..., **options)"
        )
    return env


def answered_reset(answer: Any) -> tuple[Any, Any]:
    """Return observations and infos of a reset."""
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise EnvError(
            f"reset returned a {type(answer).__name__}; a PettingZoo environment returns "
            "(observations, infos)"
        )
    return answer


def entry(values: Any, key: Any, what: str) -> Any:
    """Return an agent's entry, or raise if it is missing."""
    try:
        return values[key]
    except KeyError as error:
        raise EnvError(f"{what} lacks {key!r}, which takes part; return one entry each") from error
