"""The `tbc` command; ``python -m tbc`` is the same.

The command line needs packages that the library does not. Without them it says what to install.
"""

from __future__ import annotations

import sys

__all__ = ["main"]

#: Which extra brings which package.
_EXTRAS = {
    **dict.fromkeys(("cyclopts", "rich"), "cli,plot"),
    **dict.fromkeys(("anyio", "jsonschema", "mcp"), "mcp"),
    **dict.fromkeys(("apsw", "cattrs", "genai_prices", "yaml"), "runs"),
    **dict.fromkeys(("prometheus_client", "starlette"), "cli,serve"),
    "uvicorn": "mcp,serve",
    "opentelemetry": "cli,serve,otel",
}


def main() -> None:
    """Run the command line, and end the process with its exit code."""
    try:
        from tbc.cli import run

        code = run(sys.argv[1:])
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS:
            raise
        install = f'pip install "tbc[{_EXTRAS[missing]}]"'
        print(f"The tbc command needs {missing}. Install it with:  {install}", file=sys.stderr)
        sys.exit(1)
    sys.exit(code)


if __name__ == "__main__":
    main()
