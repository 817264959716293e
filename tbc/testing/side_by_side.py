"""A real manager and the model, driven side by side and compared number by number.

Every difference raises `AssertionError` with both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs

from tbc.axes import TOKENS
from tbc.decision import Decision, Settlement, Transfer
from tbc.errors import BudgetExceededError, TBCError
from tbc.holds import Hold
from tbc.manager import BudgetManager
from tbc.testing.books_model import BooksModel
from tbc.testing.invariants import Snapshot, check_books, check_step, require
from tbc.testing.market_model import Move
from tbc.testing.tree_model import ROOT, Misuse

__all__ = ["SideBySide", "TwinHold"]

#: What did not happen: an error of one of these types has moved the books all the same.
_BOOKED = "OverrunError"


@attrs.frozen(eq=False)
class TwinHold:
    """A hold of the real manager and its number in the model."""

    real: Hold
    number: int


class SideBySide:
    """Both sides, and the comparison of everything they show.

    Parameters
    ----------
    manager : BudgetManager
        The real one, new.
    """

    def __init__(self, manager: BudgetManager) -> None:
        self.manager = manager
        root = manager.accounts()[0]
        self.model = BooksModel(root.allocated, manager.mode)
        self.holds: list[TwinHold] = []

    def do(
        self, spender: str | None, real: Callable[[], Any], model: Callable[[], Any], what: str
    ) -> tuple[Any, Any] | None:
        """Do it on both sides; return both answers, or ``None`` if both said the same error.

        Parameters
        ----------
        spender : str or None
            Whose own operation it is, see `check_step`.
        real, model : callable
            The operation on each side.
        what : str
            The operation in words, for the message.
        """
        before = Snapshot.of(self.manager)
        said, answer = _outcome(real, TBCError, what)
        expected, model_answer = _outcome(model, Misuse, what)
        after = Snapshot.of(self.manager)
        if isinstance(expected, Misuse):
            self._compare_errors(said, expected, what, answer)
            check_step(before, after, spender=spender, refused=expected.kind != _BOOKED)
            return None
        require(said is None, f"{what}: raised {said!r}, but the model answers {model_answer!r}")
        check_step(before, after, spender=spender)
        return answer, model_answer

    def refuse(self, error: type[BaseException], real: Callable[[], Any], what: str) -> None:
        """Do what must raise `error` and change nothing."""
        before = Snapshot.of(self.manager)
        said, answer = _outcome(real, TBCError, what)
        require(isinstance(said, error), f"{what}: expected {error.__name__}, got {said!r} {answer!r}")
        check_step(before, Snapshot.of(self.manager), refused=True)

    def read(self, real: Callable[[], Any], model: Callable[[], Any], what: str) -> tuple[Any, Any] | None:
        """Do on both sides what must not change anything."""
        before = Snapshot.of(self.manager)
        said, answer = _outcome(real, TBCError, what)
        expected, model_answer = _outcome(model, Misuse, what)
        check_step(before, Snapshot.of(self.manager), refused=True)
        if isinstance(expected, Misuse):
            self._compare_errors(said, expected, what, answer)
            return None
        require(said is None, f"{what}: raised {said!r}, but the model answers {model_answer!r}")
        return answer, model_answer

    def grant(self, agent_name: str, answers: tuple[Any, Any] | None) -> TwinHold | None:
        """Pair a hold with the model's, or find the pair that a repeated key answered with."""
        if answers is None:
            return None
        real, number = answers
        require(isinstance(real, Hold), f"hold({agent_name!r}) returned {real!r}")
        for known in self.holds:
            if known.number == number or known.real.hold_id == real.hold_id:
                require(
                    known.number == number and known.real.hold_id == real.hold_id,
                    f"{real!r} answers for hold {number}, {known.real!r} for hold {known.number}",
                )
                return known
        twin = TwinHold(real, number)
        self.holds.append(twin)
        return twin

    # -- comparing -------------------------------------------------------------------------------------

    def check_everything(self) -> None:
        """Compare all accounts and holds and check every promise that shows at this moment."""
        accounts = {account.agent_name: attrs.asdict(account) for account in self.manager.accounts()}
        require(
            list(accounts) == list(self.model.accounts),
            f"accounts {list(accounts)}, in the model {list(self.model.accounts)}",
        )
        for name, account in accounts.items():
            _same(account, {"axis": "tokens", "unpriced": 0, **self.model.view(name)}, f"account {name!r}")
        for twin in self.holds:
            self._check_hold(twin)
        check_books(self.manager, [twin.real for twin in self.holds])

    def _check_hold(self, twin: TwinHold) -> None:
        real, model = twin.real, self.model.holds[twin.number]
        loans = [loan for loan in real.loans if loan.axis == TOKENS]
        shown = {
            "agent": real.agent_name,
            "tokens": real.tokens,
            "state": real.state,
            "expires_at": real.expires_at,
            "loans": [(loan.tokens, loan.kind.value) for loan in loans],
        }
        expected = {name: model[name] for name in shown} | {
            "loans": [(loan["tokens"], loan["kind"]) for loan in model["loans"]]
        }
        _same(shown, expected, f"hold {real.hold_id}")
        if real.state == "open":
            lenders = [loan.donor for loan in loans]
            require(
                lenders == [loan["lender"] for loan in model["loans"]],
                f"hold {real.hold_id}: lenders {lenders}, in the model {model['loans']}",
            )
        if real.settlement is not None:
            self.compare_settlements(real.settlement, model["settlement"])

    def compare_settlements(self, real: Settlement, model: dict[str, Any]) -> None:
        """Compare how a hold ended."""
        shown = {name: getattr(real, name) for name in model}
        shown["returned"], shown["covered"] = _moves(real.returned), _moves(real.covered)
        _same(shown, model, f"settlement of hold {real.hold_id}")

    def compare_decisions(self, real: Decision, model: dict[str, Any]) -> None:
        """Compare a decision, number by number."""
        shown = {name: getattr(real, name) for name in model}
        shown["status"], shown["transfers"] = real.status.value, _moves(real.transfers)
        _same(shown, model, f"decision on {real.requested} for {real.agent_name!r}")

    def compare_transfers(self, real: Iterable[Transfer], model: list[Move], what: str) -> None:
        """Compare transfers, in order."""
        require(_moves(real) == model, f"{what}: transfers {_moves(real)}, in the model {model}")

    def _compare_errors(
        self, said: BaseException | None, expected: Misuse, what: str, answer: object
    ) -> None:
        require(
            type(said).__name__ == expected.kind,
            f"{what}: the model says {expected.kind} {expected.numbers}, the manager {said or answer!r}",
        )
        for name, number in expected.numbers.items():
            if name == "decision":
                assert isinstance(said, BudgetExceededError), "only refusals have a decision in the model"
                require(said.decision is not None, f"{what}: refused without a decision")
                assert said.decision is not None, "required"
                self.compare_decisions(said.decision, expected.numbers["decision"])  # type: ignore[arg-type]
                continue
            shown = getattr(said, name, None)
            require(shown == number, f"{what}: {name} {shown!r} in {said!r}, {number!r} in the model")


def parent_name(name: str) -> str | None:
    """Return the parent argument that `register_agent` takes for a parent's name."""
    return None if name == ROOT else name


def _outcome(act: Callable[[], Any], error: type[Exception], what: str) -> tuple[Any, Any]:
    """Return what was raised, and what was answered."""
    try:
        return None, act()
    except error as raised:
        return raised, None
    except Exception as raised:
        raise AssertionError(f"{what}: raised {raised!r}, which is no {error.__name__}") from raised


def _moves(transfers: Iterable[Transfer]) -> list[Move]:
    return [Move(each.donor, each.recipient, each.tokens, each.kind.value) for each in transfers]


def _same(shown: dict[str, Any], expected: dict[str, Any], what: str) -> None:
    different = {
        name: (shown.get(name), expected.get(name))
        for name in [*shown, *(name for name in expected if name not in shown)]
        if shown.get(name) != expected.get(name)
    }
    require(
        not different,
        f"{what} differs from the model: "
        + "; ".join(f"{name} {real!r}, expected {model!r}" for name, (real, model) in different.items()),
    )
