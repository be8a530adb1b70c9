"""Writes are atomic, a run folder takes one writer at a time, and new folders get free names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from marl import UserError
from marl.utils.files import OutputError, atomic_path, atomic_write, free_folder, held, make_folder


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("before")
    atomic_write(path, b"after")
    assert path.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("before")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_at_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    theirs, path = tmp_path / "theirs", tmp_path / "file"
    theirs.write_text("precious")
    (tmp_path / "file.tmp").symlink_to(theirs)
    atomic_write(path, b"new")
    assert (theirs.read_text(), path.read_text(), path.is_symlink()) == ("precious", "new", False)


def test_the_disk_has_the_content_before_the_name_and_then_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    replace, fsync = os.replace, os.fsync

    def recorded_fsync(descriptor: int) -> None:
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def recorded_replace(source: Path, target: Path) -> None:
        assert Path(source).read_bytes() == b"content"
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    atomic_write(tmp_path / "file", b"content")
    assert calls == ["file", "rename", "folder"]


HOLD = """
import sys
from pathlib import Path
from marl.utils.files import held
with held(Path(sys.argv[1]), "taken"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_one_process_holds_a_lock_until_it_ends(tmp_path: Path, end: str) -> None:
    path = tmp_path / ".lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=r"^taken by another$"), held(path, "taken by another"):
        pass
    if end == "kill":
        holder.kill()
    holder.communicate()
    with held(path, "taken by another"):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_that_survives_does_not_hold_on(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    code = HOLD.replace("sys.stdin.read()", "import os; os.fork() or __import__('time').sleep(20)")
    code = code.replace("    import os", "    print('forked', flush=True); import os")
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, start_new_session=True
    )
    assert holder.stdout is not None
    try:
        assert [holder.stdout.readline() for _ in range(2)] == [b"held\n", b"forked\n"]
        holder.wait(timeout=10)  # the parent is done, its child sleeps
        with held(path, "taken"):
            pass
    finally:
        os.killpg(holder.pid, 9)


def test_new_folders_take_the_next_free_name(tmp_path: Path) -> None:
    parent = tmp_path / "runs"
    with free_folder(parent, "run", "") as first, free_folder(parent, "run", "") as second:
        assert (first.name, second.name) == ("run", "run-2")
        (second / "config.toml").touch()
    assert [path.name for path in parent.iterdir()] == ["run-2"]
    with free_folder(parent, "run-2", "") as third:
        assert third.name == "run-2-2"
    (second / "config.toml").unlink()
    second.rmdir()
    with free_folder(parent, "run", ""):
        pass
    assert not parent.exists()
    parent.touch()
    with (
        pytest.raises(OutputError, match=r"runs cannot be written: File exists; move it$"),
        free_folder(parent, "run", "move it"),
    ):
        pass


def test_a_folder_may_lie_deep_and_may_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    deep = Path("/".join("d" * 1500))  # deeper than Python's calls may be
    for _ in range(2):
        make_folder(deep)
        assert deep.is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        make_folder(tmp_path / "file" / "within")
    subprocess.run(["rm", "-r", "d"], check=True)  # which pytest's own removal could not
