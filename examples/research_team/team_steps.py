"""The steps of the research team. Each makes one call and returns the provider's reply as it is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fake_model import chat


def plan(task: str, *, model: str, max_output_tokens: int) -> dict[str, Any]:
    """Plan the work."""
    answer = "Ask each: who owns the water, and who needs it?"
    return chat(task, model=model, answer=answer, tokens=120, max_tokens=max_output_tokens)


async def read(what: dict[str, Any], *, model: str, max_output_tokens: int) -> dict[str, Any]:
    """Read about one topic. Coroutine functions work as well."""
    topic = what["topic"]
    answer = f"What the town's papers say about {topic}."
    tokens = 1_000 + 400 * (len(topic) % 5)
    return chat(what, model=model, answer=answer, tokens=tokens, max_tokens=max_output_tokens)


def write(notes: dict[str, Any], *, model: str, max_output_tokens: int) -> dict[str, Any]:
    """Write the report from the notes."""
    answer = f"The rivers matter for {len(notes['notes'])} reasons: " + " ".join(notes["notes"])
    return chat(notes, model=model, answer=answer, tokens=900, max_tokens=max_output_tokens)
