"""The error of all environments."""


class EnvError(ValueError):
    """An environment was asked for, or returned, something outside the contract."""
