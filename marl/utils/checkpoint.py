"""Checkpoints: everything a run needs to continue, in one file or one for each of its processes.

A file is one header line, which carries the length and SHA-256 of what follows, and a PyTorch
archive, written atomically: a run killed at any moment leaves the previous checkpoint untouched. It
is read with ``weights_only=True``, so an untrusted file cannot run code.

Where several processes train a run, the file of process 0 is written last and names the checksums
of the others, its parts: ``step_000000012000.ckpt`` and ``step_000000012000.process1``. So there is
a checkpoint only where all of it is there.
"""

import hashlib
import io
import shutil
import stat
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import torch

from envs import EnvError
from marl import UserError
from marl.utils.encoding import UnsupportedStateError, decode, encode
from marl.utils.files import atomic_path, make_folder
from marl.utils.plugins import identity_of
from marl.utils.ranks import PeerError, Ranks, together
from marl.utils.text import one_line

BEST = "best"
"""Folder beside the checkpoints of a run: the one that played best while it trained."""
FORMAT_VERSION = 1
_MAGIC = b"prefmarl-checkpoint"
_HEADER = _MAGIC.decode() + " {version:4d} {size:16d} {digest:64s}\n"
_HEADER_SIZE = len(_HEADER.format(version=0, size=0, digest=""))


class CheckpointError(UserError):
    """A checkpoint could not be written, or none could be read."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 3) -> Path:
    """Return the path of the new checkpoint; of those before it, the `keep - 1` newest stay.

    `state` nests dicts, lists and tuples around tensors, NumPy arrays, numbers, strings and
    None. Tensors come back on the CPU.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least 1 checkpoint must be kept")
    path = folder / checkpoint_name(step)
    with _saving(path):
        _save(path, step, state)
        older = [other for other in list_checkpoints(folder) if other.name < path.name]
        kept = {path.stem, *(other.stem for other in older[: keep - 1])}
        parts = [part for part in folder.glob("step_*.process*") if part.stem not in kept]
        left_by_kills = folder.glob("step_*.tmp")
        for superfluous in [*older[keep - 1 :], *parts, *left_by_kills]:
            if superfluous.is_dir():
                _set_aside(superfluous)
            else:
                superfluous.unlink(missing_ok=True)
    return path


def save_together(
    folder: Path, step: int, state: dict[str, Any], keep: int, ranks: Ranks, weights: str
) -> Path:
    """Return the path of the new checkpoint of all processes, each of which gives its state.

    `weights` is a digest of what must be the same in all of them.
    """
    if ranks.size == 1:
        return save_checkpoint(folder, step, state, keep)
    path = folder / checkpoint_name(step)
    try:
        with together(ranks):
            digest = ""
            if ranks.rank:
                part = part_path(path, ranks.rank)
                with _saving(part):
                    digest = _save(part, step, state)
        digests, of_weights = zip(*ranks.gather([digest, weights]), strict=True)
        if len(set(of_weights)) > 1:
            raise CheckpointError(
                f"{path} is not saved: the networks of the {ranks.size} processes have become "
                "different; a learner of your own must sum its gradients over `ranks`"
            )
        with together(ranks):
            if ranks.rank == 0:
                save_checkpoint(folder, step, state | {"parts": list(digests[1:])}, keep)
    except PeerError as error:
        raise CheckpointError(f"{path} is not saved: {error}") from None
    return path


def part_path(checkpoint: Path, rank: int) -> Path:
    """Return the file of process `rank` of a checkpoint; that of process 0 is the checkpoint."""
    return checkpoint.with_suffix(f".process{rank}") if rank else checkpoint


def _save(path: Path, step: int, state: dict[str, Any]) -> str:
    """Write a file atomically and return its checksum."""
    make_folder(path.parent)
    if path.exists() and not path.is_file():
        _set_aside(path)
    encoded = encode({"step": step, "state": state})
    with atomic_path(path) as temporary:
        return _write(temporary, encoded)


@contextmanager
def _saving(path: Path) -> Iterator[None]:
    """Turn what keeps a file from being written into `CheckpointError`, which names it."""
    try:
        yield
    except UnsupportedStateError as error:
        raise CheckpointError(f"cannot save {path}: {error}") from error
    except OSError as error:
        raise CheckpointError(
            f"cannot save {path}: {error.strerror or error}{_free_space(path.parent)}"
        ) from error


def _free_space(folder: Path) -> str:
    """Return in words how much room there is."""
    try:
        return f"; {shutil.disk_usage(folder).free / 1e6:,.1f} MB are free there"
    except OSError:
        return ""


def _set_aside(path: Path) -> None:
    """Take what is no checkpoint out of the way."""
    path.rename(path.with_name(f"{path.name}.set-aside"))


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Any]]:
    """Return the step and state of the newest good checkpoint, warning about the others.

    A checkpoint in a run's folder that another run has written is refused. Of several processes
    the state is that of process 0.
    """
    paths = list_checkpoints(folder)
    if not paths:
        raise CheckpointError(f"{folder} holds no checkpoint (step_*.ckpt); is it a run's folder?")
    for path in paths:
        try:
            step, state = read_checkpoint(path)
            _check_run(path, state)
            return step, state
        except CheckpointError as error:
            warnings.warn(f"skipping a damaged checkpoint: {error}", stacklevel=2)
    raise CheckpointError(
        f"none of the {len(paths)} checkpoints in {folder} is good; start the run again"
    )


def load_saved(place: Path | str, *, best: bool = False) -> tuple[int, dict[str, Any], Path]:
    """Return the step and state that a place holds, and the folder that it belongs to.

    A place is the folder of a run or of a fit, whose newest good checkpoint is meant (with `best`
    the one that played best while it trained), or one of its files ``checkpoints/step_*.ckpt``.
    """
    place = Path(place)
    if place.suffix != ".ckpt":
        if best:
            if not list_checkpoints(place / "checkpoints" / BEST):
                raise CheckpointError(
                    f"{place} has no best checkpoint: a run keeps one where eval.every is set, "
                    "from its first evaluation on"
                )
            return *load_checkpoint(place / "checkpoints" / BEST), place
        return *load_checkpoint(place / "checkpoints"), place
    step, state = read_checkpoint(place)
    _check_run(place, state)
    return step, state, _run_of(place)


def num_processes(state: dict[str, Any]) -> int:
    """Return how many processes have saved a checkpoint, given the state of process 0."""
    return 1 + len(state.get("parts", ()))


def load_together(folder: Path, ranks: Ranks) -> tuple[Path, dict[str, Any]]:
    """Return the newest good checkpoint, and this process's state in it.

    Where another number of processes has saved it, that is the state of process 0 in process 0 and
    empty in the others; `read_all` reads all of it.
    """
    paths = [folder / name for name in ranks.gather([p.name for p in list_checkpoints(folder)])[0]]
    if not paths:
        raise CheckpointError(f"{folder} holds no checkpoint (step_*.ckpt); is it a run's folder?")
    for path in paths:
        state: dict[str, Any] = {}
        fault = ""
        digests: list[str] | None = None
        if ranks.rank == 0:
            try:
                state = read_checkpoint(path)[1]
                _check_run(path, state)
                digests = list(state.get("parts", []))
                if len(digests) + 1 != ranks.size:
                    read_all(path)  # all is there
            except CheckpointError as error:
                fault = str(error)
        digests = ranks.gather(digests)[0]
        if digests is not None and len(digests) + 1 == ranks.size and ranks.rank:
            try:
                state = read_part(path, ranks.rank, digests[ranks.rank - 1])
            except CheckpointError as error:
                fault = str(error)
        faults = [found for found in ranks.gather(fault) if found]
        if not faults:
            return path, state
        if ranks.rank == 0:
            warnings.warn(f"skipping a damaged checkpoint: {faults[0]}", stacklevel=2)
    raise CheckpointError(
        f"none of the {len(paths)} checkpoints in {folder} is good; start the run again"
    )


def read_all(checkpoint: Path) -> list[dict[str, Any]]:
    """Return the states of all processes in a checkpoint."""
    first = read_checkpoint(checkpoint)[1]
    parts = enumerate(first.get("parts", []), start=1)
    return [first, *(read_part(checkpoint, rank, digest) for rank, digest in parts)]


def read_part(checkpoint: Path, rank: int, digest: str) -> dict[str, Any]:
    """Return the state of a process in a checkpoint, whose file must have a checksum."""
    path = part_path(checkpoint, rank)
    found, step, state = _content(path)
    if found != digest or checkpoint_name(step) != checkpoint.name:
        raise CheckpointError(f"{path} does not belong to {checkpoint}: its checksum differs")
    return state


def _check_run(path: Path, state: dict[str, Any]) -> None:
    """Raise `CheckpointError` if a checkpoint belongs to another run than its folder."""
    here, there = identity_of(_run_of(path)), state.get("run", "")
    if not isinstance(there, str):
        raise CheckpointError(f"{path} names its run by a {type(there).__name__}, not a string")
    if here and there and here != there:
        raise CheckpointError(
            f"{path} was written by another run, {one_line(there)}, than this one, {one_line(here)}"
        )


def _run_of(path: Path) -> Path:
    """Return the folder of the run or the fit that a checkpoint's file belongs to."""
    return path.parents[2] if path.parent.name == BEST else path.parents[1]


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the folder's checkpoints, newest step first, good or damaged."""
    return sorted(folder.glob("step_*.ckpt"), reverse=True)


def read_checkpoint(path: Path) -> tuple[int, dict[str, Any]]:
    """Return the step and state of one checkpoint file; its checksum is tested before its content.

    The bytes tested are the bytes decoded: the file is read once, into memory.
    """
    _, step, state = _content(path)
    if path.name != checkpoint_name(step):
        raise CheckpointError(f"{path} is of step {step:,}, not of the one that its name says")
    return step, state


def _content(path: Path) -> tuple[str, int, dict[str, Any]]:
    """Return checksum, step and state of a file."""
    header, payload = _read(path)
    digest = _check(path, header, payload)
    try:
        _refuse_compressed(payload)
        encoded = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        content = decode(encoded)
        step, state = int(content["step"]), dict(content["state"])
    except Exception as error:  # whatever a hostile archive provokes, it is refused
        raise CheckpointError(
            f"{path} has a valid checksum and content this program does not write "
            f"({type(error).__name__}); do not trust where it came from"
        ) from error
    return digest, step, state


def checkpoint_name(step: int) -> str:
    """Return the name of the file of a step; names sort as steps do."""
    return f"step_{step:012d}.ckpt"


def _read(path: Path) -> tuple[bytes, bytes]:
    """Return header and payload of a regular file; what is none, such as a pipe, is not opened."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path} is not a file")
        with path.open("rb") as file:
            return file.read(_HEADER_SIZE), file.read()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _refuse_compressed(payload: bytes) -> None:
    """Raise unless an archive holds its content as it is, so that it cannot inflate."""
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("a member of the archive is compressed")
    if sum(member.file_size for member in members) > len(payload):
        raise ValueError("members of the archive overlap")


@contextmanager
def restoring(where: Path | str) -> Iterator[None]:
    """Turn what a state of another shape raises into `CheckpointError`, which names `where`."""
    try:
        yield
    except (EnvError, UserError):  # own words, e.g. about episodes that do not repeat
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{where}: the checkpoint's content does not fit its settings "
            f"({type(error).__name__}: {reason}); it was damaged or made by another program"
        ) from error


def check_layer_sizes(where: Path | str, state: Any, widths: Sequence[int]) -> None:
    """Raise `CheckpointError` if `state` is smaller than a layer between two of the widths.

    It is asked before a network of these widths, which come from a file, is allocated.
    """
    known = sum(tensor.numel() for tensor in _tensors(state))
    largest = max(before * after for before, after in pairwise((1, *widths)))
    if largest > known:
        raise CheckpointError(
            f"{where}: its settings speak of a layer of {largest:,} weights, and the checkpoint "
            f"holds {known:,} numbers in all; it was damaged or made by another program"
        )


def copy_saved(own: torch.Tensor, saved: torch.Tensor) -> None:
    """Copy a saved tensor into one of the same shape; raise `ValueError` for any other."""
    if own.shape != saved.shape:
        raise ValueError(f"a tensor of {tuple(saved.shape)} was saved, not of {tuple(own.shape)}")
    own.copy_(saved)


def check_saved(own: torch.Tensor, saved: torch.Tensor, rows: int) -> None:
    """Raise `ValueError` unless `saved` holds `rows` rows of the kind that `own` has.

    `own` may be on the device ``meta``: it is asked before anything is allocated.
    """
    expected = (rows, *own.shape[1:])
    if tuple(saved.shape) != expected or saved.dtype != own.dtype:
        raise ValueError(
            f"a tensor {saved.dtype} of {tuple(saved.shape)} was saved, not {own.dtype} of "
            f"{expected}"
        )


def check_finite_weights(where: Path | str, network: Any) -> None:
    """Raise `CheckpointError` if a network's weights are not all finite."""
    if not all(bool(tensor.isfinite().all()) for tensor in _tensors(network)):
        raise CheckpointError(
            f"{where}: the policy's weights are not finite numbers: training had diverged; use an "
            "older checkpoint, or train again with a smaller learner.learning_rate"
        )


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    """Yield all tensors in nested dicts, lists and tuples."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for item in state.values():
            yield from _tensors(item)
    elif isinstance(state, list | tuple):
        for item in state:
            yield from _tensors(item)


def _check(path: Path, header: bytes, payload: bytes) -> str:
    """Return the checksum; raise unless the header is ours and describes exactly this payload."""
    fields = header.split()
    if len(header) < _HEADER_SIZE or len(fields) != 4 or fields[0] != _MAGIC:
        raise CheckpointError(f"{path} does not begin with a checkpoint's header")
    version, size, digest = (field.decode("ascii", "replace") for field in fields[1:])
    if version != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{path} has format {version}, this program reads format {FORMAT_VERSION}; use the "
            "release that wrote it"
        )
    if size != str(len(payload)):
        raise CheckpointError(f"{path} is cut short: {len(payload)} bytes of {size}")
    if digest != hashlib.sha256(payload).hexdigest():
        raise CheckpointError(f"{path} was changed after it was written: its checksum differs")
    return digest


def _write(path: Path, encoded: dict[str, Any]) -> str:
    """Write header and archive to `path` in one pass, and return the checksum."""
    with path.open("wb") as file:
        file.seek(_HEADER_SIZE)
        payload = _HashingWriter(file)
        torch.save(encoded, payload)  # type: ignore[arg-type]  # it only writes
        if payload.error is not None:
            raise payload.error
        file.seek(0)
        digest = payload.sha256.hexdigest()
        header = _HEADER.format(version=FORMAT_VERSION, size=payload.size, digest=digest)
        file.write(header.encode())
    return digest


class _HashingWriter:
    """A write-only file that hashes what passes through, so that nothing is read back.

    The first failure is kept instead of raised: PyTorch's archive writer replaces an error from
    `write` with one about its own position, and the reason (a full disk) would be lost.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None
        self._file = file

    def write(self, data: bytes | memoryview) -> int:
        """Return the number of bytes taken."""
        length = memoryview(data).nbytes
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
            self.sha256.update(data)
            self.size += length
        return length

    def flush(self) -> None:
        """Do nothing: `_write` flushes once, at the end."""
