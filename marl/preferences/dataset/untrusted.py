"""Reading untrusted files: what they say is checked before memory is allocated.

Nothing is unpickled. Whatever is wrong is a `DatasetError` of one line: what, where, got, expected,
what to do.
"""

import io
import os
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from marl import UserError
from marl.utils.text import one_line

Array = npt.NDArray[Any]

MAX_NUMBER = 2**53 - 1
"""The largest number of an episode: what a browser, too, counts exactly."""
REMEDY = "restore it, delete it, or leave it out by --skip-damaged"
"""What to do about a damaged file."""

_CHUNK = 2**20
"""Bytes of a zip file that are read at once; its directory must not be larger."""
_MAX_HEADER = 4096
_HEADER = re.compile(
    rb"\{ *'descr': *'([<>|=][bfiu][1248])', *'fortran_order': *(True|False), *"
    rb"'shape': *\(((?: *\d{1,18} *,)* *(?:\d{1,18})?) *\) *,? *\} *\n?"
)
"""Of an array of numbers or truth values, as NumPy writes it."""
_ZIP_FAULTS = (
    OSError,
    EOFError,
    LookupError,
    OverflowError,
    RuntimeError,  # and with it NotImplementedError
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What `zipfile` raises for damaged files."""


class DatasetError(UserError, ValueError):
    """A preference dataset, or a file in it, is not as the format says."""


def warn_skipped(error: DatasetError) -> None:
    """Warn of what is left out, and why."""
    warnings.warn(f"skipped: {error}", stacklevel=3)


def read_file(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes."""
    try:
        if not path.is_file():
            raise DatasetError(f"{path} is no file; {REMEDY}")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise DatasetError(
                    f"{path} is too large: it has {size:,} bytes, expected at most {most:,}; "
                    f"{REMEDY}"
                )
            return file.read(size)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from None


def inflated(content: bytes, most: int) -> bytes:
    """Return what gzip has compressed; raise `ValueError` beyond `most` bytes."""
    stream = zlib.decompressobj(wbits=31)
    try:
        found = stream.decompress(content, most + 1)
    except zlib.error as error:
        raise ValueError(f"no gzip file: {error}") from None
    if len(found) > most:
        raise ValueError(f"it inflates to more than {most:,} bytes")
    if not stream.eof:
        raise ValueError("it is cut short")
    return found


def parsed(adapter: Any, text: bytes, tags: int = 0) -> Any:
    """Return what JSON says in the type of a `TypeAdapter`, or raise a `ValueError` of one line.

    The names of places in the JSON begin with `tags` names of a union's members.
    """
    try:
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError(_in_words(error, tags)) from None


def _in_words(error: ValidationError, tags: int) -> str:
    """Return the first fault that pydantic has found, on one line."""
    fault = error.errors(include_url=False)[0]
    if fault["type"] == "value_error":  # a check of ours has said it
        return str(fault["ctx"]["error"])
    words = one_line(fault["msg"])
    if fault["type"] == "json_invalid":
        return words
    place = ".".join(map(str, fault["loc"][tags:]))
    if fault["type"] == "missing":
        return f"it has no {place}"
    return f"{place or 'it'} is {one_line(repr(fault['input']))}: {words}"


def numbers_in(folder: Path, suffix: str, *, skip_damaged: bool = False) -> list[int]:
    """Return the numbers that the files of a folder are named by, e.g. 3 for ``000003.npz``.

    They are in order. Other names are ignored. A number that no episode can have is an error, or
    with `skip_damaged` a warning.
    """
    numbers = []
    for path in folder.glob(f"*{suffix}"):
        stem = path.name.removesuffix(suffix)
        if not (stem.isascii() and stem.isdecimal()):
            continue
        number = int(stem)
        if number <= MAX_NUMBER and stem == f"{number:06d}":
            numbers.append(number)
            continue
        error = DatasetError(
            f"{path}: expected a name like 000003{suffix}, six digits or more, up to "
            f"{MAX_NUMBER}{suffix}; rename it, or leave it out by --skip-damaged"
        )
        if not skip_damaged:
            raise error
        warn_skipped(error)
    return sorted(numbers)


@dataclass(frozen=True)
class ArrayHeader:
    """What an array in an archive says of itself; its data has exactly that size."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Literal["C", "F"]
    size: int
    """Bytes of the header, which stands before the data."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the data."""
        num_bytes = self.dtype.itemsize
        for count in self.shape:
            num_bytes *= count
        return num_bytes


class ArrayArchive:
    """Some arrays of an ``.npz`` file: `headers` of those that are there, `read` for their data.

    Members of other names are never read. Refused are encryption, compression other than deflate,
    types other than numbers and truth values, and data of another size than the header says.
    """

    def __init__(self, path: Path, names: Collection[str]) -> None:
        self._path = path
        self.headers: dict[str, ArrayHeader] = {}
        try:
            if not path.is_file():
                raise DatasetError(f"{path} is no file; {REMEDY}")
            self._file = _SmallReads(io.FileIO(path))
        except OSError as error:
            raise DatasetError(f"{path} cannot be read: {error.strerror}") from None
        try:
            self._zip = zipfile.ZipFile(self._file)
            known = {f"{name}.npy": name for name in names}
            for member in self._zip.infolist():
                if member.filename not in known:
                    continue
                name = known[member.filename]
                if name in self.headers:
                    raise ValueError(f"it holds {name} twice")
                self.headers[name] = self._header(member, name)
        except _ZIP_FAULTS as error:
            self._file.close()
            raise self._damaged(error) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, name: str) -> Array:
        """Return an array that `headers` names; its checksum is tested."""
        header = self.headers[name]
        data = bytearray(header.num_bytes)
        try:
            with self._zip.open(f"{name}.npy") as stream, memoryview(data) as view:
                stream.read(header.size)
                position = 0
                while position < len(data):
                    part = stream.read(min(_CHUNK, len(data) - position))
                    if not part:
                        raise EOFError(f"{name} is cut short")
                    view[position : position + len(part)] = part
                    position += len(part)
        except _ZIP_FAULTS as error:
            raise self._damaged(error) from None
        return np.frombuffer(data, header.dtype).reshape(header.shape, order=header.order)

    def _header(self, member: zipfile.ZipInfo, name: str) -> ArrayHeader:
        """Return the header of a member, or raise `ValueError`."""
        if member.flag_bits & 1:
            raise ValueError(f"{name} is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(
                f"{name} is compressed by method {member.compress_type}, expected 0 or 8"
            )
        with self._zip.open(member) as stream:
            start = stream.read(8)
            if len(start) < 8 or start[:6] != b"\x93NUMPY" or start[6] not in (1, 2, 3):
                raise ValueError(f"{name} is no array")
            size = stream.read(2 if start[6] == 1 else 4)
            length = int.from_bytes(size, "little")
            text = stream.read(min(length, _MAX_HEADER))
        match = _HEADER.fullmatch(text)
        if match is None:
            shown = one_line(repr(text.strip()))
            raise ValueError(
                f"the header of {name} reads {shown}, expected an array of numbers or truth values"
            )
        kind, is_fortran, counts = match.groups()
        try:
            dtype = np.dtype(kind.decode())
        except TypeError:
            raise ValueError(f"{name} has dtype {kind.decode()!r}, which is none") from None
        header = ArrayHeader(
            shape=tuple(int(count) for count in counts.split(b",") if count.strip()),
            dtype=dtype,
            order="F" if is_fortran == b"True" else "C",
            size=len(start) + len(size) + length,
        )
        if member.file_size != header.size + header.num_bytes:
            raise ValueError(
                f"{name} has {member.file_size:,} bytes, expected "
                f"{header.size + header.num_bytes:,} for shape {header.shape} of {dtype}"
            )
        return header

    def _damaged(self, error: Exception) -> DatasetError:
        if isinstance(error, DatasetError):
            return error
        reason = one_line(str(error), 200) or type(error).__name__
        return DatasetError(f"{self._path} is damaged ({reason}); {REMEDY}")


class _SmallReads(io.BufferedReader):
    """A file that refuses large reads: `zipfile` reads a directory of any size at once."""

    def read(self, size: int | None = -1) -> bytes:
        """Return `size` bytes, or all that are left."""
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > _CHUNK:
            raise zipfile.BadZipFile(f"its directory has {wanted:,} bytes, expected {_CHUNK:,}")
        return super().read(wanted)
