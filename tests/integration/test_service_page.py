"""docs/service.md and docs/runs.md show what a real server answers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


def transcript(text):
    """Return the commands of a page's console blocks with what they answer."""
    blocks = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [
        (line.removeprefix("$ "), answer)
        for line, answer in zip(lines[::2], lines[1::2], strict=True)
        if line.startswith("$ ")
    ]


def fits(shown, answered):
    """Return whether an answer is what is shown; `...` stands for anything."""
    pattern = ".*".join(re.escape(part) for part in re.split(r" ?\.\.\. ?", shown))
    return re.fullmatch(pattern, answered.strip(), flags=re.DOTALL) is not None


def test_the_comparison_sees_a_wrong_answer():
    assert fits('{"a":1, ... 402', '{"a":1,"b":2}402') and fits("x", "x\n")
    assert not fits('{"a":1, ... 402', '{"a":1,"b":2}403') and not fits("x", "xy")
    assert transcript("```console\n$ do\ndone\n```") == [("do", "done")]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
@pytest.mark.parametrize("page", ["service.md", "runs.md"])
def test_the_transcript_is_what_a_server_answers(page):
    arguments = ["serve", "--port", "0", "--max-tokens", "20000", "--max-usd", "5"]
    with subprocess.Popen(
        [sys.executable, "-m", "tbc", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            where = server.stdout.readline().split()[-1]
            shown = transcript((DOCS / page).read_text(encoding="utf-8"))
            assert len(shown) > 5
            for command, answer in shown:
                done = subprocess.run(
                    ["sh", "-c", command],
                    env={**os.environ, "TBC": where},
                    capture_output=True,
                    text=True,
                    check=True,
                    timeout=30,
                )
                assert fits(answer, done.stdout), (command, done.stdout)
        finally:
            server.send_signal(signal.SIGTERM)
            _, said = server.communicate(timeout=30)
    assert server.returncode == 0 and said == "tbc has stopped\n"
