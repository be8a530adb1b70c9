"""The base of all errors that are the user's to mend."""


class UserError(Exception):
    """An error whose message says what to do; the command line shows it without a traceback."""
