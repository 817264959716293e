"""Books that outlive the process: plain rows in a store, written before an operation is answered.

A store decides nothing. What may be done is decided in memory by the rooms above; what they did is written
through, one transaction for one operation.

* `SqliteStore` keeps many pools, their journals and the runs of workflows in one private file.
* The rows that go in and come out are in `tbc.stores.rows`.
"""

from __future__ import annotations

from tbc.stores.chain import PoolCheck
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
    TotalRow,
    check_id,
)
from tbc.stores.sqlite import SqliteStore
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
    "RunRow",
    "SqliteStore",
    "StepRow",
    "StoreInfo",
    "TotalRow",
    "Writer",
    "check_id",
]
