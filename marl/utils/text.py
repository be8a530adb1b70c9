"""Text from outside: names in files and environments, replies of servers, paths."""


def printable(text: str) -> str:
    """Return a foreign text in which every character can be printed and encoded.

    Control characters, line breaks and lone surrogates are escaped. The text is still foreign:
    rich must be given it as `rich.text.Text`, HTML escaped.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str, most: int = 80) -> str:
    """Return a foreign text as `printable`, cut to `most` characters."""
    plain = printable(text[: most + 1])
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"


def error_text(error: BaseException, most: int = 500) -> str:
    """Return the type and the message of somebody else's exception, on one line, cut."""
    try:
        message = str(error)
    except Exception as another:
        message = f"a message that raises {type(another).__name__}"
    return one_line(f"{type(error).__name__}: {message}", most)
