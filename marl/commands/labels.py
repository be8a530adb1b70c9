"""The command ``marl labels``."""

import argparse
import json
from pathlib import Path

from rich.console import Console

from marl.config import ConfigError
from marl.reports.audit import audit, show, to_json
from marl.reports.audit_html import page


def labels(arguments: list[str], description: str | None) -> int:
    """Print the audit that the arguments of ``marl labels`` ask for, and write its page."""
    parser = _parser(description)
    options = parser.parse_args(arguments)
    if options.most < 0:
        parser.error("--most must be at least 0")
    report = audit(options.run, cache=options.cache, ask_again=options.ask_again)
    path: Path | None = options.out
    if options.json:
        print(json.dumps(to_json(report, options.most), indent=1, allow_nan=False))
    else:
        show(report, Console(highlight=False))
        path = path or options.run / "labels.html"
    if path is not None:
        _write(path, page(report, options.most))
    if path is not None and not options.json:
        print(f"the most surprising pairs are in {path}")
    return 0


def _write(path: Path, text: str) -> None:
    """Write a page, whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}; name a file by --out in a folder that is "
            "there"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="marl labels",
        description=description,
        epilog="Shares stand with their 95 % intervals. Nothing is asked of a language model, and "
        "its answer cache is only read, also while the run goes on.",
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument(
        "--json", action="store_true", help="print JSON, and write no page unless --out is given"
    )
    parser.add_argument("--out", type=Path, help="the page to write (default RUN/labels.html)")
    parser.add_argument(
        "--cache", type=Path, help="the language model's answers, if not where the settings say"
    )
    parser.add_argument(
        "--most", type=int, default=8, help="surprising pairs of each kind (default 8)"
    )
    parser.add_argument(
        "--ask-again",
        action="store_true",
        help="ask a labeller of your own, which leaves no answers, about the kept episodes",
    )
    return parser
