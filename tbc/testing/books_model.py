"""`BooksModel`: what a pool should do, said a second time, in plain dicts.

The model is written from the definitions and promises, not from the library's code, so that the two can be
compared after every step (`tbc.testing.BudgetMachine`). It is slow and simple on purpose: every number is
found by looking at everything.

Examples
--------
>>> model = BooksModel(max_tokens=100)
>>> model.register("reader", 1, 60, 0, None)
>>> model.register("writer", 9, 40, 0, None)
>>> hold = model.hold("writer", 70)
>>> model.holds[hold]["loans"]
[{'lender': 'reader', 'tokens': 30, 'kind': 'loan'}]
>>> model.settle(hold, 50)["returned"]
[Move(donor='writer', recipient='reader', tokens=20, kind='return')]
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from tbc.testing.market_model import Move
from tbc.testing.rebalance_model import rebalance
from tbc.testing.tree_model import Account, HoldRecord, Misuse, TreeModel

__all__ = ["BooksModel"]


class BooksModel(TreeModel):
    """The books of one pool: accounts, holds, keys, time.

    Parameters
    ----------
    max_tokens : int, optional
        The manager-wide cap.
    mode : {"enforce", "audit"}
        Whether refusals refuse.

    Attributes
    ----------
    accounts : dict of str to dict
        By name, the root first, then in registration order.
    holds : dict of int to dict
        All holds ever granted: agent, tokens, expires_at, loans, state and how it ended.
    now : float
        Seconds.

    Notes
    -----
    A request that the library refuses or answers with an error raises `Misuse` with the error's name.
    """

    def __init__(self, max_tokens: int | None = None, mode: str = "enforce") -> None:
        super().__init__(max_tokens)
        self.mode = mode
        self.now = 0.0
        self._keys: dict[str, tuple[object, Any]] = {}

    # -- keys ------------------------------------------------------------------------------------------

    def _once(self, key: str | None, content: object, act: Callable[[], Any]) -> Any:
        """Do it once under its key; the first outcome, also a refusal, is the outcome of every repeat."""
        if key is None:
            return act()
        if key not in self._keys:
            try:
                outcome = act()
            except Misuse as error:
                if error.kind not in (
                    "BudgetExceededError",
                    "GateClosedError",
                    "OverrunError",
                    "CarveOutError",
                ):
                    raise  # never happened: the request itself was wrong
                outcome = error
            self._keys[key] = (content, outcome)
        elif self._keys[key][0] != content:
            raise Misuse("KeyConflictError")
        outcome = self._keys[key][1]
        if isinstance(outcome, Misuse):
            raise outcome
        return outcome

    def knows(self, key: str | None) -> bool:
        """Return whether a request under this key has an outcome."""
        return key in self._keys

    # -- holds -----------------------------------------------------------------------------------------

    def hold(
        self,
        name: str,
        tokens: int,
        *,
        expires_s: float = 600.0,
        key: str | None = None,
        at_least: int | None = None,
    ) -> int:
        """Set tokens aside, all or nothing, and return the number of the hold."""
        content = ("hold", name, tokens, expires_s, at_least)
        return int(self._once(key, content, lambda: self._grant(name, tokens, expires_s, at_least)))

    def _grant(self, name: str, tokens: int, expires_s: float, at_least: int | None) -> int:
        decision = self.decide(name, tokens)
        refused = decision["status"] in ("gate_closed", "busy", "exhausted")
        if refused and self.mode == "enforce":
            partly = at_least is not None and decision["status"] != "gate_closed"
            if not partly or decision["available"] < max(1, at_least or 0):
                raise self._refusal(decision)
            tokens = decision["available"]
            decision = self.decide(name, tokens)
        hold: HoldRecord = {
            "agent": name,
            "tokens": 0,
            "loans": [],
            "state": "open",
            "settlement": None,
            "recorded": 0,
            "expires_at": self.now + expires_s,
        }
        self._set_aside(hold, tokens, decision)
        self.holds[len(self.holds) + 1] = hold
        return len(self.holds)

    def _set_aside(self, hold: HoldRecord, tokens: int, decision: dict[str, Any]) -> None:
        """Move what the decision says, remember who lent what was not owed, and hold."""
        owed = max(0, -self.remaining(hold["agent"])) if decision["transfers"] else 0
        self.apply(decision["transfers"])
        for move in decision["transfers"]:
            if move.kind == "hand_down":
                continue  # passed on, not lent
            if owed:
                owed -= move.tokens  # paid the debt, and stays
            else:
                hold["loans"].append({"lender": move.donor, "tokens": move.tokens, "kind": move.kind})
        hold["tokens"] += tokens

    def decide(self, name: str, tokens: int, *, gate: bool = True) -> dict[str, Any]:
        """Return what a hold would meet, and every number behind it; moves nothing."""
        account = self.find_open(name)
        closed = gate and self.gate_closed(name)
        decision: dict[str, Any] = {
            "agent_name": name,
            "requested": tokens,
            "mode": self.mode,
            "confidence": account["confidence"],
            "confidence_threshold": account["threshold"],
            "transfers": [],
        }
        if not account["capped"]:
            return decision | {
                "status": "gate_closed" if closed else "uncapped",
                "remaining": None,
                "treasury": 0,
                "siblings": 0,
                "ancestors": 0,
                "available": None,
                "when_idle": None,
            }
        left, (treasury, siblings, ancestors) = self.remaining(name), self.reach(name)
        can_have = left + treasury + siblings + ancestors
        idle = self._all_voided()
        when_idle = max(0, idle.remaining(name) + sum(idle.reach(name)))
        if closed:
            status = "gate_closed"
        elif tokens == 0 or tokens <= left:
            status = "fits"
        elif tokens <= can_have:
            status = "fits_with_loans"
            decision["transfers"] = self.cover(name, tokens - left, "loan", owed=max(0, -left))
        else:
            status = "busy" if tokens <= when_idle else "exhausted"
        return decision | {
            "status": status,
            "remaining": left,
            "treasury": treasury,
            "siblings": siblings,
            "ancestors": ancestors,
            "available": max(0, can_have),
            "when_idle": when_idle,
        }

    def _all_voided(self) -> TreeModel:
        """Return a copy of the pool in which every open hold has been voided."""
        idle = BooksModel()
        open_holds = {number: hold for number, hold in self.holds.items() if hold["state"] == "open"}
        idle.accounts, idle.holds = copy.deepcopy((self.accounts, open_holds))
        for hold in idle.open_holds():
            idle._free(hold, "voided")
        return idle

    def _refusal(self, decision: dict[str, Any]) -> Misuse:
        kind = "GateClosedError" if decision["status"] == "gate_closed" else "BudgetExceededError"
        available = decision["available"] or 0
        return Misuse(kind, requested=decision["requested"], available=available, decision=decision)

    def extend(self, hold_id: int, tokens: int = 0, expires_s: float | None = None) -> None:
        """Set more aside, or for longer; the gate does not stop a running call."""
        hold = self.holds[hold_id]
        if hold["state"] != "open":
            raise Misuse("HoldEndedError", state=hold["state"])
        if tokens:
            decision = self.decide(hold["agent"], tokens, gate=False)
            if decision["status"] in ("busy", "exhausted") and self.mode == "enforce":
                raise self._refusal(decision)
            self._set_aside(hold, tokens, decision)
        if expires_s is not None:
            hold["expires_at"] = self.now + expires_s

    # -- ends of a hold --------------------------------------------------------------------------------

    def settle(self, hold_id: int, tokens: int, *, estimated: bool = False) -> dict[str, Any]:
        """Book the actual usage: the rest goes back, the excess is taken wherever there is something."""
        hold = self.holds[hold_id]
        if hold["state"] == "settled" and hold["settlement"]["tokens"] == tokens:
            return {**hold["settlement"], "repeated": True}
        if hold["state"] in ("settled", "voided"):
            raise Misuse("HoldEndedError", state=hold["state"])
        late = hold["state"] == "expired"
        set_aside = 0 if late else hold["tokens"]
        hold["state"] = "settled"
        account = self.accounts[hold["agent"]]
        account["consumed"] += tokens
        returned = [] if late else self._return_loans(hold, max(0, set_aside - tokens))
        covered, overrun = self._cover_excess(account, tokens - set_aside)
        return self._ended(
            hold,
            tokens=tokens,
            estimated=estimated,
            returned=returned,
            covered=covered,
            overrun=overrun,
            late=late,
        )

    def void(self, hold_id: int) -> dict[str, Any]:
        """Free everything: nothing was sent."""
        hold = self.holds[hold_id]
        if hold["state"] == "voided":
            return {**hold["settlement"], "repeated": True}
        if hold["state"] != "open":
            raise Misuse("HoldEndedError", state=hold["state"])
        return self._free(hold, "voided")

    def leave(self, hold_id: int, how: str, recorded: int) -> None:
        """Record something, and leave the block of a hold without a settle.

        Parameters
        ----------
        hold_id : int
            The hold.
        how : {"clean", "error", "not_sent"}
            What is on its way out.
        recorded : int
            Noted as used for certain.
        """
        hold = self.holds[hold_id]
        if hold["state"] not in ("open", "expired"):
            raise Misuse("HoldEndedError", state=hold["state"])
        hold["recorded"] += recorded
        if how == "not_sent":
            if hold["state"] == "open":
                self.void(hold_id)
        elif hold["recorded"]:
            self.settle(hold_id, hold["recorded"], estimated=how == "error")
        else:
            self.settle(hold_id, hold["tokens"], estimated=True)

    def advance(self, seconds: float) -> None:
        """Let time pass; holds whose time has come expire, in the order of their times."""
        self.now += seconds
        due = [hold for hold in self.open_holds() if hold["expires_at"] <= self.now]
        for hold in sorted(due, key=lambda hold: hold["expires_at"]):
            self._free(hold, "expired")

    def _free(self, hold: HoldRecord, state: str) -> dict[str, Any]:
        hold["state"] = state
        return self._ended(hold, returned=self._return_loans(hold, hold["tokens"]))

    def _ended(self, hold: HoldRecord, **numbers: Any) -> dict[str, Any]:
        hold["settlement"] = {
            "agent_name": hold["agent"],
            "state": hold["state"],
            "held": hold["tokens"],
            "tokens": 0,
            "estimated": False,
            "covered": [],
            "overrun": 0,
            "late": False,
            "repeated": False,
            **numbers,
        }
        return dict(hold["settlement"])

    def _return_loans(self, hold: HoldRecord, unused: int) -> list[Move]:
        """Give what was not used back to the lenders, last lender first."""
        returned = []
        borrower = self.accounts[hold["agent"]]
        for loan in reversed(hold["loans"]):
            part = min(unused, loan["tokens"])
            unused -= part
            if part:
                borrower["allocated"] -= part
                lender = self.accounts[loan["lender"]]
                if lender["capped"]:  # else its lender has closed at the top: out of the pool
                    lender["allocated"] += part
                returned.append(Move(hold["agent"], loan["lender"], part, "return"))
        return returned

    def _cover_excess(self, account: Account, excess: int) -> tuple[list[Move], int]:
        """Pay spending that was not announced: own remaining first, then the market, as much as there is."""
        name = account["name"]
        if excess <= 0 or not account["capped"] or self.remaining(name) >= 0:
            return [], 0
        found = min(-self.remaining(name), sum(self.reach(name)))
        moves = self.cover(name, found, "cover")
        self.apply(moves)
        return moves, min(excess, -self.remaining(name))

    # -- other spending, other moves -------------------------------------------------------------------

    def record_usage(
        self, name: str, tokens: int, confidence: float | None = None, *, key: str | None = None
    ) -> int:
        """Book what was spent without a hold, and return it; an overrun is booked, and said."""
        booked: int = self._once(
            key, ("usage", name, tokens, confidence), lambda: self._record_usage(name, tokens, confidence)
        )
        return booked

    def _record_usage(self, name: str, tokens: int, confidence: float | None) -> int:
        account = self.find_open(name)
        account["consumed"] += tokens
        _, overrun = self._cover_excess(account, tokens)
        if confidence is not None:
            account["confidence"] = confidence
        if overrun and self.mode == "enforce":
            raise Misuse("OverrunError", requested=tokens, available=tokens - overrun)
        return tokens

    def note_confidence(self, name: str, confidence: float | None) -> None:
        """Store a reported confidence; ``None`` forgets it."""
        self.find_open(name)["confidence"] = confidence

    def top_up(self, name: str, tokens: int, *, key: str | None = None) -> None:
        """Grant more, out of the parent's spare or, at the top, anew."""
        self._once(key, ("top_up", name, tokens), lambda: self._top_up(name, tokens))

    def _top_up(self, name: str, tokens: int) -> None:
        account = self.find_open(name)
        if not account["capped"]:
            raise Misuse("InvalidContractError")
        if account["allocated"] + tokens >= 2**53:
            raise Misuse("InvalidAmountError")
        if account["parent"] is not None:
            self._carve_out(account["parent"], tokens)
        account["allocated"] += tokens

    def rebalance(self, shortfalls: Mapping[str, int], *, key: str | None = None) -> dict[str, Any]:
        """Clear all markets at once, for good, and return the transfers and what stays unmet."""
        content = ("rebalance", tuple(sorted(shortfalls.items())))
        return dict(self._once(key, content, lambda: rebalance(self, shortfalls)))
