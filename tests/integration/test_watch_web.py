"""`tbc watch --web`: the live page on a stored pool, which it reads and cannot change."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import tbc
from tbc.cli import run
from tbc.errors import StoreMissingError
from tbc.service import Pools, Service, create_app
from tbc.service.roles import VIEWS
from tbc.service.viewed import ViewedPool
from tbc.stores import SqliteStore
from tests.live_page import Page, browsing

CHAPTERS = str(Path(__file__).parents[2] / "examples" / "overspend" / "chapters.yaml")


def spend(store, **terms):
    """Return a manager over a store with a loan, a debt, a closed account, a gate and two open holds."""
    manager = tbc.BudgetManager(max_tokens=9_000, max_usd="5", store=store, pool="team", **terms)
    manager.register_agent("reader", priority=1, max_tokens=4_000, max_usd="1")
    manager.register_agent("writer", priority=9, max_tokens=2_000, min_reserve=500, confidence_threshold=0.8)
    manager.register_agent("scout", parent="reader", max_tokens=500)
    manager.register_agent("gone", max_tokens=100)
    manager.close_agent("gone")
    manager.hold("writer", 5_500, usd="0.30").settle(tokens=1_200, usd="0.123456789")
    manager.hold("writer", 5_000, usd="0.10")
    manager.hold("reader", 50, usd="0.05")
    manager.report_confidence("writer", 0.9)
    return manager


@contextmanager
def shown(place):
    """Yield the address at which `tbc watch --web` shows a store."""
    with subprocess.Popen(
        [sys.executable, "-m", "tbc", "watch", place, "--web", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(tbc.__file__).parents[1])},
    ) as process:
        try:
            said = process.stdout.readline()
            assert re.fullmatch(r"tbc shows pool 'team' at http://127\.0\.0\.1:\d+\n", said), said
            yield said.split()[-1]
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")


def test_the_report_is_the_one_of_whoever_writes(open_again):
    with open_again() as store:
        manager = spend(store)
        viewed = ViewedPool(store, "team")
        assert viewed.statement().accounts == manager.statement().accounts
        assert viewed.statement()[0] == manager.statement()[0]
        assert viewed.statement().open_holds == 2
        assert viewed.statement("reader").accounts == manager.statement("reader").accounts
        assert viewed.mode == manager.mode
        manager.close()


def test_what_expired_and_nobody_has_freed_is_held_as_the_store_says(open_again):
    with open_again() as store:
        manager = tbc.BudgetManager(max_tokens=900, store=store, pool="team", clock=lambda: 1_000.0)
        manager.register_agent("reader", max_tokens=500)
        manager.hold("reader", 40, expires_s=1)
        manager.close()
        (_, reader) = ViewedPool(store, "team").statement().accounts["tokens"]
        assert reader.held == 40


def test_a_pool_that_is_not_there_is_not_viewed(open_again):
    with open_again() as store, pytest.raises(StoreMissingError):
        ViewedPool(store, "nobody's")


def test_nothing_that_writes_is_served(open_again):
    with open_again() as store:
        manager = spend(store)
        manager.close()
        pools = Pools(lambda name: ViewedPool(store, name), store)
        every = Service(Pools(lambda name: tbc.BudgetManager()))
        service = Service(pools, pool="team", here_only=True, role="viewer")
        before = list(store.entries("team"))

        async def within():
            transport = httpx.ASGITransport(app=create_app(service))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                for operation in every.operations:
                    path = operation.path.replace("{agent_name}", "reader").replace("{hold_id}", "9")
                    path = re.sub(r"\{\w+\}", "x", path)
                    if operation.name in VIEWS:
                        assert (operation.method, operation.scope) in {("GET", "read"), ("GET", None)}
                    else:
                        answer = await client.request(operation.method, path, json={})
                        assert answer.status_code in (404, 405), operation.name
                for path in ("/", "/v1/report", "/v1/entries", "/v1/agents", "/v1/agents/reader", "/metrics"):
                    assert (await client.get(path)).status_code == 200, path

        asyncio.run(within())
        assert list(store.entries("team")) == before and len(before) > 10


def test_refusals_that_runs_have_written_down_are_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(["run", CHAPTERS, "--mode", "enforce", "--name", "r", "--quiet"])
    with SqliteStore(".tbc/runs.db", create=False) as store:
        (refusal,) = ViewedPool(store, "runs/r").refusals()
        assert (refusal["axis"], refusal["mode"]) == ("usd", "enforce")
        assert refusal["requested"] > refusal["available"] >= 0
        assert refusal["reason"].startswith("REFUSE")


def test_the_page_shows_a_stored_pool_and_what_others_write_to_it(tmp_path):
    place = str(tmp_path / "books.db")
    manager = spend(f"sqlite:///{place}")
    with browsing(tmp_path / "profile") as browser, shown(place) as url:
        page = Page(browser)
        browser.get(url)
        page.shows(manager)
        rows = {row["Agent"].removesuffix("under reader"): row for row in page.rows("accounts")}
        assert rows["writer" + "gate closed"]["Held"] == "5,000" and rows["scout"]["Allocated"] == "500"
        assert [link[:2] for link in page.links()] == [["(root)", "writer"], ["reader", "writer"]]
        manager.record_usage("reader", 77)
        page.shows(manager)
        assert next(row for row in page.rows("accounts") if row["Agent"] == "reader")["Spent"] == "77"
        assert page.complaints() == []
    manager.close()
