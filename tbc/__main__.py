"""The `tbc` command; ``python -m tbc`` is the same.

The command line needs two packages that the library does not. Without them it says what to install.
"""

from __future__ import annotations

import sys

__all__ = ["main"]

_NEEDED = ("cyclopts", "rich")


def main() -> None:
    """Run the command line, and end the process with its exit code."""
    try:
        from tbc.cli import run

        code = run(sys.argv[1:])
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _NEEDED:
            raise
        print(
            f'The tbc command needs {missing}. Install it with:  pip install "tbc[cli,plot]"', file=sys.stderr
        )
        sys.exit(1)
    sys.exit(code)


if __name__ == "__main__":
    main()
