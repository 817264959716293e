"""The names of the GenAI semantic conventions that are written, in the two forms that are in use.

Both are in development: their names may change. ``"0.1"`` is the first release of the conventions on their
own; ``"1.41"`` is the last one within the general semantic conventions, which most dashboards know.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import attrs
from opentelemetry.metrics import Counter, Histogram, Meter

from tbc.usage import Usage

__all__ = ["WELL_KNOWN", "Conventions", "Instruments", "make_instruments", "usage_attributes"]

#: Which release of the conventions is followed.
Conventions = Literal["0.1", "1.41"]

AGENT: Final = "gen_ai.agent.name"
ERROR: Final = "error.type"
MAX_TOKENS: Final = "gen_ai.request.max_tokens"
MODEL: Final = "gen_ai.request.model"
OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
STREAM: Final = "gen_ai.request.stream"

#: What the conventions call the providers that price data has under other names.
WELL_KNOWN: Final = {
    "aws": "aws.bedrock",
    "azure": "azure.ai.openai",
    "google": "gcp.gen_ai",
    "mistral": "mistral_ai",
    "moonshotai": "moonshot_ai",
    "x-ai": "x_ai",
}

_SECONDS: Final = [0.01 * 2**power for power in range(14)]
_TOKENS: Final = [4**power for power in range(14)]


def usage_attributes(usage: Usage, conventions: Conventions) -> dict[str, int]:
    """Return what a provider stated of one call, as attributes of its span."""
    written = "cache_write" if conventions == "0.1" else "cache_creation"
    found = {
        "gen_ai.usage.input_tokens": usage.all_input,
        "gen_ai.usage.output_tokens": usage.all_output,
        "gen_ai.usage.cache_read.input_tokens": _cache_read(usage),
        f"gen_ai.usage.{written}.input_tokens": _cache_written(usage),
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
    }
    return {name: count for name, count in found.items() if count is not None}


def _cache_read(usage: Usage) -> int | None:
    return _sum(usage.cached_read_tokens, usage.cached_audio_read_tokens)


def _cache_written(usage: Usage) -> int | None:
    return _sum(usage.cached_write_tokens, usage.cached_write_1h_tokens)


def _sum(*counts: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


@attrs.frozen
class Instruments:
    """What measures inferences. Of `usage` and `tokens` one is there, as the conventions say."""

    duration: Histogram
    first_chunk: Histogram
    #: Tokens by what they were, each a counter of its own.
    usage: dict[str, Counter]
    #: Tokens of single calls, by their type.
    tokens: Histogram | None

    def count(self, usage: Usage | None, attributes: dict[str, Any]) -> None:
        """Count the tokens that a provider stated of one call; `None`: it stated nothing."""
        if self.tokens is not None:
            stated = () if usage is None else (("input", usage.all_input), ("output", usage.all_output))
            for kind, count in stated:
                if count is not None:
                    self.tokens.record(count, {**attributes, "gen_ai.token.type": kind})
            return
        for name, modality, count in _by_modality(usage or Usage(input_tokens=0, output_tokens=0)):
            self.usage[name].add(count, {**attributes, "gen_ai.token.modality": modality})


def _by_modality(usage: Usage) -> list[tuple[str, str, int]]:
    """Return the tokens by name and modality: only audio is told apart from the rest."""
    audio_in = _sum(usage.input_audio_tokens, usage.cached_audio_read_tokens)
    rest = _sum(
        usage.input_tokens,
        usage.cached_read_tokens,
        usage.cached_write_tokens,
        usage.cached_write_1h_tokens,
    )
    found = [
        ("input_tokens", "unknown", rest),
        ("input_tokens", "audio", audio_in),
        ("output_tokens", "unknown", usage.output_tokens),
        ("output_tokens", "audio", usage.output_audio_tokens),
        ("cache_read.input_tokens", "unknown", usage.cached_read_tokens),
        ("cache_read.input_tokens", "audio", usage.cached_audio_read_tokens),
        ("cache_write.input_tokens", "unknown", _cache_written(usage)),
        ("reasoning.output_tokens", "unknown", usage.reasoning_tokens),
    ]
    return [(name, modality, count) for name, modality, count in found if count is not None]


def make_instruments(meter: Meter, conventions: Conventions) -> Instruments:
    """Return the instruments of a release of the conventions."""
    call = "gen_ai.client.inference" if conventions == "0.1" else "gen_ai.client.operation"
    duration = meter.create_histogram(
        f"{call}.duration",
        "s",
        "Duration of inferences, streams until their end.",
        explicit_bucket_boundaries_advisory=_SECONDS,
    )
    first_chunk = meter.create_histogram(
        f"{call}.time_to_first_chunk",
        "s",
        "Time to the first chunk of streams.",
        explicit_bucket_boundaries_advisory=_SECONDS,
    )
    if conventions == "1.41":
        tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Tokens of single calls, as their providers stated them.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        return Instruments(duration, first_chunk, {}, tokens)
    whats = {
        "input_tokens": "Tokens of input, cached ones included.",
        "output_tokens": "Tokens of output, reasoning included.",
        "cache_read.input_tokens": "Tokens of input that were read from a cache.",
        "cache_write.input_tokens": "Tokens of input that were written to a cache.",
        "reasoning.output_tokens": "Tokens of output that were reasoning.",
    }
    usage = {
        name: meter.create_counter(f"{call}.usage.{name}", "{token}", what) for name, what in whats.items()
    }
    return Instruments(duration, first_chunk, usage, None)
