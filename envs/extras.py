"""Which optional extra of this package installs a module."""

EXTRAS = {
    "mpe2": "mpe2",
    "pettingzoo.sisl": "sisl",
    "lbforaging": "lbforaging",
    "rware": "rware",
}
"""Module, or package of modules, and the extra."""


def extra_hint(module: str) -> str | None:
    """Return how to install what `module` needs, or None if no extra has it."""
    for package, extra in EXTRAS.items():
        if f"{module}.".startswith(f"{package}."):
            return f"{package} needs an extra; install it with: pip install 'prefmarl[{extra}]'"
    return None
