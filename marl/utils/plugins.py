"""Code that settings name by import path, ``package.module:name``: loading it, and whose may run.

Settings may name an environment, a learner, an encoder, a labeller or a reward model of the user's,
and importing it runs it. What stands on the command line is yours, and so is a run that you trained
on this machine: training notes its id and the import paths of its settings in a private list under
your state folder (``$XDG_STATE_HOME/prefmarl/runs``, by default in ``~/.local/state``). What
another run, or a file of settings, names is refused, or asked about on a terminal, unless you grant
it. So is the language model that it asks: it would be sent your key, and answers are written to a
file.
"""

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from envs import EnvError
from envs.plugins import load_attribute
from marl import UserError
from marl.config import Config, ConfigError, PreferenceConfig
from marl.config.preferences import LlmConfig
from marl.utils.text import printable

IDENTITY = "run_id"
"""File of a run's folder."""

_granted: set[Path] = set()
_grants_everything = False


class PluginError(UserError, ValueError):
    """A plug-in returned something outside its protocol."""


def load(path: str, what: str) -> Callable[..., Any]:
    """Return the callable at `path`, ``package.module:name``; the current folder is searched first.

    `what` says in error messages which setting is being read, e.g. ``"preferences.labeller"``.
    """
    try:
        return load_attribute(path, what, "an import path such as my_module:my_function")
    except EnvError as error:
        raise ConfigError(str(error)) from error


def import_paths(config: Config) -> dict[str, str]:
    """Return the settings that name code outside of this package, ``module:name``, by setting."""
    return (
        environment_paths(config)
        | learner_paths(config)
        | reward_paths(config)
        | labeller_paths(config.preferences)
    )


def environment_paths(config: Config) -> dict[str, str]:
    """Return the part of `import_paths` that making the environment imports."""
    named: dict[str, object] = {"env.name": config.env.name}
    named |= {f"env.options.{key}": value for key, value in config.env.options.items()}
    return _paths(named)


def learner_paths(config: Config) -> dict[str, str]:
    """Return the part of `import_paths` that making the learner imports."""
    named = {"learner.kind": config.learner.kind, "network.encoder": config.network.encoder}
    return _paths(named)


def reward_paths(config: Config) -> dict[str, str]:
    """Return the part of `import_paths` that making the reward model imports."""
    named = {"reward.model": config.reward.model, "reward.encoder": config.reward.encoder}
    if config.fits_policy:
        named["network.encoder"] = config.network.encoder
    return _paths(named)


def fit_paths(config: Config) -> dict[str, str]:
    """Return the part of `import_paths` that fitting a reward or a policy to a dataset imports."""
    return reward_paths(config) | _paths({"network.encoder": config.network.encoder})


def labeller_paths(preferences: PreferenceConfig) -> dict[str, str]:
    """Return the part of `import_paths` that making the labeller imports."""
    return _paths(
        {
            "preferences.labeller": preferences.labeller,
            "preferences.llm.fallback": preferences.llm.fallback,
            "preferences.llm.describe": preferences.llm.describe,
        }
    )


def endpoint_settings(preferences: PreferenceConfig) -> dict[str, str]:
    """Return by name where a language model is asked, with which key and files; empty: none is."""
    return _endpoint(preferences) if "llm" in preferences.labellers else {}


def _endpoint(preferences: PreferenceConfig) -> dict[str, str]:
    """Return the settings of a language model's endpoint that have not their defaults."""
    defaults = LlmConfig()
    names = ("base_url", "api_key_env", "prompt", "cache")
    given = {name: getattr(preferences.llm, name) for name in names}
    return {
        f"preferences.llm.{name}": value
        for name, value in given.items()
        if value != getattr(defaults, name)
    }


def _paths(settings: Mapping[str, object]) -> dict[str, str]:
    return {name: path for name, path in settings.items() if isinstance(path, str) and ":" in path}


def grant(folder: Path | str | None = None) -> None:
    """Let the code that a run's folder names be imported in this process; None: whatever is named.

    It stands for ``--trust``.
    """
    global _grants_everything
    if folder is None:
        _grants_everything = True
    else:
        _granted.add(Path(folder).resolve())


def check_trusted(
    paths: Mapping[str, str],
    folder: Path | str,
    own: Config | None = None,
    endpoint: Mapping[str, str] | None = None,
) -> None:
    """Raise `ConfigError` unless code that `folder` (a run, or a file of settings) names may run.

    `paths` are the settings that name it, `endpoint` those of the language model that would be
    asked. `own` is the run's whole configuration, by which it is known as one of this user's;
    without it, only a grant or an answer on the terminal will do.
    """
    if paths:
        _check(paths, folder, own, "code that would be imported and run", "import it")
    if endpoint:
        what = "a language model that would be asked, be sent your key, and its answers be kept"
        _check(endpoint, folder, own, what, "ask it")


def _check(
    settings: Mapping[str, str], folder: Path | str, own: Config | None, what: str, question: str
) -> None:
    """Raise `ConfigError` unless `what` some settings of `folder` name is trusted or granted."""
    place = Path(folder)
    if _grants_everything or place.resolve() in _granted:
        return
    if own is not None and _entry(identity_of(place), own) in _remembered():
        return
    named = ", ".join(f"{setting} = {value!r}" for setting, value in settings.items())
    if sys.stdin.isatty() and sys.stderr.isatty():
        print(printable(f"{place} names {what}: {named}"), file=sys.stderr)
        print(f"{question}? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            grant(place)
            return
    raise ConfigError(
        f"{place} names {what}: {named}. It was not trained by you on this machine, nor does the "
        "command line name it; if you trust where it comes from, add --trust (in Python: "
        "marl.load(run, trust=True))"
    )


def identity_of(folder: Path) -> str:
    """Return a run's id, empty if it has none.

    It stays the same when the run is resumed or its folder moved.
    """
    path = folder / IDENTITY
    if not path.is_file():  # a named pipe would be waited for without end
        return ""
    try:
        return path.read_text(encoding="ascii").strip()[:64]
    except (OSError, UnicodeDecodeError):
        return ""


def remember(identity: str, config: Config) -> None:
    """Note that this user trains the run `identity`, so that its code is trusted from now on.

    A state folder that cannot be written costs a question later, not the run.
    """
    entry = _entry(identity, config)
    if not named_for_trust(config) or entry in _remembered():
        return
    path = _list_of_runs()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a") as file:
            file.write(f"{entry}\n")
    except OSError as error:
        warnings.warn(
            f"{path} cannot be written ({error}); commands on this run will need --trust",
            stacklevel=2,
        )


def _entry(identity: str, config: Config) -> str:
    """Return the line of a run: its id, and a digest of what its settings name.

    So a run that came back with other code under the same id is not trusted.
    """
    named = json.dumps(named_for_trust(config), sort_keys=True)
    return f"{identity} {hashlib.sha256(named.encode()).hexdigest()}"


def named_for_trust(config: Config) -> dict[str, str]:
    """Return all settings that take trust, by name: code, and a language model's endpoint."""
    return import_paths(config) | _endpoint(config.preferences)


def _remembered() -> set[str]:
    try:
        return set(_list_of_runs().read_text(encoding="ascii").splitlines())
    except (OSError, UnicodeDecodeError):
        return set()


def _list_of_runs() -> Path:
    state = os.environ.get("XDG_STATE_HOME")
    home = Path(state) if state else Path.home() / ".local" / "state"
    return home / "prefmarl" / "runs"
