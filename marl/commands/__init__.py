"""The subcommands of `marl`: their options, and what is done with them.

The modules import only what their options need; the rest is imported when a command runs, so that
help and mistakes in a command are shown at once.
"""
