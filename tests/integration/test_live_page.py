"""The live page in a real, headless Chromium: what it shows is what the books say."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx
import pytest

import tbc
from tbc.service.bearers import Bearers, TokenFile
from tests.live_page import DESK, PHONE, Page, browsing, find_browser, served
from tests.waiting import until


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(browser):
    """Yield the page; afterwards nothing may have gone wrong in it, and nobody else may have been asked."""
    shown = Page(browser)
    shown.expected = ()
    gone = (
        "ERR_CONNECTION_",
        "ERR_INCOMPLETE_CHUNKED_ENCODING",
        "ERR_EMPTY_RESPONSE",
    )  # the server has ended
    shown.look()
    yield shown
    said = [each for each in shown.complaints() if not any(word in each for word in (*shown.expected, *gone))]
    hosts = {urlsplit(url).hostname for url in shown.asked() if url.startswith(("http", "ws"))}
    browser.get("about:blank")
    assert said == []
    assert hosts == {"127.0.0.1"}


TRY = """
const caught = [];
const tried = (what) => { try { what(); } catch (error) { caught.push(error.name); } };
tried(() => { const it = new Image(); it.src = "http://192.0.2.1/"; document.body.append(it); });
const script = document.createElement("script");
tried(() => { script.append("window.taken = 1"); document.body.append(script); });
tried(() => { document.body.innerHTML = "<b>"; });
return caught;
"""


def test_the_policy_lets_nothing_in_and_the_console_tells(page):
    page.expected = ("Content Security Policy", "TrustedHTML", "TrustedScript")
    with served(team()) as service:
        page.open(service)
        assert page.js(TRY) == ["TypeError"]
        assert page.js("return window.taken") is None
        said = page.complaints()
        assert any("http://192.0.2.1/" in each and "Content Security Policy" in each for each in said)
        asked = (
            page.asked()
        )  # also what was refused before it was sent: this is how the other tests would see it
        assert "http://192.0.2.1/" in asked
        page.open(service)


def test_a_browser_that_is_expected_is_missed_loudly(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("TBC_EXPECT_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="NO BROWSER IS TESTED"):
        find_browser()
    monkeypatch.setenv("TBC_EXPECT_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="NO BROWSER IS TESTED"):
        find_browser()


def team(**terms):
    manager = tbc.BudgetManager(max_tokens=20_000, **terms)
    manager.register_agent("reader", priority=1, max_tokens=6_000, min_reserve=0)
    manager.register_agent("writer", priority=9, max_tokens=4_000, min_reserve=1_000)
    return manager


def account_of(manager, name):
    return next(each for each in manager.accounts() if each.agent_name == name)


def test_bars_are_the_report(page):
    manager = team()
    manager.hold("reader", 2_000).settle(tokens=1_500)
    manager.hold("reader", 1_200)
    with served(manager) as service:
        page.open(service)
        rows = {row["Agent"]: row for row in page.rows("accounts")}
        assert list(rows) == ["(root)", "reader", "writer"]
        account = account_of(manager, "reader")
        assert rows["reader"]["Spent"] == f"{account.consumed:,}" == "1,500"
        assert rows["reader"]["Held"] == f"{account.held:,}" == "1,200"
        assert rows["reader"]["Free"] == f"{account.spare:,}" == "3,300"
        assert rows["reader"]["Allocated"] == f"{account.allocated:,}" == "6,000"
        assert rows["writer"]["Reserve"] == "1,000" and rows["writer"]["Free"] == "3,000"
        widths = page.js(
            """const parts = [...document.querySelectorAll("#accounts .bar")[1].children];
            return Object.fromEntries(parts.map((each) => [each.classList[0], each.width.baseVal.value]));"""
        )
        assert widths == pytest.approx({"spent": 250, "held": 200, "reserve": 0, "free": 550, "cap": 0})


def test_a_debt_is_shown_beyond_the_cap(page):
    manager = tbc.BudgetManager(max_tokens=100)
    manager.register_agent("reader", max_tokens=100)
    with pytest.raises(tbc.OverrunError):
        manager.record_usage("reader", 250)
    with served(manager) as service:
        page.open(service)
        (row,) = [row for row in page.rows("accounts") if row["Agent"] == "reader"]
        assert (row["Spent"], row["Owed"], row["Allocated"]) == ("250", "150", "100")
        label = page.js("return document.querySelectorAll('#accounts .bar')[1].getAttribute('aria-label')")
        assert label == "250 spent, 150 owed of 100 tokens"


def test_a_ribbon_is_the_loan_and_shrinks_with_what_is_given_back(page):
    manager = tbc.BudgetManager(max_tokens=10_000)
    manager.register_agent("reader", priority=1, max_tokens=6_000)
    manager.register_agent("writer", priority=9, max_tokens=4_000)
    with served(manager) as service:
        page.open(service)
        assert page.text("#loans") == "Nothing is lent."
        hold = manager.hold("writer", 5_500)
        page.shows(manager)
        assert page.links() == [["reader", "writer", "1500"]]
        assert account_of(manager, "reader").lent == 1_500
        hold.settle(tokens=4_200)
        page.shows(manager)
        assert page.links() == [["reader", "writer", "200"]]
        page.click("details:has(#loans-table) summary")
        page.until("return !!document.querySelector('#loans-table td')")
        (row,) = page.rows("loans-table")
        assert row["Lent"] == "1,500" and row["Given back"] == "1,300" and row["Not given back"] == "200"


def test_a_refusal_is_shown_with_its_reason_and_what_was_lacking(page):
    manager = team()
    with served(manager) as service:
        page.open(service)
        page.until("return document.querySelector('#state').textContent === 'Live'")
        with pytest.raises(tbc.BudgetExceededError) as refused:
            manager.hold("writer", 50_000)
        decision = refused.value.decision
        page.until("return !!document.querySelector('#log td[data-kind=refused]')")
        page.choose("#log-kind", "refused")
        (row,) = page.rows("log")
        assert (row["What"], row["Agent"], row["Amount"]) == ("REFUSED", "writer", "50,000 tokens")
        assert row["Why"] == decision.reason
        (level,) = page.rows("unmet")
        lacking = decision.requested - decision.available
        assert (level["Priority"], level["Refusals"], level["Unmet"]) == ("9", "1", f"{lacking:,}")


@pytest.mark.parametrize(("mode", "word"), [("enforce", "REFUSED"), ("audit", "would be refused")])
def test_who_comes_later_sees_the_last_refusals_too(page, mode, word):
    manager = team(mode=mode)
    with served(manager) as service:
        lacking = manager.decide("writer", 50_000).unmet
        answer = httpx.post(f"{service.url}/v1/holds", json={"agent_name": "writer", "tokens": 50_000})
        assert answer.status_code == {"enforce": 402, "audit": 200}[mode]
        manager.record_usage("reader", 5)
        page.open(service)
        rows = page.rows("log")
        assert [row["What"] for row in rows[:2]] == ["spent", word]
        assert rows[1]["Amount"] == "50,000 tokens" and "'writer' asks for 50,000 tokens" in rows[1]["Why"]
        (level,) = page.rows("unmet")
        assert (level["Priority"], level["Refusals"]) == ("9", "1")
        assert level["Unmet"] == f"{lacking:,}" == "30,000"


def test_a_line_comes_without_loading_the_page_again(page):
    manager = team()
    with served(manager) as service:
        page.open(service).js("window.mark = 1")
        manager.register_agent("late", max_tokens=500, min_reserve=0)
        manager.hold("late", 300, operation="first draft").settle(tokens=120)
        page.shows(manager)
        page.until("return document.querySelectorAll('#accounts tbody tr').length === 4")
        (row,) = [row for row in page.rows("accounts") if row["Agent"] == "late"]
        assert (row["Spent"], row["Held"], row["Free"]) == ("120", "0", "380")
        assert "first draft" in page.rows("log")[0]["Why"]
        assert page.js("return window.mark") == 1


def test_the_filter_leaves_what_it_names(page):
    manager = team()
    manager.register_agent("reader-2", max_tokens=1_000)
    for name in ("reader", "reader-2", "writer"):
        manager.hold(name, 100).settle(tokens=50)
    with served(manager) as service:
        page.open(service)
        page.type("#filter", "READER")
        assert [row["Agent"] for row in page.rows("accounts")] == ["reader", "reader-2"]
        assert {row["Agent"] for row in page.rows("log")} == {"reader", "reader-2"}
        page.type("#filter", '"reader"')
        assert [row["Agent"] for row in page.rows("accounts")] == ["reader"]
        assert {row["Agent"] for row in page.rows("log")} == {"reader"}
        label = page.js("return document.querySelector('#time svg').getAttribute('aria-label')")
        assert label.startswith("Spent 50 tokens of a cap of 6,000 tokens")
        page.type("#filter", "nobody")
        assert page.rows("accounts") == [] and "No agent has this name." in page.text("#accounts")
        page.type("#filter", "writ")
        page.click("#accounts tbody button.name")
        assert page.js("return document.querySelector('#filter').value") == '"writer"'
        assert [row["Agent"] for row in page.rows("accounts")] == ["writer"]


def test_the_axis_is_chosen_and_dollars_are_exact(page):
    manager = tbc.BudgetManager(max_tokens=20_000, max_usd="5")
    manager.register_agent("reader", max_tokens=6_000, max_usd="1.50")
    manager.hold("reader", 100, usd="0.25").settle(tokens=10, usd="0.123456789")
    with served(manager) as service:
        page.open(service)
        assert page.js("return document.querySelector('input[value=calls]').disabled")
        page.js("document.querySelector('input[value=usd]').click()")
        (row,) = [row for row in page.rows("accounts") if row["Agent"] == "reader"]
        assert (row["Spent"], row["Allocated"], row["Free"]) == ("$0.123456789", "$1.50", "$1.376543211")
        assert page.rows("log")[0]["Amount"] == "$0.123456789"


def test_no_digit_is_lost_above_what_a_double_holds(page):
    most = 2**53 - 1
    manager = tbc.BudgetManager()
    for name in ("a", "b", "c"):
        manager.register_agent(name, max_tokens=most)
        manager.record_usage(name, most - 1)
    with served(manager) as service:
        page.open(service)
        spent = page.js("return document.querySelector('#sums dd').title")
        assert spent == f"{3 * (most - 1):,} tokens" == "27,021,597,764,222,970 tokens"
        found = page.browser.execute_async_script(
            """const done = arguments[1];
            import("/static/amounts.js").then(({ parse, exact }) => {
              const read = parse(arguments[0]);
              done([exact("tokens", read.amount), exact("usd", read.held), read.note, read.at]);
            })""".replace("arguments[0]", "text").replace(
                "const done", "const text = arguments[0]; const done"
            ),
            '{"amount": 9223372036854775807, "held": -9007199254740993, "at": 1795900803.123456789,'
            ' "note": "no \\" 12345678901234567890 number"}',
        )
        assert found[:2] == ["9,223,372,036,854,775,807", "-$9,007,199.254740993"]
        assert found[2] == 'no " 12345678901234567890 number' and found[3] == pytest.approx(1795900803.123)


SHORT = """
const [pairs, done] = arguments;
import("/static/amounts.js").then(({ short }) => {
  done(pairs.map(([axis, amount]) => short(axis, BigInt(amount))));
});
"""


def test_a_short_amount_says_that_it_is_rounded(page):
    cases = [
        ("tokens", 1_234_567, "1,234,567"),
        ("tokens", 1_234_567_890, "~1.23B"),
        ("tokens", 2_000_000_000, "2B"),
        ("tokens", -1_234_567_890, "~-1.23B"),
        ("usd", 1, "<$0.0001"),
        ("usd", -123_456_789, "~-$0.1235"),
        ("usd", 1_234_567_890_123, "~$1,234.57"),
        ("usd", 1_500_000_000_000_000, "$1.5M"),
    ]
    with served(team()) as service:
        page.open(service)
        found = page.browser.execute_async_script(SHORT, [[axis, str(amount)] for axis, amount, _ in cases])
        assert found == [shown for _, _, shown in cases]


def test_hostile_names_and_notes_are_text(page):
    name = "<img src=x onerror=\"document.title='taken'\">"
    manager = tbc.BudgetManager(max_tokens=20_000)
    manager.register_agent(name, priority=5, max_tokens=1_000)
    manager.register_agent("</script><script>document.title='taken'</script>", max_tokens=1_000)
    with served(manager) as service:
        page.open(service)
        title = page.browser.title
        manager.hold(name, 1_500, operation="<b onmouseover=alert(1)>note</b>")
        page.shows(manager)
        assert page.rows("accounts")[1]["Agent"] == f"{name[:39]}…"
        assert page.js("return document.querySelector('button.name[data-agent^=\"<img\"]').title") == name
        assert page.links() == [["(root)", name, "500"]]
        assert page.js("return document.querySelectorAll('main img, main script, main b').length") == 0
        assert any("<b onmouseover=alert(1)>note</b>" in row["Why"] for row in page.rows("log"))
        assert page.browser.title == title


def test_light_and_dark_and_no_width_runs_over(page):
    manager = team()
    manager.register_agent("an-agent-with-a-very-long-name-" + "x" * 90, max_tokens=2_000)
    manager.hold("writer", 6_000)
    with served(manager) as service:
        page.open(service)
        page.until("return document.querySelector('#state').textContent === 'Live'")
        with pytest.raises(tbc.BudgetExceededError):
            manager.hold("reader", 50_000)
        page.until("return !!document.querySelector('#log td[data-kind=refused]')")
        colours = {}
        for dark in (False, True):
            for size in (PHONE, DESK):
                page.look(dark=dark, size=size)
                page.until(
                    "return Math.abs(document.querySelector('#time svg').clientWidth - "
                    "document.querySelector('#time').clientWidth) < 2"
                )
                assert page.js("return document.documentElement.scrollWidth") <= size[0]
            colours[dark] = page.js(
                "const of = getComputedStyle(document.body); return [of.backgroundColor, of.color]"
            )
        assert colours[False] != colours[True]


def test_a_keyboard_reaches_everything_in_order(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(key):
        ActionChains(page.browser).send_keys(key).perform()

    def where():
        return page.js(
            """const at = document.activeElement;
            return at.id || at.name || at.dataset.agent || at.className || at.localName"""
        )

    manager = tbc.BudgetManager(max_tokens=20_000, max_usd="5")
    manager.register_agent("reader", max_tokens=6_000, max_usd="1.50")
    with served(manager) as service:
        page.open(service)
        path = []
        for _ in range(10):
            press(Keys.TAB)
            path.append(where())
            shown = page.js("return getComputedStyle(document.activeElement, null).outlineStyle")
            assert shown == "solid" or path[-1] == "axis"
        assert path == [
            "skip", "axis", "filter", "pause", "order", "(root)", "reader", "summary", "summary", "log-kind",
        ]  # fmt: skip
        page.js("document.querySelector('.skip').focus()")
        assert page.js("return document.querySelector('.skip').getBoundingClientRect().top") >= 0
        press(Keys.ENTER)
        assert where() == "main"
        page.js("document.querySelector('input[name=axis]').focus()")
        press(Keys.ARROW_RIGHT)
        (row,) = [row for row in page.rows("accounts") if row["Agent"] == "reader"]
        assert row["Allocated"] == "$1.50"
        outline = "return getComputedStyle(document.activeElement.nextElementSibling).outlineStyle"
        assert page.js(outline) == "solid"


def test_a_screen_reader_finds_its_way(page):
    manager = team()
    manager.hold("writer", 6_000)
    with served(manager) as service:
        page.open(service)
        tree = page.browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        named = [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in tree
            if not node["ignored"]
        ]
        roles = {role for role, _ in named}
        assert {
            "banner",
            "main",
            "contentinfo",
            "table",
            "columnheader",
            "cell",
            "status",
            "heading",
        } <= roles
        tables = {name for role, name in named if role == "table"}
        assert {"Accounts", "Decisions, newest first"} <= tables
        images = [name for role, name in named if role in ("image", "img")]
        assert images and all(images)
        assert any(name.startswith("1 pair;") or "(root) lent writer" in name for name in images)
        controls = [
            (role, name) for role, name in named if role in ("button", "radio", "combobox", "searchbox")
        ]
        assert len(controls) > 6 and all(name for _, name in controls)
        assert page.until("return document.querySelector('#summary').textContent").startswith(
            "0 tokens spent"
        )
        assert page.js("return document.querySelector('#summary').getAttribute('aria-live')") == "polite"


def test_a_pause_stops_the_drawing_and_nothing_is_lost(page):
    manager = team()
    with served(manager) as service:
        page.open(service)
        before = page.js("return document.body.dataset.seq")
        page.click("#pause")
        assert page.js("return document.querySelector('#pause').getAttribute('aria-pressed')") == "true"
        manager.record_usage("reader", 700)
        page.until("return performance.getEntriesByType('resource').length > 0")
        assert page.js("return document.body.dataset.seq") == before
        page.click("#pause")
        page.shows(manager)
        assert page.rows("accounts")[1]["Spent"] == "700"


AHEAD = """
const done = arguments[0];
import("/static/pool.js").then(({ Pool }) => {
  const account = (consumed) => ({ allocated: 100n, consumed, held: 0n, min_reserve: 0n });
  const report = (seq, consumed) => ({
    pool: "p", mode: "enforce", seq, at: seq, open_holds: 0, axes: ["tokens"],
    agents: [{ agent_name: "a", parent: "(root)", priority: 1, accounts: { tokens: account(consumed) } }],
  });
  const line = (seq) => ({
    seq, at: seq, kind: "usage", agent_name: "a", peer: null, axis: "tokens",
    allocated: 0n, consumed: 1n, held: 0n,
  });
  const pool = new Pool();
  const every = { active: false, matches: () => true };
  pool.take(report(3, 3n));
  pool.remember([line(2), line(3)], report(3, 3n));
  pool.add(line(4));
  pool.take(report(6, 6n));
  for (const seq of [5, 6, 7]) pool.add(line(seq));
  pool.take(report(6, 6n));
  done([
    String(pool.agents.get("a").accounts.tokens.consumed), String(pool.totals.tokens.spent),
    pool.log("tokens", every, "all").map((each) => each.seq), pool.seq,
    pool.curve("tokens", every).map(([at, spent]) => `${at}:${spent}`),
  ]);
});
"""


def test_a_report_that_is_ahead_of_the_stream_hides_no_line_and_counts_none_twice(page):
    with served(team()) as service:
        page.open(service)
        spent, total, log, seq, curve = page.browser.execute_async_script(AHEAD)
        assert (spent, total, seq) == ("7", "7", 7)
        assert log == [7, 6, 5, 4, 3, 2]
        assert curve == ["2:2", "3:3", "3:3", "4:4", "5:5", "6:6", "7:7"]


def test_a_connection_that_is_silent_is_given_up(page):
    manager = team()
    with served(manager) as service:
        page.open(service)
        page.until("return document.querySelector('#state').dataset.state === 'live'")
        page.js(
            """const after = window.setTimeout;
            window.setTimeout = (what, ms) => after(what, ms === 45000 ? 50 : ms);
            new MutationObserver(() => { window.said = document.querySelector("#stale").textContent; })
              .observe(document.querySelector("#stale"), {childList: true});"""
        )
        manager.record_usage("reader", 5)
        said = page.until("return window.said")
        assert said.startswith(
            "Connection lost. Nothing was heard for 45 seconds. What is shown is as of line"
        )
        manager.record_usage("reader", 6)
        page.shows(manager)
        assert page.rows("accounts")[1]["Spent"] == "11"


def test_a_lost_connection_is_said_and_the_page_goes_on_where_it_was(page):
    manager = team()
    with served(manager) as service:
        page.open(service).js("window.mark = 1")
        page.until("return document.querySelector('#state').dataset.state === 'live'")
        port, line = service.port, manager.statement().seq
    notice = page.until(
        "const at = document.querySelector('#stale'); return at.hidden ? null : at.textContent"
    )
    assert f"What is shown is as of line {line}," in notice and "Trying again." in notice
    assert page.text("#state") == "Connection lost"
    manager.record_usage("reader", 321)
    with served(manager, port=port):
        page.shows(manager).until("return document.querySelector('#stale').hidden")
        assert page.text("#state") == "Live"
        assert page.rows("accounts")[1]["Spent"] == "321"
    other = team()
    for _ in range(9):
        other.record_usage("writer", 10)
    with served(other, port=port):
        page.until("return document.querySelector('#sums dd').textContent === '90'")
        assert page.rows("accounts")[1]["Spent"] == "0"
        assert page.js("return window.mark") == 1


AWAY = """
const plain = window.fetch;
window.away = "";  // whatever begins with it does not reach the server
window.back = new Promise((done) => { window.comeBack = () => { window.away = null; done(); }; });
window.fetch = async (path, ...rest) => {
  if (window.away === null || !path.startsWith(window.away)) return plain(path, ...rest);
  if (window.away === "") throw new TypeError("away");
  window.held = path;
  await window.back;
  return plain(path, ...rest);
};
"""


@pytest.mark.parametrize("moment", ["away", "nearly back"])
def test_what_was_told_while_the_connection_was_lost_is_shown_after_it(page, moment):
    def refuse(tokens):
        answer = httpx.post(f"{service.url}/v1/holds", json={"agent_name": "writer", "tokens": tokens})
        assert answer.status_code == 402

    manager = team()
    manager.register_agent("sure", max_tokens=100, confidence_threshold=0.9)
    with served(manager) as service:
        refuse(50_000)
        page.open(service)
        page.until("return document.querySelector('#state').dataset.state === 'live'")
        refuse(60_000)
        page.until("return document.querySelectorAll('#log td[data-kind=refused]').length === 2")
        page.js(AWAY)
        service.cut()
        page.until("return document.querySelector('#state').dataset.state === 'lost'")
        if moment == "nearly back":  # it has loaded, and there is no stream yet
            page.js("window.away = '/v1/events'; dispatchEvent(new Event('online'))")
            page.until("return window.held")
        manager.record_usage("reader", 1)
        refuse(70_000)
        refuse(70_000)
        manager.record_usage("sure", 1, confidence=0.95)
        page.js("window.comeBack(); dispatchEvent(new Event('online'))")
        page.until("return document.querySelectorAll('#log td[data-kind=refused]').length === 4")
        page.shows(manager).until(
            "return document.querySelector('#accounts').textContent.includes('gate closed')"
        )
        last = [(row["What"], row["Amount"]) for row in page.rows("log")]
        assert last[:4] == [
            ("spent", "1 token"),
            ("REFUSED", "70,000 tokens"),
            ("REFUSED", "70,000 tokens"),
            ("spent", "1 token"),
        ]
        (level,) = page.rows("unmet")
        assert (level["Priority"], level["Refusals"]) == ("9", "4")
        refuse(80_000)  # told by the stream, once
        page.until("return document.querySelectorAll('#log td[data-kind=refused]').length === 5")
        service.cut()
        until(lambda: "default" in service.service._listeners)  # it has come again
        refuse(90_000)
        page.until("return document.querySelectorAll('#log td[data-kind=refused]').length >= 6")
        assert [row["Amount"] for row in page.rows("log") if row["What"] == "REFUSED"] == [
            f"{tokens:,} tokens" for tokens in (90_000, 80_000, 70_000, 70_000, 60_000, 50_000)
        ]


def test_a_gate_that_moves_while_the_report_is_read_is_as_it_was_told_last(page):
    with served(team()) as service:
        page.open(service)
        found = page.browser.execute_async_script(
            """const [done] = arguments;
            import("/static/pool.js").then(({ Pool }) => {
              const report = {
                pool: "p", mode: "enforce", seq: 1, at: 1, open_holds: 0, axes: ["tokens"],
                agents: [{agent_name: "a", parent: "(root)", priority: 1, gate_closed: false, accounts: {}}],
              };
              const pool = new Pool();
              pool.take(report);
              const { nth } = pool;
              pool.notice("gate", { agent_name: "a", closed: true, confidence: 1 });
              const told = pool.agents.get("a").gate_closed;
              pool.take(report, nth);
              const asked = pool.agents.get("a").gate_closed;
              pool.take(report);
              done([told, asked, pool.agents.get("a").gate_closed]);
            });"""
        )
        assert found == [True, True, False]


def test_a_token_is_asked_for_and_is_in_no_address(page, tmp_path):
    page.expected = ("401 (Unauthorized)",)
    file = TokenFile(str(tmp_path / "tokens.json"))
    _, secret = file.create("default", ["read"], now=0.0)
    with served(team(), bearers=Bearers(file, lambda: 1.0)) as service:
        page.browser.get(service.url)
        page.until("return !document.querySelector('#door').hidden")
        assert page.js("return document.querySelector('main').hidden")
        assert page.js("return document.activeElement.id") == "token"
        page.type("#token", "tbc_wrong")
        page.click("#door-form button")
        page.until("return document.querySelector('#door-why').textContent")
        page.type("#token", secret)
        page.click("#door-form button")
        page.shows(service.manager)
        assert page.js("return document.querySelector('#door').hidden")
        page.browser.refresh()
        page.shows(service.manager)
        assert page.js("return localStorage.length") == 0
        assert not [url for url in page.asked() if secret in url]
        page.click("#forget")
        assert page.js("return sessionStorage.length") == 0 and page.js(
            "return document.querySelector('main').hidden"
        )
        page.browser.refresh()
        page.until("return !document.querySelector('#door').hidden")


AGENTS, LINES = 1_000, 150

SPEND = """
const [agents, lines, done] = arguments;
const draws = () => Number(document.body.dataset.draws);
const [before, began] = [draws(), performance.now()];
let sent = 0, answered = 0, longest = 0, most = 0;
const timer = setInterval(() => {
  const name = `agent-${sent % agents}`;
  fetch(`/v1/agents/${name}/usage`, {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({tokens: 7}),
  }).then((answer) => {
    most = Math.max(most, document.querySelectorAll("*").length);
    answered += answer.ok;
    if (answered === lines) done({draws: draws() - before, ms: performance.now() - began, elements: most});
  });
  sent += 1;
  if (sent === lines) clearInterval(timer);
}, 20);
"""


def test_a_thousand_agents_and_fifty_lines_a_second_are_drawn_now_and_then(page):
    manager = tbc.BudgetManager(max_tokens=AGENTS * 1_000)
    for number in range(AGENTS):
        manager.register_agent(f"agent-{number}", priority=1 + number % 9, max_tokens=1_000)
    with served(manager) as service:
        page.open(service)
        assert len(page.rows("accounts")) == 25
        assert "1 to 25 of 1,001" in page.text("#accounts")
        done = page.browser.execute_async_script(SPEND, AGENTS, LINES)
        page.shows(manager)
        assert 1 <= done["draws"] <= done["ms"] / 250 + 2
        assert done["elements"] < 1_500
        assert page.js("return document.querySelector('#sums dd').title") == f"{7 * LINES:,} tokens"
        page.choose("#order", "spent")
        assert {row["Spent"] for row in page.rows("accounts")} == {"7"}
        page.click("#accounts .pager button:last-child")
        assert "26 to 50 of 1,001" in page.text("#accounts") and len(page.rows("accounts")) == 25
