"""LiteLLM for the tests: imported once, with the prices that it ships, and without a network."""

from __future__ import annotations

import functools
import importlib
import socket
from typing import Any, Final

import pytest

__all__ = ["CONNECTIONS", "lazy_schemas", "litellm"]

#: What the import asked of the network.
CONNECTIONS: Final[list[str]] = []

#: LiteLLM's models are built at their first use, and pydantic then warns of what their types promise.
lazy_schemas = pytest.mark.filterwarnings("ignore:Items? .* using the `ReadOnly` qualifier:UserWarning")


@functools.cache
def litellm() -> Any:
    """Import LiteLLM (some seconds) and note whether it asks the network for anything."""

    def connect(*args: Any, **kwargs: Any) -> Any:
        CONNECTIONS.append(repr(args))
        raise OSError("no network here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        patch.setattr(socket, "getaddrinfo", connect)
        patch.setattr(socket.socket, "connect", connect)
        return importlib.import_module("litellm")
