"""Preferences between finished episodes: who labels them, which are asked, what is kept."""

from marl.preferences.labellers import EpisodePairs, Labeller, ReturnLabeller, make_labeller
from marl.preferences.source import PreferenceSource

__all__ = ["EpisodePairs", "Labeller", "PreferenceSource", "ReturnLabeller", "make_labeller"]
