"""Cost of ``import tbc`` in a fresh process, beside ``import attrs``, which it needs.

Each figure is what a fresh interpreter spends inside the import statement; the two alternate.
Both are compiled already, as installed packages are.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from typing import Any

from benchmarks.timing import median_ratio

__all__ = ["run"]


def run(*, smoke: bool, seed: int = 20260101, huge: bool = False) -> dict[str, Any]:
    """Return milliseconds per import and their ratio."""
    times: dict[str, list[float]] = {"attrs": [], "tbc": []}
    for turn in range(-1, 3 if smoke else 25):
        for name, kept in times.items():
            elapsed = _import_ms(name)
            if turn >= 0:
                kept.append(elapsed)
    rows = [{"import": name, "ms": round(statistics.median(ms), 2)} for name, ms in times.items()]
    return {"rows": rows, "tbc / attrs (<= 1.5)": round(median_ratio(times["tbc"], times["attrs"]), 3)}


def _import_ms(name: str) -> float:
    code = f"from time import perf_counter as t; b = t(); import {name}; print((t() - b) * 1000)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return float(done.stdout)
