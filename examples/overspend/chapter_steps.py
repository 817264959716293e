"""The step of the overspending example: one chapter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fake_model import chat


def write(season: str, *, model: str, max_output_tokens: int) -> dict[str, Any]:
    """Write a chapter about a season."""
    prompt = f"Write a chapter about {season}."
    answer = f"{season} came late that year."
    return chat(prompt, model=model, answer=answer, tokens=2_500, max_tokens=max_output_tokens)
