"""The README's table says truly in which file each equation stands."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEADER = "| equation | place |"


def rows() -> list[tuple[str, str]]:
    """Return the equations and their places."""
    text = (ROOT / "README.md").read_text()
    table = text[text.index(HEADER) :].split("\n\n")[0].splitlines()[2:]
    return [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in table]  # type: ignore[misc]


def names_in(path: Path) -> set[str]:
    """Return the functions and classes of a module, and methods as ``Class.method`` and alone."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
            names |= {*methods, *(f"{node.name}.{method}" for method in methods)}
    return names


def test_there_is_a_table() -> None:
    assert len(rows()) >= 7


@pytest.mark.parametrize(("equation", "place"), rows())
def test_every_name_exists_where_the_table_says(equation: str, place: str) -> None:
    """A quoted path is that of a module, the quoted names after it are defined there."""
    known: set[str] = set()
    num_names = 0
    for quoted in re.findall(r"`([^`]+)`", place):
        if quoted.endswith(".py"):
            known = names_in(ROOT / quoted)
        else:
            num_names += 1
            assert quoted in known, f"{equation}: {quoted}"
    assert num_names > 0
