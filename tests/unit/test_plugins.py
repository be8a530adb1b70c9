"""Plug-ins are found by import path, and every way of getting it wrong is explained."""

from pathlib import Path

import pytest

from marl.config import ConfigError
from marl.utils.plugins import load

SOURCE = """
def sooner_is_better(pairs):
    return 1

SETTING = 3
"""


@pytest.fixture(autouse=True)
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with a user's files, which is not on the import path yet."""
    (tmp_path / "user_labels.py").write_text(SOURCE)
    (tmp_path / "user_needs_more.py").write_text("import user_absent_library\n")
    (tmp_path / "user_broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")  # restores sys.path and forgets cached folders afterwards
    monkeypatch.delitem(__import__("sys").modules, "user_labels", raising=False)


def test_a_function_of_the_current_folder_is_found() -> None:
    assert load("user_labels:sooner_is_better", "preferences.labeller")(None) == 1


def test_an_installed_class_is_found() -> None:
    assert load("collections:Counter", "env.name").__name__ == "Counter"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("user_labels", "lacks a side of its colon; give an import path such as"),
        ("user_labels.sooner_is_better", "lacks a side of its colon; give an import path such as"),
        (":name", "lacks a side of its colon; give an import path such as"),
        ("user_labels:", "lacks a side of its colon; give an import path such as"),
        ("user_label:f", "no module 'user_label' in .* run where its file lies"),
        ("user_labels.deeper:f", "user_labels is a module, not a package, so there is no 'deeper'"),
        ("user_needs_more:f", "importing 'user_needs_more' failed: .*'user_absent_library'"),
        (
            "user_broken:f",
            "importing 'user_broken' raised ZeroDivisionError: .*user_broken.py, line 1",
        ),
        (
            "user_labels:sooner_is_beter",
            r"has no 'sooner_is_beter' \(did you mean 'sooner_is_better'\?\)",
        ),
        ("user_labels:zzz", "has no 'zzz'; it has sooner_is_better$"),
        ("user_labels:SETTING", "is 3, of type int; expected a function or a class"),
    ],
)
def test_mistakes_are_explained(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(path, "preferences.labeller")
    assert str(caught.value).startswith("preferences.labeller")
