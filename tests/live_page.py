"""The live page in a real browser: a service in a thread of this process, and what the page shows of it."""

from __future__ import annotations

import json
import os
import shutil
import threading
from contextlib import contextmanager

import pytest

import tbc
from tbc.service import Pools, Service
from tbc.service.server import make_server
from tests.waiting import until

PHONE, DESK = (375, 720), (1280, 900)


def find_browser():
    """Return the browser and its driver; without them tests are skipped, or fail where one is expected."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        missing = (
            "NO BROWSER IS TESTED: the live page needs chromium and chromedriver (Debian: chromium-driver)"
        )
        if os.environ.get("TBC_EXPECT_BROWSER") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    return browser, driver


@contextmanager
def browsing(folder):
    """Yield a headless browser with a profile of its own."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service as Driver

    browser, driver = find_browser()
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    quiet = ("--disable-background-networking", "--disable-component-update", "--no-first-run")
    for each in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        f"--user-data-dir={folder}",
        *quiet,
    ):
        options.add_argument(each)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Driver(driver, log_output=os.devnull))
    try:
        opened.set_script_timeout(60)
        yield opened
    finally:
        opened.quit()


class Served:
    """A service that a browser reaches."""

    def __init__(self, manager, port=0, **how):
        self.manager = manager
        self.service = Service(Pools(lambda name: manager), here_only=True, **how)
        self.url = ""
        started = threading.Event()

        def told(url):
            self.url = url
            started.set()

        self._server = make_server(self.service, "127.0.0.1", port, grace_s=1, started=told)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        assert started.wait(20)

    @property
    def port(self):
        return int(self.url.rpartition(":")[2])

    def cut(self):
        """End the streams; who asks for another one gets it."""
        self.service._listeners.pop("default").close()

    def stop(self):
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextmanager
def served(manager=None, **how):
    """Yield a service over books in memory; it is stopped at the end."""
    if manager is None:
        manager = tbc.BudgetManager(max_tokens=20_000)
    service = Served(manager, **how)
    try:
        yield service
    finally:
        service.stop()


class Page:
    """The page, as it is shown."""

    def __init__(self, browser):
        self.browser = browser

    def js(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def until(self, script, *arguments):
        """Wait until a script returns something true, and return it."""
        found = []

        def done():
            found[:] = [self.js(script, *arguments)]
            return bool(found[0])

        until(done)
        return found[0]

    def open(self, served):
        """Open the page and wait until it shows the pool."""
        self.browser.get(served.url)
        return self.shows(served.manager)

    def shows(self, manager):
        """Wait until the page has drawn the last line of the journal."""
        seq = str(manager.statement().seq)
        self.until("return document.body.dataset.seq === arguments[0] && !!document.body.dataset.draws", seq)
        return self

    def rows(self, table):
        """Return the cells that a table shows, as text, by their headings."""
        return self.js(
            """return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)].map((row) =>
            Object.fromEntries([...row.cells].map((cell) => [cell.dataset.label, cell.textContent])))""",
            table,
        )

    def text(self, chosen):
        return self.js("return document.querySelector(arguments[0]).textContent", chosen)

    def type(self, chosen, text):
        """Replace what an input has by a text, as a keyboard does."""
        from selenium.webdriver.common.by import By

        field = self.browser.find_element(By.CSS_SELECTOR, chosen)
        field.clear()
        field.send_keys(text)

    def click(self, chosen):
        from selenium.webdriver.common.by import By

        self.browser.find_element(By.CSS_SELECTOR, chosen).click()

    def choose(self, chosen, value):
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.ui import Select

        Select(self.browser.find_element(By.CSS_SELECTOR, chosen)).select_by_value(value)

    def links(self):
        """Return the ribbons: lender, borrower, amount."""
        return self.js(
            """return [...document.querySelectorAll("#loans .link")].map((link) =>
            [link.dataset.from, link.dataset.to, link.dataset.amount])"""
        )

    def look(self, *, dark=False, size=DESK):
        """Show the page as a reader with that wish and that screen sees it."""
        width, height = size
        self.browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]},
        )
        self.browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        self.until("return innerWidth === arguments[0]", width)

    def complaints(self):
        """Return what the browser's console has said since the last call."""
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def asked(self):
        """Return the addresses that the page has asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        return [
            each["params"]["request"]["url"]
            for each in messages
            if each["method"] == "Network.requestWillBeSent"
        ]
