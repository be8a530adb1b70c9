"""A language model as labeller, behind any endpoint that speaks OpenAI's chat protocol."""

from marl.preferences.llm.labeller import LlmLabeller
from marl.preferences.llm.trouble import LabellerWarning

__all__ = ["LabellerWarning", "LlmLabeller"]
