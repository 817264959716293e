"""The donor index: who can lend, found without looking at everybody.

One index serves one market (the children of one parent). It orders donors as the clearing does (lowest
priority first; inside a priority confident agents first, then most remaining, then registration order) and
knows, for every priority, how much the agents up to it can lend together: now, and if every open hold
were voided.

The books only note *that* an account has changed (`Books.touch`, one flag and one append); the index catches
up when somebody is short. With L distinct priorities among n agents, catching up costs O(log n + log L)
per changed account, a sum O(log L), and finding k donors O(k log n).

The same answers come from `tbc.clear` with one needy agent; a property test compares them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tbc.ledger import Books

__all__ = ["DonorIndex"]

# (gate open, -remaining, registration order, books): the smallest drains first. Orders are distinct, so
# that books are never compared.
_Entry = tuple[bool, int, int, "Books"]


class _PrefixSums:
    """Sums over the first i of m numbers, changeable in O(log m) (a Fenwick tree)."""

    __slots__ = ("_tree",)

    def __init__(self, values: list[int]) -> None:
        tree = [0, *values]
        for i in range(1, len(tree)):
            above = i + (i & -i)
            if above < len(tree):
                tree[above] += tree[i]
        self._tree = tree

    def add(self, index: int, change: int) -> None:
        tree, i = self._tree, index + 1
        while i < len(tree):
            tree[i] += change
            i += i & -i

    def first(self, count: int) -> int:
        """Return the sum of the first `count` values."""
        tree, total = self._tree, 0
        while count:
            total += tree[count]
            count &= count - 1
        return total

    def index_above(self, total: int) -> int:
        """Return the smallest index whose inclusive prefix sum exceeds `total`."""
        tree, position = self._tree, 0
        step = 1 << (len(tree) - 1).bit_length()
        while step:
            probe = position + step
            if probe < len(tree) and tree[probe] <= total:
                position = probe
                total -= tree[probe]
            step >>= 1
        return position


class DonorIndex:
    """Donors of one market by priority and idleness.

    Parameters
    ----------
    parent : Books
        Whose children the market is. While the index changes, its `index` is ``None``: what is interrupted
        by an exception out of a signal handler is not used again, and a new one is made.
    """

    __slots__ = (
        "_compact_at",
        "_heaps",
        "_idle",
        "_idle_of",
        "_levels",
        "_parent",
        "_spare",
        "_spare_of",
        "stale",
    )

    def __init__(self, parent: Books) -> None:
        children = parent.children or []
        self._parent = parent
        self._levels: list[int] = []
        self._heaps: list[list[_Entry]] = []
        self._compact_at: list[int] = []
        self._spare_of: list[int] = []
        self._idle_of: list[int] = []
        self._spare = _PrefixSums([])
        self._idle = _PrefixSums([])
        #: Accounts that have changed since the last look.
        self.stale = list(children)
        for books in children:
            books.stale = True
            books.indexed_spare = books.indexed_idle = 0
            books.donor_entry = None

    # -- queries: call `refresh` first ---------------------------------------------------------------

    def lendable(self, priority: int) -> int:
        """Return the spare of all agents of at most `priority`."""
        return self._spare.first(bisect_right(self._levels, priority))

    def lendable_when_idle(self, priority: int) -> int:
        """Return the same if every open hold were voided."""
        return self._idle.first(bisect_right(self._levels, priority))

    def drain(self, amount: int) -> list[tuple[Books, int]]:
        """Return donors and amounts in drain order, `amount` in all (at most what `lendable` says)."""
        found: list[tuple[Books, int]] = []
        taken = 0
        self._parent.index = None
        while taken < amount:
            heap = self._heaps[self._spare.index_above(taken)]
            looked_at: list[_Entry] = []
            while heap and taken < amount:
                entry = heappop(heap)
                donor = entry[3]
                if donor.donor_entry is not entry:
                    continue  # outdated: the account has changed since
                looked_at.append(entry)
                part = min(donor.indexed_spare, amount - taken)
                found.append((donor, part))
                taken += part
            for entry in looked_at:
                heappush(heap, entry)
        self._parent.index = self
        return found

    # -- upkeep --------------------------------------------------------------------------------------

    def refresh(self, asker: Books | None = None) -> None:
        """Catch up with every changed account, and leave out `asker` until it is refreshed again."""
        self._parent.index = None
        if self.stale:
            self._add_levels({books.priority for books in self.stale}.difference(self._levels))
            for books in self.stale:
                books.stale = False
                self._index(books, books.spare, books.spare_when_idle)
            self.stale.clear()
        if asker is not None and (asker.indexed_spare or asker.indexed_idle):
            self._index(asker, 0, 0)
            asker.stale = True
            self.stale.append(asker)
        self._parent.index = self

    def forget(self, books: Books) -> None:
        """Take an account out of its level, before its priority changes."""
        self._parent.index = None
        self._index(books, 0, 0)
        self._parent.index = self

    def remove(self, books: Books) -> None:
        """Take an account out for good."""
        self._parent.index = None
        self._index(books, 0, 0)
        if books.stale:
            self.stale = [known for known in self.stale if known is not books]
        self._parent.index = self

    def _index(self, books: Books, spare: int, idle: int) -> None:
        rank = bisect_left(self._levels, books.priority)
        if spare != books.indexed_spare:
            self._spare_of[rank] += spare - books.indexed_spare
            self._spare.add(rank, spare - books.indexed_spare)
            books.indexed_spare = spare
        if idle != books.indexed_idle:
            self._idle_of[rank] += idle - books.indexed_idle
            self._idle.add(rank, idle - books.indexed_idle)
            books.indexed_idle = spare if idle == spare else idle  # one int object where one will do
        if not spare:
            books.donor_entry = None
            return
        books.donor_entry = (not books.gate_closed, -books.remaining, books.order, books)
        heap = self._heaps[rank]
        heappush(heap, books.donor_entry)
        if len(heap) > self._compact_at[rank]:
            heap[:] = [entry for entry in heap if entry[3].donor_entry is entry]
            heapify(heap)
            self._compact_at[rank] = 2 * len(heap) + 64

    def _add_levels(self, priorities: set[int]) -> None:
        if not priorities:
            return
        known = dict(zip(self._levels, zip(self._heaps, self._compact_at, strict=True), strict=True))
        spare = dict(zip(self._levels, self._spare_of, strict=True))
        idle = dict(zip(self._levels, self._idle_of, strict=True))
        self._levels = sorted([*self._levels, *priorities])
        self._heaps = [known[level][0] if level in known else [] for level in self._levels]
        self._compact_at = [known[level][1] if level in known else 64 for level in self._levels]
        self._spare_of = [spare.get(level, 0) for level in self._levels]
        self._idle_of = [idle.get(level, 0) for level in self._levels]
        self._spare = _PrefixSums(self._spare_of)
        self._idle = _PrefixSums(self._idle_of)
