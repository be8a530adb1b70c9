class ConnectionError(Exception):
    """A message could not be read or written."""


class ProtocolError(Exception):
    """The game answered with an error."""
