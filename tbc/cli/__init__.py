"""The command line.

Results go to standard output, errors to standard error; so does progress, but for that of a run, which goes
with its results unless these are asked for as JSON. Exit codes: 0, it worked; 2, the
arguments or a file are wrong (one line says what; for a workflow file, a line for each problem); 130,
interrupted. A command may have codes of its own.

Each command is a function in a room of its own, imported when it is asked for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from tbc import __version__
from tbc.errors import TBCError
from tbc.run_errors import WorkflowFileError

__all__ = ["app", "run"]

app = App(name="tbc", version=__version__, help="Token budget contracts: a budget market for LLM agents.")
app.command(
    "tbc.cli.replay:replay",
    name="replay",
    help="Run a simulated swarm under several policies and compare them.",
)
app.command(
    "tbc.cli.prices:prices", name="prices", help="Show what models cost, and from where that is known."
)
app.command("tbc.cli.check:check", name="check", help="Check a workflow file without running it.")
app.command("tbc.cli.run:run", name="run", help="Run a workflow within its budgets.")
app.command("tbc.cli.run:resume", name="resume", help="Go on with a run that was stopped.")
app.command("tbc.cli.runs:runs", name="runs", help="List the runs that a file keeps.")
app.command("tbc.cli.runs:report", name="report", help="Show what a run spent, step by step.")
app.command("tbc.cli.store:store", name="store")
app.command("tbc.cli.watch:watch", name="watch", help="Show the accounts of a store while others spend.")
app.command("tbc.cli.mcp:mcp", name="mcp", help="Serve the books as tools of the Model Context Protocol.")
app.command("tbc.cli.serve:serve", name="serve", help="Serve the books over HTTP.")
app.command("tbc.cli.token:token", name="token")


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    try:
        code = app(list(arguments), exit_on_error=False, print_error=True, result_action="return_value")
    except CycloptsError:
        return 2  # cyclopts has said what is wrong
    except BrokenPipeError:  # whoever read the output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except WorkflowFileError as error:
        for line in str(error).splitlines():
            print(f"tbc: {line}", file=sys.stderr)
        return 2
    except (TBCError, OSError) as error:
        print(f"tbc: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tbc: interrupted", file=sys.stderr)
        return 130
    return code if isinstance(code, int) else 0


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
