"""Token budget contracts: a budget market for multi-agent LLM systems.

Agents sign contracts (priority, budget, reserve, confidence). Before every model call `tbc` decides whether
it may run, sets the money aside, and where one agent is short moves spare budget to it from agents that
matter no more than it does. After the call it books what was really spent.

>>> import tbc
>>> manager = tbc.BudgetManager(max_tokens=10_000)
>>> contract = manager.register_agent("writer", priority=9, max_tokens=2_000)
>>> with manager.hold("writer", 1_500) as hold:
...     settlement = hold.settle(tokens=1_200)
>>> manager.remaining("writer")
800

NumPy and tiktoken load at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tbc.confidence import ConfidenceGate
from tbc.contract import ROOT, BudgetContract
from tbc.current import current_hold, with_current_hold
from tbc.decision import Decision, Kind, Settlement, Status, Transfer
from tbc.errors import (
    AgentClosedError,
    AgentExistsError,
    AgentInUseError,
    BudgetExceededError,
    CarveOutError,
    GateClosedError,
    HoldEndedError,
    InvalidAmountError,
    InvalidContractError,
    InvalidPolicyError,
    InvalidPriceError,
    InvalidRequestError,
    KeyConflictError,
    LeaseOpenError,
    ManagedLedgerError,
    NoCurrentHoldError,
    NotSent,
    OverrunError,
    SliceTooSmallError,
    StoreAwayError,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreMissingError,
    StoreStaleError,
    StoreUnknownError,
    TBCError,
    TraceError,
    UnknownAgentError,
    UnknownHoldError,
    UnknownLeaseError,
    UnknownPriceError,
    VocabularyError,
)
from tbc.holds import Hold
from tbc.journal import Entry
from tbc.leases import Lease
from tbc.ledger import Ledger
from tbc.manager import BudgetManager
from tbc.reallocator import Reallocator, Rebalance
from tbc.tree import Account

if TYPE_CHECKING:
    from tbc import events, policy, tokens
    from tbc import telemetry as telemetry  # not in __all__: it needs an extra
    from tbc.away import Allowance
    from tbc.clearing import Clearing, clear
    from tbc.run_errors import (
        ResultNotKeptError,
        RunBusyError,
        RunError,
        StepBlockedError,
        StepResultError,
        StepUnpricedError,
        UnknownRunError,
        UnknownTaskError,
        UnresolvedReferenceError,
        WorkflowChangedError,
        WorkflowFileError,
    )
    from tbc.runs.steps import Run
    from tbc.runs.tasks import execute, forget_task, print_summary, render_summary
    from tbc.usage import Usage

__version__ = "0.1.0"

__all__ = [
    "Account",
    "AgentClosedError",
    "AgentExistsError",
    "AgentInUseError",
    "Allowance",
    "BudgetContract",
    "BudgetExceededError",
    "BudgetManager",
    "CarveOutError",
    "Clearing",
    "ConfidenceGate",
    "Decision",
    "Entry",
    "GateClosedError",
    "Hold",
    "HoldEndedError",
    "InvalidAmountError",
    "InvalidContractError",
    "InvalidPolicyError",
    "InvalidPriceError",
    "InvalidRequestError",
    "KeyConflictError",
    "Kind",
    "Lease",
    "LeaseOpenError",
    "Ledger",
    "ManagedLedgerError",
    "NoCurrentHoldError",
    "NotSent",
    "OverrunError",
    "ROOT",
    "Reallocator",
    "Rebalance",
    "ResultNotKeptError",
    "Run",
    "RunBusyError",
    "RunError",
    "Settlement",
    "SliceTooSmallError",
    "Status",
    "StepBlockedError",
    "StepResultError",
    "StepUnpricedError",
    "StoreAwayError",
    "StoreBusyError",
    "StoreCorruptError",
    "StoreError",
    "StoreFullError",
    "StoreMissingError",
    "StoreStaleError",
    "StoreUnknownError",
    "TBCError",
    "TraceError",
    "Transfer",
    "UnknownAgentError",
    "UnknownHoldError",
    "UnknownLeaseError",
    "UnknownPriceError",
    "UnknownRunError",
    "UnknownTaskError",
    "UnresolvedReferenceError",
    "Usage",
    "VocabularyError",
    "WorkflowChangedError",
    "WorkflowFileError",
    "__version__",
    "clear",
    "current_hold",
    "events",
    "execute",
    "forget_task",
    "policy",
    "print_summary",
    "render_summary",
    "tokens",
    "with_current_hold",
]

# Loaded at first use: name -> the module, or the module that holds it.
_LATER = {
    "Allowance": "tbc.away",
    "UnknownTaskError": "tbc.run_errors",
    "StepResultError": "tbc.run_errors",
    "StepUnpricedError": "tbc.run_errors",
    "StepBlockedError": "tbc.run_errors",
    "WorkflowChangedError": "tbc.run_errors",
    "RunBusyError": "tbc.run_errors",
    "UnknownRunError": "tbc.run_errors",
    "RunError": "tbc.run_errors",
    "ResultNotKeptError": "tbc.run_errors",
    "UnresolvedReferenceError": "tbc.run_errors",
    "WorkflowFileError": "tbc.run_errors",
    "Clearing": "tbc.clearing",
    "Run": "tbc.runs.steps",
    "Usage": "tbc.usage",
    "clear": "tbc.clearing",
    "events": "tbc.events",
    "execute": "tbc.runs.tasks",
    "forget_task": "tbc.runs.tasks",
    "policy": "tbc.policy",
    "telemetry": "tbc.telemetry",
    "print_summary": "tbc.runs.tasks",
    "render_summary": "tbc.runs.tasks",
    "tokens": "tbc.tokens",
}


def __getattr__(name: str) -> Any:
    module = _LATER.get(name)
    if module is None:
        raise AttributeError(f"module 'tbc' has no attribute {name!r}")
    loaded = importlib.import_module(module)
    value = loaded if module == f"tbc.{name}" else getattr(loaded, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
