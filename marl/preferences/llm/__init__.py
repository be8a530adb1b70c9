"""A language model as labeller, behind any endpoint that speaks OpenAI's chat protocol."""

from typing import TYPE_CHECKING

from envs import lazy_attributes

if TYPE_CHECKING:
    from marl.preferences.llm.labeller import LabellerWarning, LlmLabeller
    from marl.preferences.llm.shared import SharedLlm

__all__ = ["LabellerWarning", "LlmLabeller", "SharedLlm"]

# The client takes a second to import and is not needed to read an answer cache.
__getattr__ = lazy_attributes(
    __name__,
    {
        "LabellerWarning": "marl.preferences.llm.labeller",
        "LlmLabeller": "marl.preferences.llm.labeller",
        "SharedLlm": "marl.preferences.llm.shared",
    },
)
