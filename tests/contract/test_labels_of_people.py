"""`marl labels` for a run whose labeller is people, who judge by the returns."""

import json
from pathlib import Path

import pytest

from marl import train
from marl.cli import main
from tests.regression.test_people import Person, asking


def test_people_are_audited_as_labeller_and_as_people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, person = tmp_path / "run", None
    for number, _ in enumerate(train(asking(), folder)):
        if number >= 3:
            person = person or Person(folder)
            person.answer(2)
    with pytest.raises(SystemExit) as caught:
        main(["labels", str(folder), "--json"])
    assert caught.value.code == 0
    found = json.loads(capsys.readouterr().out)
    kept, (ann,) = found["kept"], found["people"]
    assert kept["pairs"] == kept["agreement"]["part"] == kept["agreement"]["of"] > 5
    # What is answered last is on the disk, but training has not been told of it yet.
    assert ann["answers"] == ann["with_return"]["of"] > kept["pairs"]
    assert ann["with_return"]["share"] == 1.0
    assert (ann["name"], ann["skipped"], ann["with_oneself"]["of"]) == ("ann", 0, 0)
