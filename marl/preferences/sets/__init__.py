"""Preference sets on disk: episodes, their frames, and who preferred which."""
