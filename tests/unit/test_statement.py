"""What a service needs of a manager: one statement, a journal in pages."""

from __future__ import annotations

import pytest

import tbc
from tbc.leased import LeasedManager


def open_manager(**how):
    manager = tbc.BudgetManager(max_tokens=1_000, **how)
    manager.register_agent("writer", priority=5, max_tokens=400)
    return manager


def test_a_statement_has_every_kept_axis_as_of_one_line_of_the_journal():
    manager = open_manager(max_usd="2")
    manager.hold("writer", 100, usd="0.5")
    statement = manager.statement()
    assert list(statement.accounts) == ["tokens", "usd"]
    assert [each.agent_name for each in statement.accounts["usd"]] == [tbc.ROOT, "writer"]
    assert statement.accounts["tokens"] == manager.accounts()
    assert statement.accounts["usd"] == manager.accounts("usd")
    assert statement.seq == manager.ledger.seq and statement.open_holds == 1
    one = manager.statement("writer").accounts
    assert {axis: accounts[0].held for axis, accounts in one.items()} == {"tokens": 100, "usd": 500_000_000}
    with pytest.raises(tbc.UnknownAgentError):
        manager.statement("nobody")


def test_a_leased_statement_tells_first_what_was_spent_here():
    shared = open_manager()
    with LeasedManager(shared, tbc.Lease(share=0.5, seconds=30)) as worker:
        worker.hold("writer", 10).settle(10)
        assert worker.statement("writer").accounts["tokens"][0].consumed == 10
        worker.close_agent("writer", key="bye")
        worker.close_agent("writer", key="bye")


def test_the_journal_comes_in_pages():
    manager = open_manager()
    for _ in range(5):
        manager.record_usage("writer", 1)
    every = manager.ledger.entries()
    pages = [manager.ledger.entries(since, 3) for since in (0, 3, 6, 9)]
    assert [len(page) for page in pages] == [3, 3, 1, 0]
    assert [entry for page in pages for entry in page] == every


def test_pages_of_a_folded_journal_begin_with_the_opening_balances():
    manager = open_manager(keep=10)
    for _ in range(400):
        manager.record_usage("writer", 1)
    page = manager.ledger.entries(0, 2)
    assert {entry.seq for entry in page if entry.kind == "opening"} == {0}
    kept = [entry for entry in page if entry.seq]
    assert len(kept) == 2 and kept[0].seq > 100
