"""Datasets from strangers: each kind of damage is one line, costs no memory, and can be skipped."""

import gzip
import io
import json
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs import EnvSpec, Frame
from envs.frames import Circle
from marl.preferences.dataset import Answer, DatasetError, EpisodeRecord, PreferenceDataset, now
from marl.preferences.dataset.answers import AnswerLog, read_questions, write_questions
from marl.preferences.dataset.footage import (
    MAX_BYTES,
    EpisodeFrames,
    filmed_episodes,
    packed,
    read_frames,
    write_frames,
)
from marl.preferences.dataset.format import episode_path, read_return
from tests.damages import EDITS, damaged

SPEC = EnvSpec(
    name="two",
    num_envs=1,
    obs_sizes=(3, 2),
    state_size=4,
    action_kind="discrete",
    action_sizes=(2, 2),
    max_steps=2**20,
    finite_horizon=True,
)
MEBIBYTE = 2**20


def record(steps: int = 2) -> EpisodeRecord:
    """Return an episode that fits `SPEC`."""
    return EpisodeRecord(
        obs=np.zeros((steps, 2, 3)),
        state=np.zeros((steps, 4)),
        actions=np.zeros((steps, 2), np.int64),
        final_obs=np.zeros((2, 3)),
        final_state=np.zeros(4),
        episode_return=1.0,
        terminated=True,
    )


def frames() -> EpisodeFrames:
    """Return two frames."""
    disc = Circle(centre=(0.0, 0.5), radius=1.0, colour="#000000")
    frame = Frame(shapes=(disc,), view=(0.0, 0.0, 1.0, 1.0), anchors=(None, (0.0, 0.0)))
    return EpisodeFrames(steps=(0, 1), frames=(frame, frame))


def made(folder: Path) -> PreferenceDataset:
    """Return a dataset of three episodes with frames, an answer, and a question."""
    dataset = PreferenceDataset.create(folder, SPEC, options={"size": 3}, origin={"by": "a test"})
    for number in range(3):
        dataset.add_episode(record(), number)
        write_frames(folder, number, frames())
    for first in (0, 1):
        dataset.answers.append(
            Answer(first=first, second=2, label=1.0, source="person:ann", at=now(), seconds=1.5)
        )
    write_questions(folder, [(0, 1)])
    return dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made(tmp_path / "pairs")
    return tmp_path / "pairs"


def use(folder: Path, *, skip_damaged: bool = False) -> None:
    """Read everything that a dataset holds."""
    dataset = PreferenceDataset(folder, skip_damaged=skip_damaged)
    dataset.archive()
    dataset.answers.answers()
    read_questions(folder, skip_damaged=skip_damaged)
    for number in dataset.numbers():
        read_return(folder, number)
    for number in filmed_episodes(folder, skip_damaged=skip_damaged):
        read_frames(folder, number)


@contextmanager
def bounded(most: int) -> Iterator[None]:
    """Fail if the code takes more than `most` bytes at any moment."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak:,} bytes"


def array(text: str, data: bytes = b"") -> bytes:
    """Return an array in NumPy's format, of any header."""
    header = text.encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header + data


def header(shape: str, descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"


def scalar(value: float) -> bytes:
    return array(header("()", "'<f8'"), struct.pack("<d", value))


def replaced(path: Path, name: str, content: bytes) -> None:
    """Put another content in place of one member of an archive, or beside them."""
    with zipfile.ZipFile(path) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for member, before in (members | {name: content}).items():
            file.writestr(member, content if member == name else before)


def patched(path: Path, name: str, local: int, central: int, value: int) -> None:
    """Write 16 bits into the two headers of a member, at these offsets."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        start = file.getinfo(name).header_offset
    entry = content.index(b"PK\x01\x02")
    while content[entry + 46 : entry + 46 + len(name)] != name.encode():
        entry = content.index(b"PK\x01\x02", entry + 1)
    struct.pack_into("<H", content, start + local, value)
    struct.pack_into("<H", content, entry + central, value)
    path.write_bytes(content)


def bare_array(path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((2, 4)))
    path.write_bytes(buffer.getvalue())


def twice(path: Path) -> None:
    with zipfile.ZipFile(path) as file:
        content = file.read("state.npy")
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("state.npy", content)


def large_directory(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for number in range(300):
            file.writestr("x" * 60_000 + str(number), b"")


def too_large(path: Path) -> None:
    steps = 2**20  # of zeros: few bytes in the file, 40 MB in memory
    arrays = {name: value for name, value in vars(record(steps)).items() if value is not None}
    arrays["return"] = arrays.pop("episode_return")
    np.savez_compressed(path, **arrays)


EPISODES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a bare array": (bare_array, "File is not a zip file"),
    "encrypted": (lambda path: patched(path, "obs.npy", 6, 8, 1), "obs is encrypted"),
    "method 99": (
        lambda path: patched(path, "obs.npy", 8, 10, 99),
        "obs is compressed by method 99, expected 0 or 8",
    ),
    "a huge shape": (
        lambda path: replaced(path, "obs.npy", array(header("(999999999999, 2, 3)"))),
        r"obs has 86 bytes, expected 24,000,000,000,062 for shape",
    ),
    "an enormous shape": (
        lambda path: replaced(path, "obs.npy", array(header(f"({'9' * 400}, 2, 3)"))),
        "the header of obs reads",
    ),
    "a long header": (
        lambda path: replaced(path, "obs.npy", array("(" * 10_000_000)),
        r"the header of obs reads b'\(\(\(",
    ),
    "a pickle": (
        lambda path: replaced(path, "obs.npy", array(header("(1,)", "'|O'"), b"cos\nsystem\n(S'")),
        "expected an array of numbers or truth values",
    ),
    "a record type": (
        lambda path: replaced(path, "obs.npy", array(header("(1,)", "[('a', '<f4')]"), b"1234")),
        "expected an array of numbers or truth values",
    ),
    "an unknown type": (
        lambda path: replaced(path, "obs.npy", array(header("(1,)", "'<f1'"), b"1")),
        "obs has dtype '<f1', which is none",
    ),
    "no array": (lambda path: replaced(path, "obs.npy", b"12345678"), "obs is no array"),
    "a member cut short": (
        lambda path: replaced(path, "obs.npy", array(header("(2, 2, 3)"), b"1234")),
        r"obs has 79 bytes, expected 123 for shape \(2, 2, 3\) of float32",
    ),
    "a name twice": (twice, "it holds state twice"),
    "a large directory": (large_directory, "its directory has .* bytes, expected 1,048,576"),
    "more than there is memory": (too_large, "needs 159 MB of memory, expected at most 21 MB"),
    "a return of 1e300": (
        lambda path: replaced(path, "return.npy", scalar(1e300)),
        r"return is 1e\+300, expected a finite number",
    ),
    "a return of NaN": (
        lambda path: replaced(path, "return.npy", scalar(float("nan"))),
        "return is nan, expected a finite number",
    ),
    "many returns": (
        lambda path: replaced(path, "return.npy", array(header("(2,)"), bytes(8))),
        r"return has shape \(2,\) and dtype float32, expected one number",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", EPISODES)
def test_a_hostile_episode_is_one_line_and_can_be_skipped(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marl.preferences.dataset.dataset.available_bytes", lambda: 20 * MEBIBYTE)
    make, message = EPISODES[kind]
    path = episode_path(folder, 1)
    make(path)
    with bounded(4 * MEBIBYTE):
        with pytest.raises(DatasetError, match=message) as caught:
            PreferenceDataset(folder).archive()
        with pytest.warns(UserWarning, match="skipped: .*000001.npz"):
            archive = PreferenceDataset(folder, skip_damaged=True).archive()
    assert archive.numbers.tolist() == [0, 2]
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 400


def test_what_nobody_asked_for_is_never_decoded(folder: Path) -> None:
    bomb = array(header("(16777216,)", "'|u1'"), bytes(2**24))
    for name in ("more.npy", "alive", "../../obs.npy", "obs"):
        replaced(episode_path(folder, 1), name, bomb)
    with bounded(2 * MEBIBYTE):
        assert PreferenceDataset(folder).archive().numbers.tolist() == [0, 1, 2]


def test_arrays_of_other_writers_are_read(folder: Path) -> None:
    path = episode_path(folder, 1)
    state = np.arange(8, dtype=np.float64).reshape(2, 4)
    replaced(path, "state.npy", array(  # no trailing comma, big-endian, columns first
        "{'descr': '>f8', 'fortran_order': True, 'shape': (2, 4)}", state.astype(">f8").tobytes("F")
    ))  # fmt: skip
    assert PreferenceDataset(folder).episode(1).state.tolist() == state.tolist()


@pytest.mark.parametrize("name", [f"1{'0' * 25}.npz", "1.npz", "0000001.npz"])
def test_a_number_that_no_episode_has_is_named_or_skipped(folder: Path, name: str) -> None:
    (folder / "episodes" / name).write_bytes(episode_path(folder, 1).read_bytes())
    with pytest.raises(DatasetError, match=f"{name}: expected a name like 000003.npz"):
        PreferenceDataset(folder).archive()
    with pytest.warns(UserWarning, match=f"skipped: .*{name}"):
        archive = PreferenceDataset(folder, skip_damaged=True).archive()
    assert archive.numbers.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("format = 1", f"format = 1\ndeep = {'[' * 100_000}", "not valid TOML"),
        ("format = 1", f"format = 1{'0' * 5000}", "not valid TOML"),
        ("format = 1", f"format = 1{'0' * 50}", "the dataset has format 1000"),
        ("state_size = 4", f"state_size = 1{'0' * 25}", "state_size"),
        ("max_steps = 1048576", "max_steps = 4294967296", "spec.max_steps: got 4294967296, expect"),
        (
            "obs_sizes = [\n    3,",
            "obs_sizes = [\n    1000001,",
            "spec.obs_sizes: got 1000001, exp",
        ),
        ('name = "two"', r'name = "\u001b[2Jtwo"', r"name or description reads '\\x1b\[2Jtwo'"),
        ("agent_names = []", 'agent_names = ["a"]', "spec.agent_names has 1 names; expected 2"),
        ("format = 1", f"format = 1 # {'x' * 2**20}", "expected at most 1,048,576"),
    ],
)
def test_a_hostile_manifest_is_one_line(folder: Path, old: str, new: str, message: str) -> None:
    path = folder / "dataset.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(DatasetError, match=message) as caught:
        PreferenceDataset(folder)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def gzipped(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)


FRAME = json.loads(gzip.decompress(packed(frames())))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(bytes(MAX_BYTES + 1), mtime=0), "it inflates to more than 33,554,432 bytes"),
        (gzipped("[" * 1_000_000), "RecursionError"),
        (gzipped('{"steps": [0], "frames": [{"view": NaN}]}'), "it holds the number NaN"),
        (gzipped('{"steps": [1e999], "frames": []}'), "it holds the number 1e999"),
        (
            gzipped(f'{{"steps": [1{"0" * 400}], "frames": []}}'),
            "could not convert|holds the number",
        ),
        (
            gzipped(f'{{"steps": [1{"0" * 9999}], "frames": []}}'),
            "could not convert|holds the numbe",
        ),
        (gzipped("[]"), "TypeError"),
        (gzipped(json.dumps(FRAME | {"frames": [3, 4]})), "a frame is no object"),
        (gzipped(json.dumps(FRAME | {"frames": [{"shapes": [3]}] * 2})), "a shape of kind None"),
        (
            gzipped(json.dumps(FRAME).replace('"radius": 1.0', '"radius": "wide"')),
            "a circle in a frame: radius: Input should be a valid number",
        ),
        (
            gzipped(json.dumps(FRAME).replace('"centre": [0.0, 0.5]', '"centre": 3')),
            "a circle in a frame: centre: Input should be a valid tuple",
        ),
        (gzip.compress(b"{}", mtime=0)[:-4], "it is cut short"),
    ],
)
def test_hostile_frames_are_one_line(folder: Path, content: bytes, message: str) -> None:
    path = folder / "frames" / "000001.json.gz"
    path.write_bytes(content)
    with bounded(3 * MAX_BYTES), pytest.raises(DatasetError, match=message) as caught:
        read_frames(folder, 1)
    assert "000001.json.gz is damaged" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_frames_that_would_be_too_large_are_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    one = frames().frames[0]
    many = EpisodeFrames(steps=tuple(range(8)), frames=(one,) * 8)
    size = len(gzip.decompress(packed(many)))
    monkeypatch.setattr("marl.preferences.dataset.footage.MAX_BYTES", size // 2)
    assert json.loads(gzip.decompress(packed(many)))["steps"] == [0, 4]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"open": [[0, 0]]}',
        '{"open": [[0, -1]]}',
        f'{{"open": [[0, 1{"0" * 25}]]}}',
        '{"open": [[0, 1.5]]}',
        '{"open": [[0, NaN]]}',
        '{"open": [["0", 1]]}',
        '{"open": 3}',
        "{}",
    ],
)
def test_hostile_questions_are_one_line_and_can_be_skipped(folder: Path, text: str) -> None:
    (folder / "questions.json").write_text(text)
    with pytest.raises(DatasetError, match=r"questions\.json is damaged") as caught:
        read_questions(folder)
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match=r"skipped: .*questions\.json"):
        assert read_questions(folder, skip_damaged=True) is None


FILES = (
    "dataset.toml",
    "answers.jsonl",
    "questions.json",
    "episodes/000001.npz",
    "frames/000001.json.gz",
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("what", ["folder", "fifo"])
def test_what_is_no_file_is_never_waited_for(folder: Path, name: str, what: str) -> None:
    path = folder / name
    path.unlink()
    if what == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(DatasetError, match=path.name):
        use(folder)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("fuzz") / "pairs").folder


@pytest.mark.filterwarnings("ignore")
@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_damage_is_a_dataset_error_or_harmless(
    original: Path, data: st.DataObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marl.preferences.dataset.dataset.available_bytes", lambda: 20 * MEBIBYTE)
    path = original / data.draw(st.sampled_from(FILES))
    whole = path.read_bytes()
    if path.suffix == ".npz" and data.draw(st.booleans()):
        with zipfile.ZipFile(path) as file:
            name = data.draw(st.sampled_from(file.namelist()))
            content = file.read(name)
        replaced(path, name, damaged(content, data.draw(EDITS)))
    else:
        path.write_bytes(damaged(whole, data.draw(EDITS)))
    try:
        with bounded(20 * MEBIBYTE):
            for skip_damaged in (False, True):
                with suppress(DatasetError):
                    use(original, skip_damaged=skip_damaged)
    finally:
        path.write_bytes(whole)


def test_an_answer_is_appended_after_any_damaged_end(folder: Path) -> None:
    path = folder / "answers.jsonl"
    path.write_bytes(path.read_bytes() + b"[" * 100_000)
    log = AnswerLog(path)
    log.append(Answer(first=0, second=1, label=None, source="person:bob", at=now()))
    assert len(log.answers()) == 3
