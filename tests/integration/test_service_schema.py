"""The OpenAPI document is true: requests made of it are served as it says, and others refused as it says."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, Phase, settings

import tbc
from tbc.service import Pools, Service, create_app

EXAMPLES = 15


def make_manager(name):
    manager = tbc.BudgetManager(max_tokens=1_000_000, max_usd="100", unknown_price="track")
    manager.register_agent("reader", max_tokens=10_000, max_usd="5")
    manager.register_agent("writer", priority=5, max_tokens=10_000)
    return manager


def schema_of(mode):
    config = schemathesis.Config.from_dict(
        {
            "generation": {"mode": mode, "deterministic": True, "database": "none"},
            "checks": {"positive_data_acceptance": {"expected-statuses": [200, 402, 403, 404, 409, 422]}},
        }
    )
    app = create_app(Service(Pools(make_manager)))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config)
    return schema.exclude(path="/v1/events")  # it does not end; see test_service_events


bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@schema_of("positive").parametrize()
@bounded
def test_what_the_document_allows_is_read(case):
    response = case.call_and_validate()
    if response.status_code == 422:  # it was read, and does not fit the books
        assert response.json()["error"]["code"] not in ("invalid_request", "unknown_query")


@schema_of("negative").parametrize()
@bounded
def test_what_the_document_forbids_is_refused(case):
    case.call_and_validate()
