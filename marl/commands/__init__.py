"""The subcommands of `marl`."""
