class SC2LaunchError(Exception):
    """The game cannot be launched."""
