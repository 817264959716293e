"""The OpenAPI document is true: requests made of it are served as it says, and others refused as it says."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, assume, settings
from schemathesis.core.failures import FailureGroup

import tbc
from tbc.service import Limits, Pools, Service, create_app
from tbc.service.bearers import Token

EXAMPLES = 15


def make_manager(name):
    manager = tbc.BudgetManager(max_tokens=1_000_000, max_usd="100", unknown_price="track")
    manager.register_agent("reader", max_tokens=10_000, max_usd="5")
    manager.register_agent("writer", priority=5, max_tokens=10_000)
    return manager


def schema_of(mode):
    config = schemathesis.Config.from_dict(
        {
            # Why no security parameters: the token is put into every request below, whatever was generated.
            "generation": {
                "mode": mode,
                "deterministic": True,
                "database": "none",
                "with-security-parameters": False,
            },
            "checks": {"positive_data_acceptance": {"expected-statuses": [200, 402, 403, 404, 409, 422]}},
        }
    )
    app = create_app(Service(Pools(make_manager), bearers=Everybody(), limits=Limits(rate=None)))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config)
    return schema.exclude(path="/v1/events")  # it does not end; see test_service


class Everybody:
    """Knows one token, which may do everything."""

    unreadable = False

    def find(self, text):
        scopes = ("read", "spend", "admin")
        token = Token(name="t", pool="p", scopes=scopes, digest="", created_at=0.0)
        return token if text == b"everything" else None


TOKEN = {"Authorization": "Bearer everything"}

bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def is_lost_on_the_way(case):
    """Return whether a query string does not show what is wrong: an empty list is written as nothing."""
    return any(value in ([], {}, ()) for value in dict(case.query or {}).values())


@schema_of("positive").parametrize()
@bounded
def test_what_the_document_allows_is_read(case):
    response = case.call_and_validate(headers=TOKEN)
    if response.status_code == 422:  # it was read, and does not fit the books
        assert response.json()["error"]["code"] not in ("invalid_request", "unknown_query")


@schema_of("negative").parametrize()
@bounded
def test_what_the_document_forbids_is_refused(case):
    assume(not is_lost_on_the_way(case))
    case.call_and_validate(headers=TOKEN)


def test_a_document_that_is_not_true_is_noticed():
    service = Service(Pools(make_manager))
    service.document["components"]["schemas"]["HealthAnswer"]["properties"]["status"] = {"type": "integer"}
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(service))
    with pytest.raises(FailureGroup, match="Response violates schema"):
        schema["/health"]["GET"].Case().call_and_validate()
