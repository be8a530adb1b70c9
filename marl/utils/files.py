"""Files that are written atomically, also with a view to power cuts; folders with one writer."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile

from filelock import FileLock, Timeout

from marl import UserError

_MOMENT = 0.2
"""Seconds in which a lock that is only looked at is free again."""


class OutputError(UserError):
    """What a command has made cannot be written."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield where to write a file that takes the place of `path` when the block ends.

    It is on the disk then. An error in the block leaves `path` as it was.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # a link, in a folder from elsewhere, would be followed
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file atomically: readers see the old content or all of the new."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the folder's new entry; Windows offers no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_writable(path: Path) -> None:
    """Raise `OSError` if a file cannot take the place of `path`, which is left as it is."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    with TemporaryFile(dir=path.parent):
        pass


def check_own_file(path: Path) -> None:
    """Raise `OutputError` if what is to be appended to lies elsewhere, or is no file.

    In a folder from somebody else a link may lead to any file of the user's.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        what = "a link" if path.is_symlink() else "not a file"
        raise OutputError(f"{path} is {what}, which nothing is appended to; put a copy there")


@contextmanager
def whole_folder(folder: Path, remedy: str) -> Iterator[Path]:
    """Yield where to make a folder that is `folder` when the block ends; an error leaves nothing.

    Raises `OutputError`, with the remedy, if something is there already. What a killed process has
    left is removed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} already exists and is not empty; {remedy}")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with output(folder, remedy):
            make_folder(partial)
        yield partial
        with output(folder, remedy):
            with suppress(FileNotFoundError):
                folder.rmdir()  # Windows replaces no folder, not even an empty one
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Create a folder, and those that it lies in, where they are not there.

    `Path.mkdir` calls itself for each of them, which Python ends at a depth of about 1,000.
    """
    missing = []
    for folder in (path, *path.parents):
        if folder.exists():
            break
        missing.append(folder)
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
    path.mkdir(exist_ok=True)  # raises where it is a file


@contextmanager
def output(path: Path, remedy: str) -> Iterator[None]:
    """Turn an `OSError` of the block, which writes `path`, into an `OutputError` with a remedy."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}; {remedy}"
        ) from error


@contextmanager
def held(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file; raise `UserError` with the `refusal` where another process holds it.

    The system releases it when this process ends, however it ends; forked workers do not keep it.
    It is asked for again and again for a moment, since `is_held` may hold it that long.
    """
    lock = FileLock(path, timeout=_MOMENT, poll_interval=0.02, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(refusal) from None
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Return whether a process holds a lock file; False where there is no such file."""
    if not path.is_file():
        return False
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:  # another user's file, or a link
        return False
    lock.release()
    return False


@contextmanager
def free_folder(parent: Path, name: str, remedy: str) -> Iterator[Path]:
    """Yield a new folder of this name, or of the next free one: ``name-2``, ``name-3``.

    It is removed, and so is `parent`, where it is left empty. Where none can be made, the
    `OutputError` names the remedy.
    """
    with output(parent, remedy):
        make_folder(parent)
        for number in count(1):
            folder = parent / (name if number == 1 else f"{name}-{number}")
            with suppress(FileExistsError):
                folder.mkdir()
                break
    try:
        yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()
            parent.rmdir()
