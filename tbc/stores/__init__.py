"""Books that outlive the process: plain rows in a store, written before an operation is answered.

A store decides nothing. What may be done is decided in memory by the rooms above; what they did is written
through, one transaction for one operation.

* `SqliteStore` keeps many pools, their journals and the runs of workflows in one private file.
* `PostgresStore` keeps pools and their journals in a PostgreSQL database, for many machines.
* `open_store` opens either by its address.
* The rows that go in and come out are in `tbc.stores.rows`.
"""

from __future__ import annotations

from tbc.stores.chain import PoolCheck
from tbc.stores.opening import open_store
from tbc.stores.postgres import PostgresStore
from tbc.stores.postgres_writer import PostgresWriter
from tbc.stores.rows import (
    AccountRow,
    AgentRow,
    EventRow,
    HoldRow,
    LineRow,
    LoanRow,
    Mark,
    News,
    OpRow,
    PartRow,
    PoolRow,
    PoolState,
    RunRow,
    StepRow,
    StoreInfo,
    check_id,
)
from tbc.stores.sqlite import SqliteStore
from tbc.stores.sqlite_writer import SqliteWriter
from tbc.stores.store import Store
from tbc.stores.writer import Writer

__all__ = [
    "AccountRow",
    "AgentRow",
    "EventRow",
    "HoldRow",
    "LineRow",
    "LoanRow",
    "Mark",
    "News",
    "OpRow",
    "PartRow",
    "PoolCheck",
    "PoolRow",
    "PoolState",
    "PostgresStore",
    "PostgresWriter",
    "RunRow",
    "SqliteStore",
    "SqliteWriter",
    "StepRow",
    "Store",
    "StoreInfo",
    "Writer",
    "check_id",
    "open_store",
]
