"""The words of a question: versioned TOML templates, shipped or a user's own, and descriptions.

Axes: M episodes.
"""

import difflib
import hashlib
import string
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, get_args, runtime_checkable

from envs import EnvSpec
from marl.config import ConfigError
from marl.config.io import TOML_FAULTS, shipped_configs
from marl.config.preferences import AskForm
from marl.data.types import Episodes
from marl.preferences.describe import describe, describe_whole
from marl.utils import plugins
from marl.utils.text import printable

MAX_TEXT = 4_000
"""Characters of a text that are kept."""
Messages = tuple[dict[str, str], ...]

FIELDS: dict[str, tuple[str, ...]] = {
    "pointwise": ("task", "episode"),
    "pairwise": ("task", "first", "second"),
}
"""What the text of each form may name in braces; the episodes must be there."""
KEYS = ("version", "form", "choices", "system", "user", "nudge", "known")


@runtime_checkable
class Describe(Protocol):
    """Any callable from episodes to texts; a plain function will do."""

    def __call__(self, episodes: Episodes) -> list[str]:
        """Return M texts that say what happened."""
        ...


def make_description(path: str, spec: EnvSpec) -> Describe:
    """Return the description that a configuration names."""
    if path in ("final", "whole"):
        return partial(describe if path == "final" else describe_whole, facts=spec.facts)
    loaded = plugins.load(path, "preferences.llm.describe")
    description: Describe = loaded() if isinstance(loaded, type) else loaded
    return description


def described(description: Describe, name: str, episodes: Episodes) -> list[str]:
    """Return what a description says, cleaned, or raise `PluginError` if it breaks its promise."""
    texts = description(episodes)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise plugins.PluginError(
            f"description {name} returned {type(texts).__name__}, expected a list of texts, one "
            "per episode"
        )
    if len(texts) != len(episodes):
        raise plugins.PluginError(
            f"description {name} returned {len(texts)} texts for {len(episodes)} episodes; "
            "return one per episode"
        )
    return [cleaned(text) for text in texts]


def cleaned(text: str) -> str:
    """Return a text with what is not printable escaped, its lines kept, and capped."""
    lines = text[:MAX_TEXT].splitlines()
    return "\n".join(map(printable, lines))[:MAX_TEXT]


@dataclass(frozen=True, kw_only=True)
class Template:
    """How a question is put. `identity` tells two versions, or two texts, apart."""

    name: str
    version: int
    form: AskForm
    choices: tuple[str, str]
    """Pointwise: the good grade, then the bad one. Pairwise: the letter of the first shown."""
    system: str
    user: str
    nudge: str
    """Added when a reply was none of the choices."""
    known: tuple[tuple[str, str], ...] = ()
    """(better, worse) descriptions in an unambiguous order, for the preflight."""

    @cached_property
    def identity(self) -> str:
        """Name, version and a digest of the words."""
        words = "\0".join((self.system, self.user, self.nudge, *self.choices))
        digest = hashlib.sha256(words.encode()).hexdigest()[:12]
        return f"{self.name}@{self.version}:{digest}"

    def messages(self, **fields: str) -> Messages:
        """Return the question with its fields filled in; braces in a field stay as they are."""
        return (
            {"role": "system", "content": self.system.strip()},
            {"role": "user", "content": self.user.format(**fields).strip()},
        )

    def nudged(self, messages: Messages) -> Messages:
        """Return a question once more, with the reminder of how to answer."""
        *before, last = messages
        return (*before, {**last, "content": f"{last['content']}\n\n{self.nudge}"})


def shipped_prompts() -> Path:
    """Return the folder of the shipped templates."""
    return shipped_configs() / "prompts"


def load_template(prompt: str, form: AskForm) -> Template:
    """Return the template a configuration names, or raise `ConfigError`."""
    name = prompt or form
    path = Path(name) if name.endswith(".toml") else shipped_prompts() / f"{name}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = ", ".join(sorted(p.stem for p in shipped_prompts().glob("*.toml")))
        raise ConfigError(
            f"preferences.llm.prompt: there is no {path}; give the path of a .toml file or one of "
            f"the shipped names: {there}"
        ) from None
    except TOML_FAULTS as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    template = _template(path, values)
    if template.form != form:
        raise ConfigError(
            f'{path}: form is "{template.form}", but preferences.llm.ask is "{form}"; change one'
        )
    return template


def _template(path: Path, values: dict[str, Any]) -> Template:
    for key in values:
        if key not in KEYS:
            raise ConfigError(f"{path}: unknown key {key!r}{_nearest(key, KEYS)}")
    form: Any = values.get("form")
    if form not in get_args(AskForm):
        raise ConfigError(f'{path}: form is {form!r}, expected "pointwise" or "pairwise"')
    for key, kind in (("version", int), ("system", str), ("user", str), ("nudge", str)):
        if type(values.get(key)) is not kind:
            raise ConfigError(f"{path}: {key} is {values.get(key)!r}, expected {kind.__name__}")
    choices: Any = values.get("choices")
    if not _two_words(choices):
        raise ConfigError(f"{path}: choices is {choices!r}, expected two different words")
    _check_fields(path, values["user"], FIELDS[form])
    known = values.get("known", [])
    if not isinstance(known, list) or any(
        not isinstance(pair, dict) or set(pair) != {"better", "worse"} for pair in known
    ):
        raise ConfigError(f"{path}: each [[known]] needs the texts 'better' and 'worse' only")
    return Template(
        name=path.stem,
        version=values["version"],
        form=form,
        choices=(choices[0], choices[1]),
        system=values["system"],
        user=values["user"],
        nudge=values["nudge"],
        known=tuple((str(pair["better"]), str(pair["worse"])) for pair in known),
    )


def _two_words(choices: Any) -> bool:
    """Return whether these are two words that no reply could mistake for each other."""
    return (
        isinstance(choices, list)
        and len(choices) == 2
        and all(isinstance(choice, str) and choice.isalnum() for choice in choices)
        and choices[0].lower() != choices[1].lower()
    )


def _check_fields(path: Path, text: str, fields: Sequence[str]) -> None:
    """Raise `ConfigError` for a field that does not exist, is decorated, or is missing."""
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ConfigError(f"{path}: user: {error}; write a literal brace twice") from None
    named = {name for _, name, _, _ in parts if name is not None}
    for _, name, spec, conversion in parts:
        if name is not None and name not in fields:
            raise ConfigError(
                f"{path}: unknown field {{{name}}}{_nearest(name, fields)}; known are "
                + ", ".join(f"{{{field}}}" for field in fields)
            )
        if spec or conversion:
            raise ConfigError(f"{path}: field {{{name}}} takes no format or conversion")
    if missing := set(fields[1:]) - named:
        raise ConfigError(f"{path}: user never shows {{{sorted(missing)[0]}}}")


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
