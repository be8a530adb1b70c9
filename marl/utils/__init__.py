"""Checkpoints, metrics, progress, seeds and other tools that every part uses."""
