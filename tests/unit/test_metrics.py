"""The CSV is exact, survives a kill, and a resumed file equals one never interrupted."""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from marl.reports.plots import plot_run
from marl.reports.recorded import running_mean
from marl.utils.metrics import MetricsError, MetricWriter, read_metrics

ROWS = [
    (100, {"steps": 100.0, "return/mean": math.nan}),
    (200, {"steps": 200.0, "return/mean": 0.1 + 0.2, "preference/loss": 1e-320}),
    (300, {"steps": 300.0, "return/mean": -1 / 3, "late/column": math.inf}),
]


def write(folder: Path, rows: list[tuple[int, dict[str, float]]], after: int | None = None) -> None:
    writer = MetricWriter(folder, after=after)
    for step, metrics in rows:
        writer.write(step, metrics)
    writer.close()


def test_numbers_come_back_bit_for_bit(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    metrics = read_metrics(tmp_path)
    assert metrics["step"].tolist() == [100, 200, 300]
    np.testing.assert_array_equal(metrics["return/mean"], [math.nan, 0.1 + 0.2, -1 / 3])
    # A column is empty, read as NaN, where it was not written.
    np.testing.assert_array_equal(metrics["preference/loss"], [math.nan, 1e-320, math.nan])
    np.testing.assert_array_equal(metrics["late/column"], [math.nan, math.nan, math.inf])


def test_the_file_reads_as_written_by_hand(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    assert (tmp_path / "metrics.csv").read_text() == (
        "step,steps,return/mean,preference/loss,late/column\n"
        "100,100.0,nan,,\n"
        "200,200.0,0.30000000000000004,1e-320,\n"
        "300,300.0,-0.3333333333333333,,inf\n"
    )


def test_numpy_numbers_and_ints_are_written_as_plain_floats(tmp_path: Path) -> None:
    write(tmp_path, [(1, {"a/b": np.float32(0.5), "a/c": 3})])
    assert (tmp_path / "metrics.csv").read_text() == "step,a/b,a/c\n1,0.5,3.0\n"


@pytest.mark.filterwarnings("ignore:.*lacks the rows between the steps 200 and 250")
@pytest.mark.parametrize("checkpoint", [0, 100, 200, 250, 300])
def test_a_resumed_file_equals_one_never_killed(tmp_path: Path, checkpoint: int) -> None:
    write(tmp_path / "whole", ROWS)
    killed = tmp_path / "killed"
    write(killed, ROWS)
    writer = MetricWriter(killed, after=checkpoint)
    upto = [row for row in ROWS if row[0] <= checkpoint]
    write(tmp_path / "short", upto)
    assert (killed / "metrics.csv").read_text() == (tmp_path / "short/metrics.csv").read_text()
    for step, metrics in ROWS[len(upto) :]:
        writer.write(step, metrics)
    writer.close()
    assert (killed / "metrics.csv").read_text() == (tmp_path / "whole/metrics.csv").read_text()


def test_a_row_cut_by_a_kill_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text()[:-5])
    assert read_metrics(tmp_path)["step"].tolist() == [100, 200]
    write(tmp_path, [(300, {"steps": 300.0})], after=200)
    assert read_metrics(tmp_path)["step"].tolist() == [100, 200, 300]


def test_every_row_is_on_disk_at_once(tmp_path: Path) -> None:
    writer = MetricWriter(tmp_path)
    writer.write(*ROWS[0])
    assert len(read_metrics(tmp_path)["step"]) == 1
    writer.close()


def test_steps_must_grow(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    writer = MetricWriter(tmp_path, after=300)
    with pytest.raises(ValueError, match=r"metrics of step 300 come after step 300.*after="):
        writer.write(300, {})
    with pytest.raises(ValueError, match="'step' is the row's own column"):
        writer.write(400, {"step": 400.0})
    writer.close()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "foreign": lambda path: path.write_text("time,loss\n1,2\n"),
    "empty": lambda path: path.write_text(""),
    "zeros": lambda path: path.write_bytes(bytes(100)),
    "flipped": lambda path: path.write_bytes(bytes(255 - byte for byte in path.read_bytes())),
    "a cell lost": lambda path: path.write_text(path.read_text().replace("200,200.0,", "200,")),
    "a cell more": lambda path: path.write_text(path.read_text().replace("200,", "200,1,")),
    "a word": lambda path: path.write_text(path.read_text().replace("200.0", "two")),
    "a fraction": lambda path: path.write_text(path.read_text().replace("\n200,", "\n200.5,")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_set_aside(tmp_path: Path, kind: str) -> None:
    write(tmp_path, ROWS)
    path = tmp_path / "metrics.csv"
    DAMAGE[kind](path)
    with pytest.raises(MetricsError, match=re.escape(str(path))):
        read_metrics(tmp_path)
    for number in ("", "-2"):
        with pytest.warns(UserWarning, match=r"metrics\.csv") as told:
            write(tmp_path, ROWS[2:], after=200)
        assert "it is now" in str(told[0].message)
        assert "lacks the rows between the steps 0 and 200" in str(told[1].message)
        assert read_metrics(tmp_path)["step"].tolist() == [300]
        assert (tmp_path / f"metrics.csv.damaged{number}").exists()
        path.unlink()
        path.mkdir()


def test_rows_that_are_missing_are_told(tmp_path: Path) -> None:
    write(tmp_path, ROWS[:2])
    with pytest.warns(UserWarning, match="lacks the rows between the steps 200 and 300"):
        write(tmp_path, [(400, {"steps": 400.0})], after=300)
    (tmp_path / "metrics.csv").unlink()
    with pytest.warns(UserWarning, match="lacks the rows between the steps 0 and 300"):
        write(tmp_path, [(400, {"steps": 400.0})], after=300)


def test_running_mean_skips_nan() -> None:
    values = np.array([math.nan, 2.0, 4.0, math.nan, 9.0])
    # Pairs: (nan), (nan, 2), (2, 4), (4, nan), (nan, 9).
    np.testing.assert_array_equal(running_mean(values, 2), [math.nan, 2.0, 3.0, 4.0, 9.0])


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(
    "rows",
    [
        [],
        [(1, {"return/mean": math.nan})],
        [(1, {"return/mean": 1.0, "time/physics": 0.0, "time/policy": 0.0})],
        [(s, {"time/physics": 1.0, "value/loss": 2.0, "preference/accuracy": 0.5}) for s in (1, 2)],
    ],
)
def test_a_picture_is_drawn_whatever_was_recorded(
    tmp_path: Path, rows: list[tuple[int, dict[str, float]]]
) -> None:
    write(tmp_path, rows)
    path = plot_run(tmp_path)
    assert path == tmp_path / "curve.png"
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(tmp_path.glob("*.tmp"))


def test_what_others_reach_is_a_dotted_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr("marl.reports.plots.saved", lambda figure, path: figures.append(figure))
    write(tmp_path, [(s, {"return/mean": 1.0}) for s in (1, 2)])
    plot_run(tmp_path, baselines={"sparse": 3.5})
    above = figures[0].axes[0]
    assert "sparse 3.5" in [text.get_text() for text in above.texts]
    assert above.get_ylim()[1] > 3.5


@pytest.mark.usefixtures("drawn")
def test_success_rates_get_a_panel_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    monkeypatch.setattr("marl.reports.plots.title", lambda axes, text: titles.append(text))
    write(tmp_path, [(s, {"return/mean": 1.0, "episode/won": 0.5 * s}) for s in (1, 2)])
    assert plot_run(tmp_path, ("won", "never_told")).exists()
    assert titles == ["Mean return of finished episodes", "Episodes won"]
