"""``python -m marl``, and where the command ``marl`` begins."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is imported ends it without a word."""
    try:
        from marl.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
