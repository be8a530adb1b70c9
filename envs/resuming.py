"""What every environment asks of a state it is to continue from."""

from envs.base import EnvError, EnvSpec


def refuse_other_copies(spec: EnvSpec, saved: int) -> None:
    """Raise if a state was saved by another number of copies."""
    if saved != spec.num_envs:
        raise EnvError(
            f"{spec.name}: the saved state has {saved} copies, this environment {spec.num_envs}; "
            f"make it with num_envs={saved}"
        )
