"""The page of environments tried says what failed, and counts what was run."""

import json
from pathlib import Path

from benchmarks.environments import cell_path, rows, table


def test_rows_are_many_and_of_many_packages() -> None:
    names = [row["name"] for row in rows()]
    assert len(set(names)) == len(names) >= 40
    assert len({row["package"] for row in rows()}) >= 12


def test_the_page(tmp_path: Path) -> None:
    worked, failed = rows()[0], rows()[1]
    yes = dict.fromkeys(("check", "train", "evaluate", "watch"), "yes")
    learned = {"random": 1.0, "trained": 2.5, "learned": True}
    known = {"seconds": 3.2, "commit": "abc", "version": "9.9"}
    cell_path(worked, tmp_path).write_text(json.dumps(yes | learned | known))
    wrong = {"check": "step raised", "train": "no such thing"}
    cell_path(failed, tmp_path).write_text(json.dumps(wrong | known))
    page = table(tmp_path)
    start = f"| `{worked['name']}` | {worked['package']} 9.9 | yes | yes | yes | yes |"
    assert start in page
    assert "| 3 | 1.00 | 2.50 | yes |" in page
    assert f"| `{failed['name']}` | {failed['package']} 9.9 | **no** | **no** | ? | ? |" in page
    assert f"- `{failed['name']}`, check: step raised" in page
    assert "2 environments of" in page
    assert "1 learned" in page
