"""What made a result: the code and the machine."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from marl import __version__

_ROOT = Path(__file__).resolve().parents[2]


def commit() -> str:
    """Return the short commit of this package's checkout, marked where `marl` or `envs` differ.

    Installed without one, its version.
    """
    if not (_ROOT / ".git").exists():
        return f"prefmarl {__version__}"
    revision = _git("rev-parse", "--short", "HEAD")
    return f"{revision}-changed" if _git("status", "--porcelain", "marl", "envs") else revision


def machine() -> str:
    """Return processor, cores and versions: what a run time depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (
        f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, "
        f"{platform.system()}, Python {platform.python_version()}, torch {version('torch')}"
    )


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"
