"""Checkpoints come back exactly, survive damage, and never run a stranger's code."""

import hashlib
import io
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from marl.config.io import load_config
from marl.recorder import checkpoint_interval
from marl.utils.checkpoint import (
    FORMAT_VERSION,
    CheckpointError,
    list_checkpoints,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from marl.utils.encoding import decode, encode


def same(left: Any, right: Any) -> bool:
    """Return whether two states agree in every type, key, dtype, shape and bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and same(left.numpy(), right.numpy())
    if isinstance(left, np.ndarray | np.generic):
        return (
            left.dtype == right.dtype
            and left.shape == right.shape
            and left.tobytes() == right.tobytes()
        )
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return repr(left) == repr(right)


def steps_in(folder: Path) -> list[int]:
    return [int(path.stem.removeprefix("step_")) for path in list_checkpoints(folder)]


def test_every_kind_of_value_comes_back_exactly(tmp_path: Path) -> None:
    state = {
        "tensors": {
            "f32": torch.randn(2, 3),
            "bool": torch.tensor([True]),
            "empty": torch.empty(0, 4),
        },
        "arrays": [
            np.arange(6, dtype=np.uint64).reshape(2, 3).T,
            np.array("text"),
            np.array(["a", "longer"]),
            np.zeros((0, 5), np.int16),
            np.array(2.5),
            np.array([1, 2], dtype=">i4"),
            np.array(["2026-01-02"], dtype="datetime64[D]"),
        ],
        "scalars": (np.float32(0.1), np.bool_(True), np.int64(-3)),
        "numbers": [0.1, float("-inf"), float("nan"), -0.0, 2**127 + 1, -(2**200), True, None],
        "generator": np.random.default_rng(3).bit_generator.state,
        "optimizer": {0: {"step": torch.tensor(4.0)}, 1: {}},
        "nothing": [(), [], {}, ""],
    }
    path = save_checkpoint(tmp_path, 12345, state)
    assert path.name == "step_000000012345.ckpt"
    step, loaded = load_checkpoint(tmp_path)
    assert step == 12345
    assert same(state, loaded)
    loaded["arrays"][0][0, 0] = 7  # writable


PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())
ARRAYS = hnp.arrays(
    st.one_of(hnp.scalar_dtypes(), hnp.unicode_string_dtypes()),
    hnp.array_shapes(min_dims=0, min_side=0, max_side=3),
)


@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.one_of(PLAIN, ARRAYS),
            lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
            max_leaves=6,
        ),
        max_size=3,
    )
)
def test_encoding_is_undone_by_decoding(state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(encode(state), buffer)
    buffer.seek(0)
    assert same(decode(torch.load(buffer, weights_only=True)), state)


def test_a_window_of_a_large_tensor_is_saved_alone(tmp_path: Path) -> None:
    large = torch.arange(1_000_000.0)  # 4 MB; the window is 12 bytes
    path = save_checkpoint(tmp_path, 0, {"window": large[5:8]})
    assert path.stat().st_size < 10_000
    assert load_checkpoint(tmp_path)[1]["window"].tolist() == [5.0, 6.0, 7.0]


def test_a_parameter_comes_back_as_a_plain_tensor(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 0, dict(torch.nn.Linear(2, 1).named_parameters()))
    weight = load_checkpoint(tmp_path)[1]["weight"]
    assert type(weight) is torch.Tensor
    assert not weight.requires_grad


@pytest.mark.parametrize(
    ("state", "place"),
    [
        ({"a": [1, {"b": {1, 2}}]}, "state['a'][1]['b'] is a set"),
        ({"b": b"raw"}, "state['b'] is a bytes"),
        ({"f": print}, "state['f'] is a builtin_function_or_method"),
        ({"o": np.array([None])}, "state['o'] is an array of object"),
        ({"k": {(1, 2): 0}}, "state['k'] has the key (1, 2)"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path: Path, state: dict[str, Any], place: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(place)):
        save_checkpoint(tmp_path, 0, state)
    assert list(tmp_path.iterdir()) == []


def test_the_newest_are_kept_and_leftovers_go(tmp_path: Path) -> None:
    (tmp_path / "step_000000000001.ckpt.tmp").write_text("left by a killed run")
    for step in (10, 20, 30, 40):
        save_checkpoint(tmp_path, step, {}, keep=2)
    assert steps_in(tmp_path) == [40, 30]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_later_checkpoint_does_not_push_out_the_new_one(tmp_path: Path) -> None:
    # Checkpoint 30 is damaged, so the run resumed from 10 and now saves 20, keeping one.
    save_checkpoint(tmp_path, 10, {})
    (tmp_path / "step_000000000030.ckpt").write_bytes(b"damaged")
    save_checkpoint(tmp_path, 20, {}, keep=1)
    assert steps_in(tmp_path) == [30, 20]


def truncated(data: bytes) -> bytes:
    return data[:-1]


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncated, "cut short"),
        (flipped, "checksum differs"),
        (lambda data: b"", "does not begin with a checkpoint's header"),
        (lambda data: b"x" * len(data), "does not begin with a checkpoint's header"),
        (lambda data: data.replace(f"{FORMAT_VERSION:4d} ".encode(), b"   9 ", 1), "has format 9"),
    ],
)
def test_damage_is_named_and_the_previous_checkpoint_is_used(
    tmp_path: Path, damage: Any, reason: str
) -> None:
    save_checkpoint(tmp_path, 1, {"good": torch.ones(100)})
    newest = save_checkpoint(tmp_path, 2, {"good": torch.zeros(100)})
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match=f"{newest.name}.*{reason}"):
        step, state = load_checkpoint(tmp_path)
    assert step == 1
    assert state["good"].sum() == 100


def test_no_good_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_checkpoint(tmp_path)
    (tmp_path / "step_000000000001.ckpt").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(CheckpointError, match="none of the 1 checkpoints"),
    ):
        load_checkpoint(tmp_path)


class Malicious:
    """Creates a file when unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("archive", [True, False])
def test_a_malicious_pickle_is_refused_even_with_a_right_checksum(
    tmp_path: Path, archive: bool
) -> None:
    victim, buffer = tmp_path / "victim", io.BytesIO()
    content = {"tree": {"step": 1, "state": Malicious(victim)}, "arrays": {}}
    torch.save(content, buffer) if archive else pickle.dump(content, buffer, protocol=2)
    payload = buffer.getvalue()
    digest = hashlib.sha256(payload).hexdigest()
    header = f"prefmarl-checkpoint {FORMAT_VERSION:4d} {len(payload):16d} {digest}\n".encode()
    path = tmp_path / "step_000000000001.ckpt"
    path.write_bytes(header + payload)
    with pytest.raises(CheckpointError, match="do not trust where it came from"):
        read_checkpoint(path)
    assert not victim.exists()
    if archive:  # the attack is real: an unrestricted load runs it
        buffer.seek(0)
        torch.load(buffer, weights_only=False)
        assert victim.exists()


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Let the operating system refuse the 100,001st byte of a file, as a full disk would."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("small_disk")
def test_a_write_that_fails_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"x": torch.ones(10)})
    with pytest.raises(
        CheckpointError, match=r"step_000000000002.ckpt: .*File too large; [\d,.]+ MB are free"
    ):
        save_checkpoint(tmp_path, 2, {"x": torch.ones(1_000_000)})
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000000001.ckpt"]
    assert load_checkpoint(tmp_path)[0] == 1


def test_an_interrupted_write_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    save_checkpoint(tmp_path, 1, {"x": 1})
    monkeypatch.setattr("marl.utils.files.os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 2, {"x": 2})
    assert load_checkpoint(tmp_path) == (1, {"x": 1})
    assert steps_in(tmp_path) == [1]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_folder_among_the_old_checkpoints_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "step_000000000001.ckpt").mkdir()
    (tmp_path / "step_000000000001.ckpt" / "note").touch()
    for step in (2, 3):
        save_checkpoint(tmp_path, step, {}, keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000000000003.ckpt"]
    assert (tmp_path / "step_000000000001.ckpt.set-aside" / "note").exists()


@pytest.mark.parametrize(
    ("asked", "total", "interval"),
    [(0, 150_000, 37_500), (0, 10, 3), (0, 1, 1), (0, 3_000_000, 200_000), (500, 1000, 500)],
)
def test_a_short_run_has_four_checkpoints(asked: int, total: int, interval: int) -> None:
    config = load_config(overrides={"checkpoint_every": asked, "total_steps": total})
    assert checkpoint_interval(config) == interval
