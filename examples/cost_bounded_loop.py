"""A loop that would go on for ever, stopped before its cost crosses the limit.

    python examples/cost_bounded_loop.py

Every step sends all that was said before, so each costs more than the one before it. The limit is 20 cents:
the step that could cross it is not made.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fake_model import chat

import tbc

#: Dollars per token.
PRICES = {"input": "0.0000025", "output": "0.00001"}


def main() -> None:
    """Draft until the money is used."""
    said = ["Draft a plan for the town's rivers. " * 40]

    def step(max_output_tokens: int) -> dict[str, Any]:
        reply = chat(
            said, model="house", answer="Another thought. " * 60, tokens=1_200, max_tokens=max_output_tokens
        )
        usage = reply["usage"]
        said.append(reply["choices"][0]["message"]["content"])
        return {
            "output": reply,
            "usage": {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]},
        }

    while True:
        try:
            tbc.execute(
                task_id="draft",
                run_task=step,
                input_data=said,
                cost_model=PRICES,
                max_cost="0.20",
                max_output_tokens=1_500,
            )
        except tbc.StepBlockedError:  # also a RuntimeError
            break
    tbc.print_summary("draft")


if __name__ == "__main__":
    main()
