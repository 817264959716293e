"""The conformance kit: check your own agents and stores with the tests that the library holds itself to.

Needs the ``testing`` extra (Hypothesis): ``pip install "tbc[testing]"``. The library never imports it.

* `check_books` and `check_step` check the promises on any manager, at one moment and over one step. Put
  `check_books` at the end of your agents' tests.
* `BudgetMachine` drives a manager through random histories beside `BooksModel`, an independent model in
  plain dicts, and compares them after every step. Subclass it for a manager over your own store.
* `amounts`, `contracts`, `trees` and `markets` are Hypothesis strategies.
* `FakeModel` is a scripted provider.

Examples
--------
>>> import tbc
>>> manager = tbc.BudgetManager(max_tokens=1_000, counter=tbc.tokens.EstimateCounter())
>>> contract = manager.register_agent("writer", max_tokens=0)
>>> model = FakeModel([40])
>>> ask = manager.govern("writer", max_output_tokens=100)(model)
>>> ask("a prompt of five words")["usage"]["total_tokens"]
45
>>> manager.report()["writer"]["consumed"], model.calls
(45, 1)
>>> check_books(manager)
"""

from __future__ import annotations

from tbc.testing.books_model import BooksModel
from tbc.testing.fakes import FakeModel
from tbc.testing.invariants import Snapshot, check_books, check_step
from tbc.testing.machine import BudgetMachine
from tbc.testing.side_by_side import SideBySide, TwinHold
from tbc.testing.strategies import amounts, contracts, markets, trees
from tbc.testing.tree_model import Misuse

__all__ = [
    "BooksModel",
    "BudgetMachine",
    "FakeModel",
    "Misuse",
    "SideBySide",
    "Snapshot",
    "TwinHold",
    "amounts",
    "check_books",
    "check_step",
    "contracts",
    "markets",
    "trees",
]
