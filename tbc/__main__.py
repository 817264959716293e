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
    "httpx": "cli,serve",
    "httptools": "cli,serve",
    "opentelemetry": "cli,serve,otel",
}
#: What a command needs whatever of it is missing.
_COMMANDS = {"serve": "cli,serve", "token": "cli,serve"}


def _missing(error: BaseException | None) -> str | None:
    """Return the package that an import lacked, however deep in what was raised, if an extra brings it."""
    while error is not None:
        name = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ImportError) and name in _EXTRAS:
            return name
        error = error.__cause__ or error.__context__
    return None


def main() -> None:
    """Run the command line, and end the process with its exit code."""
    try:
        from tbc.cli import run

        code = run(sys.argv[1:])
    except ImportError as error:
        missing = _missing(error)
        if missing is None:
            raise
        extras = _EXTRAS[missing] if missing == "opentelemetry" else _COMMANDS.get("".join(sys.argv[1:2]))
        install = f'pip install "tbc[{extras or _EXTRAS[missing]}]"'
        print(f"The tbc command needs {missing}. Install it with:  {install}", file=sys.stderr)
        sys.exit(1)
    sys.exit(code)


if __name__ == "__main__":
    main()
