"""The desk of a pool, where spending is announced, decided, and booked: holds, their ends, and prices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs

from tbc import lifecycle
from tbc.axes import CALLS, MAX_AMOUNT, USD
from tbc.clock import EPOCH, system_clock
from tbc.contract import check_amount, check_fraction, check_seconds
from tbc.decision import Decision, Settlement, Transfer
from tbc.errors import AgentClosedError, InvalidAmountError, OverrunError
from tbc.holds import NOTHING, Hold, Part, PendingHold, Said, Spent
from tbc.ledger import Books
from tbc.lifecycle import Clamp
from tbc.pool import Pool, amounts_of, has_reached, nano_dollars

if TYPE_CHECKING:
    from datetime import date

    from tbc.money import Money
    from tbc.pricing import Price, Prices, PriceTable, UnknownPrice
    from tbc.usage import Usage

__all__ = ["UNKNOWN_PRICE", "SpendingDesk"]


#: How the note on a decision begins that audit mode makes in the place of an `UnknownPriceError`.
UNKNOWN_PRICE: Final = "Enforcement would refuse it"

#: The one call that a hold is for if nobody says otherwise; compared by identity, so that ``True`` is not it.
_ONE: Final = 1


class SpendingDesk(Pool):
    """A pool that can be spent from; see `BudgetManager`."""

    waits: bool = False
    """Whether operations wait for a store; coroutines then await them with `arun` and `aside`."""

    _wind_down_at: float
    _price_table: PriceTable | None
    _prices: Prices | None
    _unknown_price: UnknownPrice

    # -- holds -----------------------------------------------------------------------------------------

    def hold(
        self,
        agent_name: str,
        tokens: int = 0,
        *,
        usd: Money | None = None,
        calls: int = 1,
        model: str | None = None,
        expires_s: float = 600,
        key: str | None = None,
        operation: str | None = None,
        at_least: int | None = None,
    ) -> Hold:
        """Set an amount aside before a call; short of it, borrow what the market has to spare.

        There must be room on every axis that is capped, all at once.

        Parameters
        ----------
        agent_name : str
            Whose budget.
        tokens : int, default 0
            The most that the call is expected to use. 0 needs no budget.
        usd : Decimal, str, int or float, optional
            The most that it is expected to cost. Left out: by the dearest price of `model`, or else, where
            dollars are capped, what the manager's `unknown_price` says.
        calls : int, default 1
            How many calls it is.
        model : str, optional
            The model that will be called, for the price and for the bill.
        expires_s : float, default 600
            Seconds after which the hold ends by itself, if nothing else ends it.
        key : str, optional
            Makes the request safe to repeat: the same key with the same content returns the first answer
            again, a refusal too.
        operation : str, optional
            What it is for. Several holds for one operation are its attempts.
        at_least : int, optional
            If `tokens` do not fit: grant what is available, but not less than this. In audit mode nothing is
            clamped. Default: all or nothing.

        Returns
        -------
        Hold
            Also a context manager, see there.

        Raises
        ------
        BudgetExceededError
            It cannot be covered (or, as `GateClosedError`, the agent is confident enough). Nothing moved;
            `.decision` has the numbers and tells busy from exhausted.
        UnknownPriceError
            Dollars are capped, and nobody knows what it costs.
        KeyConflictError
            The key was used with other content.
        """
        if type(tokens) is not int or not 0 <= tokens <= MAX_AMOUNT:
            tokens = check_amount("tokens", tokens)
        expires_s = 600 if expires_s == 600 else check_seconds("expires_s", expires_s)
        if at_least is not None:
            at_least = check_amount("at_least", at_least)
        ledger = self.ledger
        if ledger.sides or model is not None or usd is not None or calls is not _ONE:
            return self._hold_on_axes(
                agent_name, tokens, usd, calls, model, expires_s, key, operation, at_least
            )
        content = None
        if key is not None:
            content = ("hold", agent_name, tokens, expires_s, operation, at_least, None, 1, None)
        with self._lock:
            now = self._clock()
            if now >= ledger.due or ledger.deferred:
                ledger.tend(now)
            if content is not None:
                known: Hold | Decision | None = ledger.answers.recall(key, content)
                if known is not None:
                    return _hold_again(known)
            try:
                books = self._accounts[agent_name]
            except (KeyError, TypeError):
                books = self.ledger.find(agent_name)  # the root, or nobody
            if books.closed:
                raise AgentClosedError(agent_name)
            ends = now + expires_s
            granted: Hold | Decision
            # `remaining`, written out: on the busiest path a property costs as much as the rest of the line.
            if books.gate_closed or (
                tokens > books.allocated - books.consumed - books.held and books.capped and tokens
            ):
                clamp = None if at_least is None else Clamp(at_least)
                asked = (Part(books, tokens),)
                granted = lifecycle.grant(
                    self, ledger, asked, now, ends, self._mode, clamp, key, operation, None
                )
            else:
                number = ledger.numbers_from + ledger.seq + 1
                granted = Hold(self, books, number, tokens, now, ends, key, operation, None)
                lifecycle.set_aside(ledger, granted)
            if content is not None:
                self._remember(key, content, granted)
        if type(granted) is Hold and self._subscribers is None:
            return granted
        return self._told_hold(granted)

    def _told_hold(self, granted: Hold | Decision) -> Hold:
        """Tell subscribers how a hold was answered, and return it or raise the refusal."""
        if isinstance(granted, Hold):
            if granted.decision is not None and granted.decision.status.refuses:
                self._notice("Refused", granted.decision)
            self._tell()
            return granted
        self._notice("Refused", granted)
        self._tell()
        raise lifecycle.refusal(granted)

    def _hold_on_axes(
        self,
        agent_name: str,
        tokens: int,
        usd: Money | None,
        calls: int,
        model: str | None,
        expires_s: float,
        key: str | None,
        operation: str | None,
        at_least: int | None,
    ) -> Hold:
        calls = check_amount("calls", calls)
        nano = None if usd is None else nano_dollars("usd", usd)
        content = ("hold", agent_name, tokens, expires_s, operation, at_least, nano, calls, model)
        price = self._price_if_known(model)
        cost = None if price is None or nano is not None else price.dearest
        with self._lock:
            known: Hold | Decision | None = self.ledger.answers.recall(key, content)
            if known is not None:
                return _hold_again(known)
            books = self._open_books(agent_name)
            if price is None and nano is None and self.ledger.capped_on(USD, books):
                price = self._price_or_refuse(model)
                cost = None if price is None else price.dearest
            clamp = None if at_least is None else Clamp(at_least, cost)
            granted = self._grant(books, tokens, nano, calls, cost, clamp, expires_s, key, operation, model)
            self._note_unknown_price(granted, price, nano)
            self._remember(key, content, granted)
        if price is not None and isinstance(granted, Hold):
            granted.expect_price(price)
        return self._told_hold(granted)

    def _grant(
        self,
        books: Books,
        tokens: int,
        nano: int | None,
        calls: int,
        cost: Callable[[int], int] | None,
        clamp: Clamp | None,
        expires_s: float,
        key: str | None,
        operation: str | None,
        model: str | None,
    ) -> Hold | Decision:
        """Ask for a hold on all axes that are kept; under the lock."""
        ledger = self.ledger
        now = ledger.look()
        asked = [Part(books, tokens)]
        if nano is None and cost is not None:
            nano = cost(tokens)
        if nano is not None or USD in ledger.sides:
            asked.append(Part(ledger.on(USD, books), nano or 0, unpriced=nano is None))
        if calls != 1 or CALLS in ledger.sides:
            asked.append(Part(ledger.on(CALLS, books), calls))
        return lifecycle.grant(
            self, ledger, asked, now, now + expires_s, self._mode, clamp, key, operation, model
        )

    def _note_unknown_price(self, granted: Hold | Decision, price: Price | None, nano: int | None) -> None:
        """Audit mode: say on the decision that enforcement would refuse a call without a known price."""
        if price is not None or nano is not None or self._mode != "audit" or self._unknown_price != "refuse":
            return
        if isinstance(granted, Hold) and self.ledger.capped_on(USD, granted.books):
            parts = [Part(part.books, 0) for part in (granted, *granted.others)]
            decision = granted.decision or lifecycle.decide(parts, self._mode)
            who = "a call that names no model" if granted.model is None else f"model {granted.model!r}"
            note = f"{UNKNOWN_PRICE}: {who} has no known price."
            granted.decision = attrs.evolve(decision, note=note)
            if not decision.status.refuses:  # that is told anyway
                self._notice("Refused", granted.decision)

    def hold_call(
        self,
        agent_name: str,
        input_tokens: int,
        output_tokens: int,
        *,
        at_least: int,
        model: str | None,
        expires_s: float,
        operation: str | None,
    ) -> Hold:
        """Set aside what a call may use at most: its input, and an output that may be made smaller.

        For `govern` and others that know the two apart. At least `at_least` tokens are granted in all.
        """
        price = self._price_if_known(model)
        with self._lock:
            books = self._open_books(agent_name)
            if price is None and self.ledger.capped_on(USD, books):
                price = self._price_or_refuse(model)
            cost = None if price is None else _ceiling(price, input_tokens)
            granted = self._grant(
                books,
                check_amount("tokens", input_tokens + output_tokens),
                None,
                1,
                cost,
                Clamp(at_least, cost),
                expires_s,
                None,
                operation,
                model,
            )
            self._note_unknown_price(granted, price, None)
        if isinstance(granted, Hold):
            granted.expect_input(input_tokens)
            if price is not None:
                granted.expect_price(price)
        return self._told_hold(granted)

    def hold_priced(
        self,
        agent_name: str,
        tokens: int,
        nano: int | None,
        *,
        model: str | None,
        expires_s: float,
        operation: str | None,
    ) -> Hold:
        """Set aside what a call may use and cost at most, for those who have priced it themselves.

        The cost is in nano-dollars; ``None``: nobody knows it.
        """
        tokens = check_amount("tokens", tokens)
        if nano is not None:
            nano = _check_nano(nano)
        with self._lock:
            books = self._open_books(agent_name)
            granted = self._grant(books, tokens, nano, 1, None, None, expires_s, None, operation, model)
            self._note_unknown_price(granted, None, nano)
        return self._told_hold(granted)

    def ahold(self, agent_name: str, tokens: int = 0, **how: Any) -> PendingHold:
        """Await `hold`, or use it as an async context manager; the same arguments."""
        return PendingHold(lambda: self.hold(agent_name, tokens, **how))

    async def arun(self, operation: Callable[[], Any]) -> Any:
        """Await an operation on the books."""
        return operation()

    async def aside(
        self, work: Callable[..., Any], *values: Any, undo: Callable[[Any], Any] | None = None
    ) -> Any:
        """Await what may wait for the books. If nobody waits any more, it is undone."""
        return work(*values)

    def settle_hold(
        self,
        hold: Hold,
        tokens: int | None,
        estimated: bool = False,
        usd: Money | None = None,
        calls: int | None = None,
        usage: Usage | None = None,
        nano: int | None = None,
    ) -> Settlement:
        """End a hold by the actual usage; see `Hold.settle`. `nano` is `usd`, in nano-dollars."""
        said = None  # on the busiest path nothing is made of it
        plain = usage is None and usd is calls is nano is None
        if not plain or type(tokens) is not int or not 0 <= tokens <= hold.amount:
            said = self.said_of(hold, tokens, estimated, usd, calls, usage, nano)
        ledger = self.ledger
        with self._lock:
            now = self._clock()
            if now >= ledger.due or ledger.deferred:
                ledger.tend(now)
            if said is None and hold.settlement is None and hold.lenders is None and not ledger.sides:
                assert tokens is not None, "it is plain"
                settlement = lifecycle.settle_as_held(ledger, hold, tokens, now, estimated)
            else:
                spent = self._spent(hold, said or Said(tokens, estimated=estimated))
                settlement = lifecycle.settle(ledger, hold, spent, now)
        if self._subscribers is not None:
            self._tell()
        return settlement

    def said_of(
        self,
        hold: Hold,
        tokens: int | None,
        estimated: bool = False,
        usd: Money | None = None,
        calls: int | None = None,
        usage: Usage | None = None,
        nano: int | None = None,
    ) -> Said:
        """Return what the arguments of `settle_hold` say; refuses what is no amount."""
        if nano is not None:
            nano = _check_nano(nano)
        elif usd is not None:
            nano = nano_dollars("usd", usd)
        if usage is not None and _states_something(usage):
            tokens = usage.tokens if tokens is None else tokens
            if nano is None and hold.price is not None:
                nano = hold.price.cost(usage)
        tokens = None if tokens is None else check_amount("tokens", tokens)
        return Said(tokens, nano, None if calls is None else check_amount("calls", calls), estimated)

    def _spent(self, hold: Hold, said: Said) -> list[Spent]:
        """Return what an end books on every axis that is kept by now; under the lock."""
        tokens, nano, calls, estimated = said
        guessed = estimated or tokens is None
        if tokens is None:
            tokens = hold.amount
        spent = [Spent(hold, tokens, guessed)]
        dollars, counted = hold.part(USD), hold.part(CALLS)
        sides, books = self.ledger.sides, hold.books
        if dollars is None and USD in sides:
            dollars = Part(self.ledger.on(USD, books), 0, unpriced=hold.price is None)
        if counted is None and CALLS in sides:
            counted = Part(self.ledger.on(CALLS, books), 0)
            calls = 1 if calls is None else calls
        if nano is not None:
            spent.append(Spent(dollars or Part(self.ledger.on(USD, books), 0), nano, estimated))
        elif dollars is not None and dollars.unpriced:
            spent.append(Spent(dollars, 0, estimated, 1))
        elif dollars is not None:
            cost = (
                None if guessed and tokens == hold.amount else hold.cost_of(tokens)
            )  # the whole hold: as it was held
            spent.append(Spent(dollars, dollars.amount if cost is None else cost, True))
        if calls is not None:
            spent.append(Spent(counted or Part(self.ledger.on(CALLS, books), 0), calls, False))
        elif counted is not None:
            spent.append(Spent(counted, counted.amount, False))
        return spent

    def void_hold(self, hold: Hold) -> Settlement:
        """End a hold without spending; see `Hold.void`."""
        with self._lock:
            settlement = lifecycle.void(self.ledger, hold, self.ledger.look())
        self._tell()
        return settlement

    def extend_hold(
        self,
        hold: Hold,
        tokens: int = 0,
        expires_s: float | None = None,
        key: str | None = None,
        usd: Money | None = None,
    ) -> tuple[Transfer, ...]:
        """Set more aside, or for longer; see `Hold.extend`."""
        amounts = amounts_of(tokens, usd, 0)
        seconds = None if expires_s is None else check_seconds("expires_s", expires_s)
        content = ("extend", hold.hold_id, *amounts.items(), seconds)
        with self._lock:
            now = self.ledger.look()
            had = Counter(hold.loans)
            refused = self.ledger.answers.recall(key, content)
            if refused is None:
                expires_at = None if seconds is None else now + seconds
                ceiling = hold.ceiling_of(hold.amount + tokens) if tokens and usd is None else None
                if ceiling is not None and ceiling > hold.usd:  # at the price of its model
                    amounts[USD] = ceiling - hold.usd
                asked = [Part(self.ledger.on(axis, hold.books), n) for axis, n in amounts.items()]
                refused = lifecycle.extend(self.ledger, hold, asked, now, expires_at, self._mode)
                self._remember(key, content, refused or "done")
                if refused is not None:
                    self._notice("Refused", refused)
            lent = Counter(hold.loans) - had
        self._tell()
        if isinstance(refused, Decision) and self._mode == "enforce":
            raise lifecycle.refusal(refused)
        return tuple(lent.elements())

    @property
    def ends_later(self) -> bool:
        """Whether `end_later` is of any use."""
        return True

    def end_later(self, hold: Hold, said: Said) -> None:
        """End a hold without ever waiting for the lock, at once or with the next operation.

        For finalizers: garbage collection may run them anywhere, also inside of an operation.
        """
        self.ledger.defer(partial(self._end, hold, said))
        if self._lock.acquire(blocking=False):
            try:
                self.ledger.look()
            finally:
                self._lock.release()

    def _end(self, hold: Hold, said: Said, now: float) -> None:
        """End a hold that still can be; under the lock."""
        if said is NOTHING:
            if hold.state == "open":
                lifecycle.void(self.ledger, hold, now)
        elif hold.state in ("open", "expired"):
            lifecycle.settle(self.ledger, hold, self._spent(hold, said), now)

    def should_wind_down(self, hold: Hold) -> bool:
        """Return whether the budget is nearly used up.

        True where `wind_down_at` of a manager-wide cap has been spent, or where the agent could not have
        another hold like this one.
        """
        with self._lock:
            self.ledger.look()
            shares = [has_reached(self._wind_down_at, used, total) for _, used, total in self._used()]
            parts = [part for part in (hold, *hold.others) if part.amount]
            return any(shares) or (
                bool(parts)
                and not hold.books.closed
                and lifecycle.decide([Part(p.books, p.amount) for p in parts], self._mode).status.refuses
            )

    def decide(
        self,
        agent_name: str,
        tokens: int = 0,
        *,
        usd: Money | None = None,
        calls: int = 1,
        model: str | None = None,
    ) -> Decision:
        """Return what `hold` would do, and why; moves nothing."""
        tokens = check_amount("tokens", tokens)
        calls = check_amount("calls", calls)
        price = None if usd is not None else self._price_if_known(model)
        with self._lock:
            ledger = self.ledger
            ledger.look()
            books = self._open_books(agent_name)
            nano = None if usd is None else nano_dollars("usd", usd)
            if nano is None and price is None and ledger.capped_on(USD, books):
                price = self._price_or_refuse(model)
            if price is not None:
                nano = price.dearest(tokens)
            asked = [Part(books, tokens)]
            if nano is not None and ledger.capped_on(USD, books):
                asked.append(Part(ledger.on(USD, books), nano))
            if ledger.capped_on(CALLS, books):
                asked.append(Part(ledger.on(CALLS, books), calls))
            return lifecycle.decide(asked, self._mode)

    # -- prices ----------------------------------------------------------------------------------------

    @property
    def prices(self) -> Prices:
        """What models cost: the manager's own table first, then the bundled one."""
        if self._prices is None:
            from tbc.pricing import Prices

            self._prices = Prices(self._price_table)
        return self._prices

    def _price_if_known(self, model: str | None) -> Price | None:
        """Return the price of a model that has one, without asking what to do about one that has none."""
        return None if model is None else self.prices.find(model, on=self._today())

    def _price_or_refuse(self, model: str | None) -> Price | None:
        """Return the price that `unknown_price` puts in the place of an unknown one; ``None``: track.

        Raises
        ------
        UnknownPriceError
            If it says "refuse", and nothing may be spent that nobody can price.
        """
        if self._unknown_price == "track" or (self._mode == "audit" and self._unknown_price == "refuse"):
            return None
        from tbc.pricing import resolve

        return resolve(model, self.prices, self._unknown_price, on=self._today())

    def _assumed_price(self) -> Price | None:
        """Return the price that is assumed for models without one, if any is."""
        policy = self._unknown_price
        return (
            None if policy in ("refuse", "track") or isinstance(policy, str) else self._price_or_refuse(None)
        )

    def _today(self) -> date | None:
        """Return the day by the clock, for prices that change; ``None`` if the clock tells no days."""
        if self._clock is not system_clock:
            return None
        from datetime import UTC, datetime

        return datetime.fromtimestamp(EPOCH + self._clock(), UTC).date()

    # -- spending and moving ----------------------------------------------------------------------------

    def record_usage(
        self,
        agent_name: str,
        tokens: int = 0,
        note: str = "usage",
        confidence: float | None = None,
        *,
        usd: Money | None = None,
        calls: int = 1,
        model: str | None = None,
        usage: Usage | None = None,
        key: str | None = None,
    ) -> Settlement:
        """Book what was spent without a hold, and a confidence, if one is given.

        What the agent does not have is taken from its market, as much as there is.

        Parameters
        ----------
        agent_name : str
            Who spent.
        tokens : int, default 0
            Tokens; with `usage` its tokens.
        note : str, default "usage"
            For the journal.
        confidence : float, optional
            0 to 1, for the gate.
        usd : Decimal, str, int or float, optional
            Dollars. Left out: the price of `usage` with `model`, or else unknown, where dollars are kept.
        calls : int, default 1
            How many calls it was.
        model : str, optional
            The model that was called.
        usage : Usage, optional
            What the provider stated.
        key : str, optional
            Makes the request safe to repeat.

        Returns
        -------
        Settlement
            How it was booked; under a repeated key, how it was the first time.

        Raises
        ------
        OverrunError
            More was spent than that covers (a `BudgetExceededError`). It is booked all the same.
        """
        if usage is not None and _states_something(usage):
            tokens = usage.tokens or 0
        tokens = check_amount("tokens", tokens)
        calls = check_amount("calls", calls)
        nano = None if usd is None else nano_dollars("usd", usd)
        if confidence is not None:
            confidence = check_fraction("confidence", confidence)
        stated = attrs.astuple(usage) if usage and nano is None else ()  # prices may change
        content = ("record_usage", agent_name, tokens, note, confidence, nano, calls, model, *stated)
        guessed = False  # whether the dollars are an estimate
        if nano is None and usage is not None:
            price = self._price_if_known(model) or self._assumed_price()
            nano = None if price is None or usage.tokens is None else price.cost(usage)
        elif nano is None and tokens:
            price = None if model is None else self._price_if_known(model) or self._assumed_price()
            nano = None if price is None else price.dearest(tokens)
            guessed = nano is not None
        with self._lock:
            ledger, now = self.ledger, self.ledger.look()
            settlement: Settlement | None = ledger.answers.recall(key, content)
            if settlement is None:
                books = self._open_books(agent_name)
                unpriced = 1 if nano is None and (tokens or calls) else 0
                spent = lifecycle.as_usage(ledger, books, tokens, nano, calls, unpriced, guessed=guessed)
                settlement = lifecycle.book_usage(ledger, spent, now, note=note, key=key, model=model)
                if confidence is not None:
                    self._note_confidence(books, confidence)
                self._remember(key, content, settlement)
        self._tell()
        self.raise_overrun(settlement)
        return settlement

    def raise_overrun(self, settlement: Settlement) -> None:
        """Raise `OverrunError` if more was spent than could be covered; not in audit mode."""
        if settlement.unpaid is not None and self._mode == "enforce":
            axis, amount, overrun = settlement.unpaid
            raise OverrunError(settlement.agent_name, amount, amount - overrun, settlement, axis)


def _check_nano(nano: int) -> int:
    """Return nano-dollars that the books can hold; more are refused as the dollars that they are."""
    if 0 <= nano <= MAX_AMOUNT:
        return nano
    from tbc.money import to_usd

    return nano_dollars("usd", to_usd(nano))


def _states_something(usage: object) -> bool:
    """Return whether a usage states any tokens; what is no `Usage` is refused."""
    from tbc.usage import Usage

    if not isinstance(usage, Usage):
        raise InvalidAmountError("usage", usage, "a tbc.Usage, such as tbc.usage.read_usage() returns")
    return usage.tokens is not None


def _ceiling(price: Price, input_tokens: int) -> Callable[[int], int]:
    """Return what a call with that input costs at most, by its tokens in all."""
    return lambda tokens: price.ceiling(min(tokens, input_tokens), max(0, tokens - input_tokens))


def _hold_again(answer: Hold | Decision) -> Hold:
    """Answer a repeated request as it was answered first."""
    if isinstance(answer, Hold):
        return answer
    raise lifecycle.refusal(answer)
