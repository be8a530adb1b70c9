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
