"""What is raised for a wrong setting."""


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type, or out of range."""
