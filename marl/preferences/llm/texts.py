"""The texts that enter a question.

Axes: M episodes.
"""

from functools import partial
from typing import Protocol, runtime_checkable

from envs import EnvSpec
from marl import plugins
from marl.episodes import Episodes
from marl.preferences.describe import describe, describe_whole

MAX_TEXT = 4_000
"""Characters of a text that are kept."""


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
    plain = ("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines)
    return "\n".join(plain)[:MAX_TEXT]
