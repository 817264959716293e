"""Examples that are programs run, offline, and say what their texts promise. Workflows: `test_cli_run`."""

from __future__ import annotations

import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_cost_bounded_loop_stops_before_its_limit(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(EXAMPLES / "cost_bounded_loop.py")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    total = re.search(r"Total cost \(actual\): \$([0-9.]+)", done.stdout)
    assert total is not None
    assert Decimal("0.15") < Decimal(total[1]) <= Decimal("0.20")
    assert "Status: BLOCKED\nExecution stopped: Budget threshold reached" in done.stdout
    assert "The limit held" in done.stdout
    assert list(tmp_path.iterdir()) == []
