"""An environment whose package is missing says which extra installs it, and is not listed."""

import sys

import pytest

from envs import EnvError, env_names, make_env


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("smax/3m", "jaxmarl", "smax"), ("vmas/balance", "vmas", "vmas")],
)
def test_missing_package(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # None: importing it fails
    with pytest.raises(EnvError, match=rf"needs {package}: pip install 'prefmarl\[{extra}\]'"):
        make_env(name, 2)
    assert name not in env_names()
