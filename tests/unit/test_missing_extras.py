"""An environment whose package is missing says how to install it, and is not listed."""

import sys
from importlib.metadata import metadata

import pytest

from envs import EnvError, env_names, make_env
from envs.registry import EXTRAS, FAMILIES


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("smax/3m", "jaxmarl", "smax"), ("vmas/balance", "vmas", "vmas")],
)
def test_missing_package(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # None: importing it fails
    with pytest.raises(
        EnvError,
        match=rf"^environment '{name}' is not installed: {package} needs an extra.*"
        rf"pip install -c constraints.txt '.\[{extra}\]'",
    ):
        make_env(name, 2)
    assert name not in env_names()


def test_every_optional_package_of_a_family_has_a_hint() -> None:
    for family in FAMILIES.values():
        assert not family.needs or f"{family.needs} needs" in (family.how_to_install or "").lower()


def test_every_hint_names_an_extra_of_this_distribution() -> None:
    assert set(EXTRAS.values()) <= set(metadata("prefmarl").get_all("Provides-Extra") or [])
