"""Accounts in a tree, in plain dicts: terms, carve-outs, closes, and who covers a shortage.

The lower half of `tbc.testing.BooksModel`. Written from the definitions in words, in O(n), sharing no code
with the library. What is derived is never stored: held, lent and borrowed are summed from the open holds.
"""

from __future__ import annotations

from typing import Any

from tbc.testing.market_model import Move, drain_order

__all__ = ["ROOT", "Account", "HoldRecord", "Misuse", "TreeModel"]

ROOT = "(root)"

#: An account or a hold of the model: a plain dict, see `TreeModel.open_account` and `BooksModel.hold`.
Account = dict[str, Any]
HoldRecord = dict[str, Any]


class Misuse(Exception):
    """The model says that a request raises an error of the type named `kind`, with these numbers.

    Parameters
    ----------
    kind : str
        Name of the class of the error.
    **numbers
        Attributes that it carries.
    """

    def __init__(self, kind: str, **numbers: object) -> None:
        super().__init__(kind, numbers)
        self.kind = kind
        self.numbers = numbers


class TreeModel:
    """The accounts of one pool and their tree.

    Parameters
    ----------
    max_tokens : int, optional
        The manager-wide cap.
    """

    def __init__(self, max_tokens: int | None = None) -> None:
        self.accounts: dict[str, Account] = {}
        self.holds: dict[int, HoldRecord] = {}
        self.open_account(ROOT, None, 0, max_tokens, 0, None)

    def open_account(
        self,
        name: str,
        parent: str | None,
        priority: int,
        max_tokens: int | None,
        reserve: int,
        threshold: float | None,
    ) -> Account:
        """Open an account, or open it again: what it consumed and owes stays on it."""
        account = self.accounts.setdefault(
            name, {"name": name, "order": len(self.accounts), "allocated": 0, "consumed": 0}
        )
        account.update(
            parent=parent,
            priority=priority,
            max_tokens=max_tokens,
            reserve=reserve,
            threshold=threshold,
            confidence=None,
            closed=False,
            # Without a cap of its own and without a capped ancestor it is uncapped.
            capped=max_tokens is not None or (parent is not None and self.accounts[parent]["capped"]),
        )
        account["allocated"] += max_tokens or 0
        return account

    # -- derived numbers -------------------------------------------------------------------------------

    def find(self, name: str) -> Account:
        """Return an account, open or closed."""
        if name not in self.accounts:
            raise Misuse("UnknownAgentError")
        return self.accounts[name]

    def find_open(self, name: str) -> Account:
        """Return an open account."""
        if self.find(name)["closed"]:
            raise Misuse("AgentClosedError")
        return self.accounts[name]

    def open_holds(self) -> list[HoldRecord]:
        """Return the open holds, oldest first."""
        return [hold for hold in self.holds.values() if hold["state"] == "open"]

    def held(self, name: str) -> int:
        """Return what the open holds of an agent have set aside."""
        return sum(hold["tokens"] for hold in self.open_holds() if hold["agent"] == name)

    def remaining(self, name: str) -> int:
        """Return allocated - consumed - held; below 0 in debt."""
        account = self.accounts[name]
        return int(account["allocated"] - account["consumed"] - self.held(name))

    def spare(self, name: str) -> int:
        """Return what an agent can give away: nothing if it is uncapped or closed."""
        account = self.accounts[name]
        if not account["capped"] or account["closed"]:
            return 0
        return max(0, self.remaining(name) - int(account["reserve"]))

    def gate_closed(self, name: str) -> bool:
        """Return whether the agent's last confidence has reached its threshold."""
        account = self.accounts[name]
        confidence, threshold = account["confidence"], account["threshold"]
        return confidence is not None and threshold is not None and confidence >= threshold

    def children(self, name: str) -> list[str]:
        """Return the open children of an account in registration order."""
        return [each for each, account in self.accounts.items() if self._is_child(account, name)]

    @staticmethod
    def _is_child(account: Account, parent: str) -> bool:
        return account["parent"] == parent and not account["closed"]

    def depth(self, name: str) -> int:
        """Return how many accounts are above."""
        parent = self.accounts[name]["parent"]
        return 0 if parent is None else 1 + self.depth(parent)

    def view(self, name: str) -> dict[str, Any]:
        """Return everything about an account, as `tbc.Account` shows it."""
        account = self.accounts[name]
        capped, left = account["capped"], self.remaining(name)
        loans = [(hold["agent"], loan) for hold in self.open_holds() for loan in hold["loans"]]
        return {
            "agent_name": name,
            "parent": account["parent"],
            "priority": account["priority"],
            "allocated": account["allocated"] if capped else None,
            "consumed": account["consumed"],
            "held": self.held(name),
            "remaining": left if capped else None,
            "min_reserve": account["reserve"],
            "spare": self.spare(name),
            "debt": max(0, -left) if capped else 0,
            "lent": sum(loan["tokens"] for _, loan in loans if loan["lender"] == name),
            "borrowed": sum(loan["tokens"] for agent, loan in loans if agent == name),
            "last_confidence": account["confidence"],
            "gate_closed": self.gate_closed(name),
            "closed": account["closed"],
        }

    # -- who covers a shortage -------------------------------------------------------------------------

    def donors(self, asker: str) -> list[str]:
        """Return the siblings that may lend to `asker` and have something to lend, in drain order."""
        account = self.accounts[asker]
        able = [
            {**self.accounts[name], "remaining": self.remaining(name), "gate_closed": self.gate_closed(name)}
            for name in self.children(account["parent"])
            if name != asker and self.spare(name) and self.accounts[name]["priority"] <= account["priority"]
        ]
        return [donor["name"] for donor in drain_order(able)]

    def askers(self, name: str) -> list[str]:
        """Return who asks in whose market: the agent, then its ancestors, up to the top of the budget."""
        found = []
        parent = self.accounts[name]["parent"]
        while parent is not None:
            found.append(name)
            if not self.accounts[parent]["capped"]:
                break
            name, parent = parent, self.accounts[parent]["parent"]
        return found

    def reach(self, name: str) -> tuple[int, int, int]:
        """Return what the treasury, the siblings and all markets above could lend."""
        found = []
        for asker in self.askers(name):
            found.append(self.spare(self.accounts[asker]["parent"]))
            found.append(sum(self.spare(donor) for donor in self.donors(asker)))
        treasury, siblings, *above = found or [0, 0]
        return treasury, siblings, sum(above)

    def cover(self, name: str, amount: int, kind: str, owed: int = 0) -> list[Move]:
        """Return the moves that bring `amount` to an agent: treasury, siblings, then the parent asks.

        The first `owed` tokens pay a debt; what siblings give for that is given for good.
        """
        moves: list[Move] = []
        handed_down: list[Move] = []
        for asker in self.askers(name):
            parent = str(self.accounts[asker]["parent"])
            for donor in [parent, *self.donors(asker)]:
                part = min(amount, self.spare(donor))
                amount -= part
                for_debt = min(owed, part)
                owed -= for_debt
                usual = "draw" if donor == parent else kind
                for_good = "cover" if usual == "loan" else usual
                moves += [Move(donor, asker, for_debt, for_good)] * (for_debt > 0)
                moves += [Move(donor, asker, part - for_debt, usual)] * (part > for_debt)
            if not amount:
                return moves + handed_down[::-1]
            handed_down.append(Move(parent, asker, amount, "hand_down"))
        raise AssertionError(f"the model asks for {amount} more than {name!r} can reach")

    def apply(self, moves: list[Move]) -> None:
        """Move allocation."""
        for move in moves:
            self.accounts[move.donor]["allocated"] -= move.tokens
            self.accounts[move.recipient]["allocated"] += move.tokens

    # -- terms -----------------------------------------------------------------------------------------

    def register(
        self,
        name: str,
        priority: int,
        max_tokens: int | None,
        reserve: int | None,
        threshold: float | None,
        parent: str = ROOT,
        *,
        replace: bool = False,
    ) -> None:
        """Open an account with a carve-out, find it again, or change its terms."""
        if reserve is None:
            reserve = (max_tokens or 0) // 10
        if reserve > (max_tokens or 0):
            raise Misuse("InvalidAmountError")
        if name == parent:
            raise Misuse("InvalidContractError")
        self.find_open(parent)
        account = self.accounts.get(name)
        if account is None or account["closed"]:
            self._carve_out(parent, max_tokens or 0)
            self.open_account(name, parent, priority, max_tokens, reserve, threshold)
            return
        terms = {"priority": priority, "max_tokens": max_tokens, "reserve": reserve, "threshold": threshold}
        if all(account[term] == value for term, value in terms.items()) and account["parent"] == parent:
            return
        if not replace:
            raise Misuse("AgentExistsError")
        if account["parent"] != parent:
            raise Misuse("InvalidContractError")
        self._replace(account, terms)

    def _replace(self, account: Account, terms: dict[str, Any]) -> None:
        """Change all terms; the allocation moves by the difference of the caps."""
        name, parent = account["name"], self.accounts[account["parent"]]
        view = self.view(name)
        capped = terms["max_tokens"] is not None or parent["capped"]
        if capped != account["capped"] and (self.children(name) or view["lent"] or view["borrowed"]):
            raise Misuse("InvalidContractError")
        if capped:
            change = (terms["max_tokens"] or 0) - (account["max_tokens"] or 0)
            left = self.remaining(name) + change
            if left < 0 and (change < 0 or not account["capped"]):
                raise Misuse("InvalidContractError")  # less than what is spent and held already
        else:
            change = -account["allocated"] if account["capped"] else 0
        if change > 0:
            self._carve_out(account["parent"], change)
        elif parent["capped"]:
            parent["allocated"] -= change
        account["allocated"] += change
        account.update(terms, capped=capped)

    def _carve_out(self, parent_name: str, tokens: int) -> None:
        """Take a grant out of the parent's spare; where nobody above has a cap it is granted anew."""
        parent = self.accounts[parent_name]
        if parent["capped"] and tokens:
            if tokens > self.spare(parent_name):
                raise Misuse(
                    "CarveOutError", requested=tokens, available=self.spare(parent_name), parent=parent_name
                )
            parent["allocated"] -= tokens

    def update(self, name: str, **terms: Any) -> None:
        """Change priority, reserve or threshold; allocations stay."""
        account = self.find_open(name)
        if terms.get("reserve", 0) > (account["max_tokens"] or 0):
            raise Misuse("InvalidAmountError")
        account.update(terms)

    def close(self, name: str) -> None:
        """Return what was not spent to the parent, or out of the pool; loans will return to the treasury."""
        account = self.find_open(name)
        parent = account["parent"]
        if parent is None:
            raise Misuse("InvalidContractError")
        holds = [hold for hold in self.open_holds() if hold["agent"] == name]
        if holds or self.children(name):
            raise Misuse("AgentInUseError", children=tuple(self.children(name)))
        for hold in self.open_holds():
            for loan in hold["loans"]:
                if loan["lender"] == name:
                    loan["lender"] = parent
        if self.accounts[parent]["capped"]:
            unspent = max(0, self.remaining(name))
            self.accounts[parent]["allocated"] += unspent
            account["allocated"] -= unspent
        elif account["capped"]:
            account["allocated"] -= max(0, self.remaining(name))
        else:
            account["allocated"] = account["consumed"]  # a closed account is even
        account["closed"] = True
