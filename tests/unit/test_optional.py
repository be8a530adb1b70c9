"""An environment whose package is missing says which extra installs it."""

import sys

import pytest

from envs import EnvError, make_env


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("smax/3m", "jax", "smax"), ("vmas/balance", "vmas", "vmas")],
)
def test_missing_package(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # None: importing it fails
    with pytest.raises(EnvError, match=rf"needs the package {package}.*prefmarl\[{extra}\]"):
        make_env(name, 2)
