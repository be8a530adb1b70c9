"""Preferences between finished episodes: who labels them, which are asked, what is kept."""

from marl.preferences.compose import Cascade, Vote
from marl.preferences.describe import describe, describe_whole
from marl.preferences.labellers import EpisodePairs, Labeller, ReturnLabeller
from marl.preferences.making import make_labeller
from marl.preferences.rules import FactRule, FactsLabeller
from marl.preferences.source import PreferenceSource
from marl.preferences.teachers import NoisyTeacher

__all__ = [
    "Cascade",
    "EpisodePairs",
    "FactRule",
    "FactsLabeller",
    "Labeller",
    "NoisyTeacher",
    "PreferenceSource",
    "ReturnLabeller",
    "Vote",
    "describe",
    "describe_whole",
    "make_labeller",
]
