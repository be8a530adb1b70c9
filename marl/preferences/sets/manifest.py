"""What a preference set says of itself: ``set.toml``."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import tomli_w

from envs import EnvSpec
from marl.config import ConfigError, Option
from marl.config.files import build, plain, read_toml
from marl.disk import write_whole

FORMAT = 1
"""Version of the format that this program writes, and the newest that it reads."""


class SetError(ValueError):
    """A preference set, or an episode in it, is not as the format says."""


@dataclass(frozen=True, kw_only=True)
class SetEnvironment:
    """How to make the environment in which the episodes were played."""

    name: str
    """As in ``env.name``; foreign data may name whatever it likes."""
    options: dict[str, Option] = field(default_factory=dict)
    """As in ``env.options``."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that is needed to interpret the arrays of a set's episodes."""

    format: int = FORMAT
    environment: SetEnvironment
    spec: EnvSpec
    """Sizes, kinds and facts; `num_envs` says nothing and is 1."""
    origin: dict[str, Option] = field(default_factory=dict)
    """Where the episodes come from, in free words, e.g. ``run``, ``algorithm``, ``steps``."""


def manifest_path(folder: Path) -> Path:
    """Return where a set says what it is; a folder without this file is none."""
    return folder / "set.toml"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``set.toml``, whole or not at all."""
    single = replace(manifest, spec=replace(manifest.spec, num_envs=1))
    write_whole(manifest_path(folder), tomli_w.dumps(plain(single)).encode())


def read_manifest(folder: Path) -> Manifest:
    """Return what a set says of itself, or raise `SetError` if it is none that we can read."""
    path = manifest_path(folder)
    if not path.is_file():
        raise SetError(
            f"{folder} is no preference set: it has no {path.name}; `marl export RUN DIR` makes one"
        )
    try:
        values = read_toml(path)
        version = values.get("format")
        if type(version) is not int or version < 1:
            raise SetError(f"{path}: format is {version!r}, expected a number from 1 to {FORMAT}")
        if version > FORMAT:
            raise SetError(
                f"{path}: the set has format {version}, this program reads up to {FORMAT}; use "
                "the release that wrote it, or a newer one"
            )
        manifest = build(Manifest, values, str(path))
    except ConfigError as error:
        raise SetError(str(error)) from error
    _check_spec(manifest.spec, path)
    return manifest


def _check_spec(spec: EnvSpec, path: Path) -> None:
    """Raise `SetError` for sizes that no episode can have."""
    agents, actions = len(spec.obs_sizes), len(spec.action_sizes)
    if agents == 0 or agents != actions:
        raise SetError(
            f"{path}: spec.obs_sizes has {agents} agents and spec.action_sizes {actions}; expected "
            "one entry of each per agent, and at least one agent"
        )
    sizes = {
        "obs_sizes": min(spec.obs_sizes),
        "state_size": spec.state_size,
        "action_sizes": min(spec.action_sizes),
        "max_steps": spec.max_steps,
    }
    for name, size in sizes.items():
        if size < 1:
            raise SetError(f"{path}: spec.{name}: got {size}, expected at least 1")
