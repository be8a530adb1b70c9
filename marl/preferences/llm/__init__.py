"""A language model as labeller, behind any endpoint that speaks OpenAI's chat protocol."""

from marl.preferences.llm.labeller import LabellerWarning, LlmLabeller

__all__ = ["LabellerWarning", "LlmLabeller"]
