"""Bearer tokens: who may ask, for which pool, and what.

A token is shown once, when it is made. Its file has a SHA-256 of it: the secret is 256 random bits, so nobody
can find it from there by trying, and a slow hash, which is for passwords that people choose, would only slow
down every request. Servers notice within a second that a token was made or revoked.

Examples
--------
>>> import tempfile, os
>>> file = TokenFile(os.path.join(tempfile.mkdtemp(), "tokens.json"))
>>> token, text = file.create("team", {"read", "spend"}, now=0.0)
>>> Bearers(file, lambda: 1.0).find(text.encode()).pool
'team'
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from typing import Any, Final

import attrs

from tbc.errors import InvalidAmountError, InvalidContractError
from tbc.stores.file_lock import FileLock
from tbc.stores.rows import check_id

__all__ = ["SCOPES", "Bearers", "Token", "TokenFile"]

#: What a token may allow: to look, to spend, to change agents and budgets. None includes another.
SCOPES: Final = ("read", "spend", "admin")
_PREFIX: Final = b"tbc_"
_DIGEST: Final = re.compile("[0-9a-f]{64}")
#: Seconds between two looks at the file.
_LOOK_S: Final = 1.0
_LOCK_S: Final = 10.0
#: The longest life of a token that is to expire: 100 years.
_LONGEST_S: Final = 36_500 * 86_400.0
_LOG: Final = logging.getLogger("tbc.service")


@attrs.frozen(kw_only=True)
class Token:
    """A token as its file has it: everything but the secret.

    Attributes
    ----------
    name : str
        Its public part, for lists and logs.
    pool : str
        The pool that it is for: the tenant.
    scopes : tuple of str
        What it allows.
    digest : str
        SHA-256 of the whole token.
    created_at, expires_at, revoked_at : float or None
        Unix seconds.
    note : str
        Whose it is.
    """

    name: str
    pool: str
    scopes: tuple[str, ...]
    digest: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    note: str = ""

    def state(self, now: float) -> str:
        """Return ``"valid"``, ``"revoked"`` or ``"expired"``."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "valid"


class TokenFile:
    """The file that tokens are kept in; readable and writable by its owner alone.

    Parameters
    ----------
    path : str
        Where it is; it is made with the first token.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def create(
        self,
        pool: str,
        scopes: Iterable[str],
        *,
        now: float,
        seconds: float | None = None,
        note: str = "",
    ) -> tuple[Token, str]:
        """Add a token, and return it with the text that is shown once.

        To rotate one, make its successor, hand that out, and revoke the old one when nobody uses it any more.
        """
        check_id("pool", pool, in_paths=True)
        allowed = tuple(scope for scope in SCOPES if scope in set(scopes))
        if not allowed or len(allowed) != len(set(scopes)):
            raise InvalidAmountError("scopes", sorted(scopes), f"some of {', '.join(SCOPES)}")
        if seconds is not None and not 0 < seconds <= _LONGEST_S:
            raise InvalidAmountError("days", seconds / 86_400, "more than 0 and at most 36,500")
        if note:
            check_id("note", note)
        name, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
        text = f"{_PREFIX.decode()}{name}_{secret}"
        token = Token(
            name=name,
            pool=pool,
            scopes=allowed,
            digest=hashlib.sha256(text.encode()).hexdigest(),
            created_at=now,
            expires_at=None if seconds is None else now + seconds,
            note=note,
        )
        self._change(lambda tokens: [*tokens, token])
        return token, text

    def revoke(self, name: str, *, now: float) -> Token:
        """Let a token be none any more; a second time changes nothing."""
        found: list[Token] = []

        def without(tokens: list[Token]) -> list[Token]:
            every = []
            for token in tokens:
                if token.name == name:
                    token = attrs.evolve(
                        token, revoked_at=now if token.revoked_at is None else token.revoked_at
                    )
                    found.append(token)
                every.append(token)
            if not found:
                raise InvalidAmountError("token", name, "the name of a token that `tbc token list` shows")
            return every

        self._change(without)
        return found[0]

    def tokens(self) -> list[Token]:
        """Return all of them, oldest first; none if there is no file.

        Raises
        ------
        InvalidContractError
            If the file is none of tokens, or others than its owner may change it.
        """
        try:
            with open(self.path, "rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                content = file.read()
        except FileNotFoundError:
            return []
        if stat.S_IMODE(mode) & 0o022:
            raise InvalidContractError(f"{self.path}: others may write to it; chmod 600 {self.path}")
        try:
            return [_token(row) for row in json.loads(content)["tokens"]]
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise InvalidContractError(f"{self.path} is no file of tokens") from None

    def mark(self) -> tuple[int, int, int, int] | None:
        """Return what tells one state of the file from another; ``None`` if there is no file."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size

    def _change(self, change: Callable[[list[Token]], list[Token]]) -> None:
        folder = os.path.dirname(self.path)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with closing(FileLock(self.path)) as lock, lock.hold(_LOCK_S):
            rows: list[dict[str, Any]] = [attrs.asdict(token) for token in change(self.tokens())]
            place, name = tempfile.mkstemp(dir=folder, prefix=".tokens")  # readable by its owner alone
            try:
                with open(place, "w", encoding="utf-8") as file:
                    json.dump({"tokens": rows}, file, indent=1)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(name, self.path)
            except BaseException:
                os.unlink(name)
                raise


def _token(row: Mapping[str, Any]) -> Token:
    """Return a token of the file; raise if anything in it is not as `create` writes it."""
    token = Token(**{**row, "scopes": tuple(row["scopes"])})
    check_id("name", token.name)
    check_id("pool", token.pool, in_paths=True)
    if type(row["scopes"]) is not list or not set(SCOPES).issuperset(token.scopes):
        raise TypeError("scopes")
    if not _DIGEST.fullmatch(token.digest):
        raise ValueError("digest")
    if type(token.note) is not str:
        raise TypeError("note")
    for at in (token.created_at, token.expires_at, token.revoked_at):
        if at is not None and (type(at) not in (int, float) or not math.isfinite(at)):
            raise ValueError("at")
    return token


class Bearers:
    """Finds the token that a request bears.

    Parameters
    ----------
    file : TokenFile
        Where tokens are.
    now : callable
        Unix seconds.

    Attributes
    ----------
    unreadable : bool
        Whether the file could not be read at the last look.
    """

    def __init__(self, file: TokenFile, now: Callable[[], float]) -> None:
        self._file = file
        self._now = now
        self._mark = file.mark()
        self._tokens = {token.name.encode(): token for token in file.tokens()}
        self._looked = now()
        self.unreadable = False

    def find(self, text: bytes) -> Token | None:
        """Return the valid token with this text, or ``None``, and no word on why.

        While the file cannot be read no token is valid, and `unreadable` says so.
        """
        now = self._now()
        if now >= self._looked + _LOOK_S:
            self._look(now)
        name = text[len(_PREFIX) :].partition(b"_")[0]
        token = self._tokens.get(name)
        digest = "" if token is None else token.digest
        same = hmac.compare_digest(hashlib.sha256(text).hexdigest(), digest)
        return token if token is not None and same and token.state(now) == "valid" else None

    def _look(self, now: float) -> None:
        self._looked = now
        try:
            mark = self._file.mark()
            if self.unreadable or mark != self._mark:
                self._tokens = {token.name.encode(): token for token in self._file.tokens()}
                self._mark = mark
                self.unreadable = False
        except Exception as error:  # whatever it is, what was valid before is not known to be any more
            if not self.unreadable:
                _LOG.error("no token is accepted until its file is right again: %s", error)
            self._tokens = {}
            self.unreadable = True
