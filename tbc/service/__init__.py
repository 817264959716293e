"""The ledger over HTTP, for agents that are not Python and for operators.

`create_app` returns an ASGI application over a `Service`; ``tbc serve`` runs it. docs/service.md shows what
is served. It needs the extra ``serve``.
"""

from __future__ import annotations

from tbc.service.app import Service, create_app
from tbc.service.limits import Limits
from tbc.service.pools import OpenPool, Pools

__all__ = ["Limits", "OpenPool", "Pools", "Service", "create_app"]
