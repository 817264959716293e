"""compose.yaml and the Dockerfile are what they say: their commands, as processes, serve a run.

There is no container engine here. The files are parsed, and what they would start is started: the same
commands, with the port, the host names and the volume of a container mapped to those of this machine.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

import tbc

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(tbc.__file__).resolve().parent
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def instructions(text):
    """Return the instructions of a Dockerfile as (name, argument) pairs."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def last(name):
    """Return the argument of the last instruction of that name."""
    return [argument for found, argument in instructions(DOCKERFILE) if found == name][-1]


ENTRYPOINT = json.loads(last("ENTRYPOINT"))
HEALTH = json.loads(last("HEALTHCHECK").partition("CMD ")[2])


class Machine:
    """What stands for the engine: a folder for the volume, a free port for each service."""

    def __init__(self, folder):
        self.folder = folder
        self.addresses = {}
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("TBC_")
        } | {"PYTHONPATH": str(PACKAGE.parent)}

    def mapped(self, text):
        """Return an argument or a value with what is in a container mapped to what is here."""
        text = text.replace("/data/", f"{self.folder}/").replace("0.0.0.0", "127.0.0.1")
        for name, address in self.addresses.items():
            text = text.replace(f"http://{name}:8787", address)
        return re.sub(r"\$\{(\w+):-\}", lambda found: self.environment.get(found[1], ""), text)

    def command(self, arguments):
        assert ENTRYPOINT == ["tbc"]
        words = [sys.executable, "-m", "tbc", *map(self.mapped, arguments)]
        if "--port" in words:
            words[words.index("--port") + 1] = "0"
        return words

    def run(self, arguments):
        """Do what ``docker compose run`` does."""
        done = subprocess.run(
            self.command(arguments),
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    @contextmanager
    def up(self, name):
        """Yield a service that is up; it is stopped as an engine stops it."""
        service = COMPOSE["services"][name]
        environment = {key: self.mapped(value) for key, value in service.get("environment", {}).items()}
        with subprocess.Popen(
            self.command(service["command"]),
            env=self.environment | environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                line = process.stdout.readline()
                assert line, process.stderr.read()
                self.addresses[name] = line.split()[-1]
                assert self.healthy(name)
                yield self.addresses[name]
            finally:
                process.send_signal(signal.SIGTERM)
                _, said = process.communicate(timeout=30)
        unexpected = [line for line in said.splitlines() if "policy_away: " not in line]
        assert (process.returncode, unexpected) == (0, ["tbc has stopped"])

    def healthy(self, name):
        """Return whether the health check of the image says so."""
        port = self.addresses[name].rpartition(":")[2]
        assert HEALTH[0] == "python"
        command = [sys.executable, *(word.replace("8787", port) for word in HEALTH[1:])]
        return subprocess.run(command, capture_output=True, timeout=30).returncode == 0


def documented(verb):
    """Return the arguments of the commands that the comment of the compose file shows."""
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    lines = re.findall(r"^#\s+docker compose run --rm --no-deps executor (.*)$", text, flags=re.MULTILINE)
    return [shlex.split(line) for line in lines if line.startswith(verb)]


def text_of(printed):
    return re.search(r"tbc_[0-9a-f]{8}_[\w-]+", printed)[0]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_the_commands_of_the_compose_file_serve_a_run(machine):
    policy_token, agents_token = (text_of(machine.run(each)) for each in documented("token create"))
    machine.environment["TBC_POLICY_TOKEN"] = policy_token
    headers = {"Authorization": f"Bearer {agents_token}"}
    run = {"goal": "x", "budget": "0.08", "latency_sla_ms": 200}
    with ExitStack() as stack:
        policy = stack.enter_context(machine.up("policy"))
        with machine.up("executor") as where:
            assert httpx.post(f"{where}/agent/run", json=run).status_code == 401
            done = httpx.post(f"{where}/agent/run", json=run, headers=headers, timeout=30).json()
            assert done["status"] == "completed" and len(done["steps"]) == 3
            counted = httpx.get(f"{policy}/metrics", headers=headers).text
            assert 'tbc_policy_choices_total{step="plan",tier="standard"} 1.0' in counted
            assert httpx.post(f"{policy}/agent/run", json=run, headers=headers).status_code == 404
        with machine.up("executor") as where:  # another container on the same volume
            agents = httpx.get(f"{where}/v1/agents/runs", headers=headers, timeout=30).json()
            assert agents["accounts"]["usd"]["consumed"] == done["total_cost"]
            stack.close()  # the policy stops
            away = httpx.post(f"{where}/agent/run", json=run, headers=headers, timeout=30)
            assert (away.status_code, away.json()["error"]["code"]) == (503, "policy_away")
            assert httpx.get(f"{where}/health").status_code == 200


def test_the_health_check_sees_that_nobody_is_there(machine):
    machine.addresses["policy"] = "http://127.0.0.1:1"
    assert not machine.healthy("policy")


def test_the_image_alone_serves_with_its_own_command(machine):
    machine.run(["token", "create", "--tokens", "/data/tokens.json", "--pool", "p", "--scopes", "read"])
    COMPOSE["services"]["image"] = {"command": json.loads(last("CMD"))}
    try:
        with machine.up("image") as where:
            assert httpx.get(f"{where}/v1/report").status_code == 401
    finally:
        del COMPOSE["services"]["image"]


def test_the_image_is_slim_runs_as_nobody_special_and_has_the_extras_that_exist():
    stages = [argument for name, argument in instructions(DOCKERFILE) if name == "FROM"]
    assert all(re.fullmatch(r"python:3\.1\d-slim( AS build)?", stage) for stage in stages)
    names = [name for name, _ in instructions(DOCKERFILE)]
    assert last("USER") == "tbc" and names.index("USER") > max(
        place for place, name in enumerate(names) if name == "RUN"
    )
    assert "useradd --uid 10001" in last("RUN")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in re.findall(r"\[([a-z,]+)\]\"", DOCKERFILE):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
    for name, argument in instructions(DOCKERFILE):
        if name == "COPY" and not argument.startswith("--from"):
            for source in argument.split()[:-1]:
                assert any((place / source).exists() for place in (ROOT, PACKAGE.parent)), source
    assert "--behind-proxy" in json.loads(last("CMD"))
    assert last("EXPOSE") == "8787" and last("VOLUME") == "/data"


def test_only_the_executor_is_reached_from_outside_and_only_from_this_machine():
    services = COMPOSE["services"]
    assert set(services) == {"policy", "executor"}
    assert "ports" not in services["policy"]
    assert services["executor"]["ports"] == ["127.0.0.1:8787:8787"]
    assert services["executor"]["depends_on"] == {"policy": {"condition": "service_healthy"}}
    assert services["policy"]["volumes"] == ["data:/data:ro"]  # it keeps no books
    assert services["executor"]["volumes"] == ["data:/data"]
    assert "data" in COMPOSE["volumes"]
    for service in services.values():
        command = service["command"]
        assert command[command.index("--tokens") + 1] == "/data/tokens.json"
        assert command[command.index("--host") + 1] == "0.0.0.0" and "--behind-proxy" in command
        assert all(isinstance(word, str) for word in command)
