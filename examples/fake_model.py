"""A model that runs offline: it answers from a script, in the shape of an OpenAI chat completion.

Runs cost something, and the same every time. Set ``FAKE_MODEL_SECONDS`` to let every call take so long.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any


def chat(
    prompt: object, *, model: str, answer: str, tokens: int, max_tokens: int | None = None
) -> dict[str, Any]:
    """Return an answer that counts as so many tokens (fewer if it is cut off)."""
    time.sleep(float(os.environ.get("FAKE_MODEL_SECONDS", "0")))
    written = tokens if max_tokens is None else min(tokens, max_tokens)
    read = len(json.dumps(prompt).split())
    return {
        "id": "chatcmpl-offline",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": answer},
                "finish_reason": "stop" if written == tokens else "length",
            }
        ],
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        },
    }
