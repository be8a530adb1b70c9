"""How to install the optional package that a module belongs to."""

from envs.smacv2.source import INSTALL

EXTRAS = {
    "mpe2": "mpe2",
    "pettingzoo.sisl": "sisl",
    "lbforaging": "lbforaging",
    "rware": "rware",
    "jaxmarl": "smax",
    "vmas": "vmas",
}
"""Module, or package of modules, and the extra of this distribution that installs it."""

BY_HAND = {"smacv2": INSTALL}
"""Package that no extra can install, and what to do instead."""


def install_hint(module: str) -> str | None:
    """Return how to install what `module` needs, or None if that is not known here."""
    for package, extra in EXTRAS.items():
        if f"{module}.".startswith(f"{package}."):
            command = f"pip install -c constraints.txt '.[{extra}]'"
            return f"{package} needs an extra; where this project lies, run: {command}"
    return BY_HAND.get(module.partition(".")[0])
