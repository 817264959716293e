"""`tbc.clear`: cases solved by hand, degenerate shapes, and every argument that must be refused."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from tbc.clearing import Clearing, clear
from tbc.errors import InvalidAmountError, TBCError

LARGEST = 2**53 - 1


def transfers(answer: Clearing) -> list[tuple[int, int, int]]:
    columns = (answer.donors, answer.recipients, answer.amounts)
    return list(zip(*(column.tolist() for column in columns), strict=True))


# ------------------------------------------------------------------------------------ solved by hand


def test_lowest_priority_gives_first_and_highest_receives_first():
    answer = clear([1, 2, 3, 3], [50, 80, 0, 0], [0, 0, 0, 0], [0, 0, 70, 30])
    assert transfers(answer) == [(0, 2, 50), (1, 2, 20), (1, 3, 30)]
    assert answer.given.tolist() == [50, 50, 0, 0]
    assert answer.received.tolist() == [0, 0, 70, 30]
    assert answer.bottleneck is None


def test_a_more_important_donor_gives_nothing_to_a_less_important_agent():
    answer = clear([5, 1], [100, 0], [0, 0], [0, 40])
    assert transfers(answer) == []
    assert answer.unmet.tolist() == [0, 40]
    assert answer.bottleneck == 1


def test_equal_priority_may_give():
    assert transfers(clear([4, 4], [100, 0], [0, 0], [0, 40])) == [(0, 1, 40)]


def test_the_reserve_stays():
    answer = clear([1, 2], [100, 0], [70, 0], [0, 40])
    assert answer.given.tolist() == [30, 0]
    assert answer.unmet.tolist() == [0, 10]


def test_a_reserve_above_what_remains_leaves_nothing_and_takes_nothing():
    assert transfers(clear([1, 1, 2], [10, 5, 0], [90, 0, 0], [0, 0, 9])) == [(1, 2, 5)]


def test_an_agent_with_demand_gives_nothing_although_it_has_something():
    answer = clear([1, 2], [100, 0], [0, 0], [1, 50])
    assert transfers(answer) == []
    assert answer.unmet.tolist() == [1, 50]


def test_one_clearing_serves_both_where_one_by_one_would_strand_a_donor():
    """The high recipient must leave the low donor alone as far as the low recipient needs it."""
    answer = clear([1, 3, 1, 3], [60, 60, 0, 0], [0, 0, 0, 0], [0, 0, 60, 60])
    assert transfers(answer) == [(0, 2, 60), (1, 3, 60)]


def test_the_higher_level_is_full_before_the_lower_gets_anything():
    answer = clear([1, 2, 3], [100, 0, 0], [0, 0, 0], [0, 30, 90])
    assert answer.received.tolist() == [0, 10, 90]
    assert answer.level_served.tolist() == [0, 10, 90]
    assert answer.level_unmet.tolist() == [0, 20, 0]


def test_a_level_served_in_part_is_split_evenly_and_small_demands_are_met():
    answer = clear([1, 2, 2, 2], [100, 0, 0, 0], [0] * 4, [0, 10, 80, 90])
    assert answer.received.tolist() == [0, 10, 45, 45]


def test_left_over_single_tokens_go_to_the_lower_index():
    answer = clear([1, 2, 2, 2], [101, 0, 0, 0], [0] * 4, [0, 60, 60, 60])
    assert answer.received.tolist() == [0, 34, 34, 33]


def test_fewer_tokens_than_askers_go_to_the_first():
    answer = clear([1, 2, 2, 2], [2, 0, 0, 0], [0] * 4, [0, 9, 9, 9])
    assert transfers(answer) == [(0, 1, 1), (0, 2, 1)]


def test_inside_a_level_confident_then_most_remaining_then_lower_index():
    answer = clear(
        [1, 1, 1, 1, 2],
        [50, 90, 90, 20, 0],
        [0, 80, 0, 0, 0],
        [0, 0, 0, 0, 125],
        confident=[False, False, False, True, False],
    )
    assert transfers(answer) == [(3, 4, 20), (1, 4, 10), (2, 4, 90), (0, 4, 5)]


def test_fully_drained_levels_are_listed_by_index():
    answer = clear([1, 1, 2, 2, 2], [5, 9, 3, 7, 0], [0] * 5, [0, 0, 0, 0, 20])
    assert transfers(answer) == [(0, 4, 5), (1, 4, 9), (3, 4, 6)]


def test_an_exact_fit_drains_everybody_and_leaves_no_bottleneck():
    answer = clear([1, 2, 3], [30, 20, 0], [0, 0, 0], [0, 0, 50])
    assert answer.given.tolist() == [30, 20, 0]
    assert answer.bottleneck is None


def test_the_bottleneck_may_lie_above_the_level_that_is_short():
    """A token at level 3 would free the token that level 1 lends to it."""
    answer = clear([1, 1, 3], [10, 0, 0], [0, 0, 0], [0, 10, 10])
    assert answer.level_unmet.tolist() == [10, 0]
    assert answer.bottleneck == 3


def test_supply_that_is_out_of_reach_is_no_help():
    answer = clear([1, 2, 2], [0, 50, 0], [0, 0, 0], [10, 0, 10])
    assert answer.level_unmet.tolist() == [10, 0]
    assert answer.bottleneck == 1


def test_levels_are_the_distinct_priorities_of_all_agents():
    answer = clear([7, 0, 7, 3], [0, 0, 0, 0], [0] * 4, [0, 0, 5, 0])
    assert answer.levels.tolist() == [0, 3, 7]
    assert answer.level_demand.tolist() == [0, 0, 5]


def test_the_answer_is_frozen():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        clear([], [], [], []).bottleneck = 3  # type: ignore[misc]


# ---------------------------------------------------------------------------------- degenerate shapes


def test_nobody_at_all():
    answer = clear([], [], [], [], confident=[])
    for field in attrs.fields(Clearing):
        if field.name != "bottleneck":
            array = getattr(answer, field.name)
            assert (array.shape, array.dtype) == ((0,), np.dtype(np.int64)), field.name
    assert answer.bottleneck is None


@pytest.mark.parametrize(
    ("priority", "remaining", "demand", "unmet", "bottleneck"),
    [
        ([1], [5], [0], [0], None),
        ([1], [5], [3], [3], 1),
        ([0], [0], [0], [0], None),
        ([1, 2], [9, 9], [0, 0], [0, 0], None),
        ([1, 2], [0, 0], [4, 0], [4, 0], 1),
        ([1, 2, 3], [9, 9, 9], [1, 2, 3], [1, 2, 3], 3),
    ],
    ids=["lone donor", "lone asker", "nothing", "no demand", "no supply", "all needy"],
)
def test_no_transfers_where_one_side_is_missing(priority, remaining, demand, unmet, bottleneck):
    answer = clear(priority, remaining, [0] * len(priority), demand)
    assert transfers(answer) == []
    assert answer.unmet.tolist() == unmet
    assert answer.bottleneck == bottleneck


def test_the_largest_numbers_are_exact():
    top = 2**63 - 1
    answer = clear([top - 1, top - 1, top], [LARGEST, LARGEST, 0], [1, 0, 0], [0, 0, LARGEST])
    assert transfers(answer) == [(0, 2, LARGEST - 1), (1, 2, 1)]
    assert answer.levels.tolist() == [top - 1, top]


def test_totals_just_below_two_to_the_63_are_exact():
    n = 2**10
    answer = clear([1] * n + [2] * n, [LARGEST] * n + [0] * n, [0] * 2 * n, [0] * n + [LARGEST] * n)
    assert answer.received.tolist() == [0] * n + [LARGEST] * n
    assert int(answer.level_served[1]) == n * LARGEST


# -------------------------------------------------------------------------------------- conversions


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", ">i4", ">i8", ">u8"]
)
def test_every_integer_dtype_is_converted_exactly(dtype):
    columns = [np.array(column, dtype=dtype) for column in ([1, 2, 2], [100, 7, 0], [3, 0, 0], [0, 0, 120])]
    assert transfers(clear(*columns)) == [(0, 2, 97), (1, 2, 7)]


def test_python_sequences_and_numpy_scalars_are_accepted():
    answer = clear((1, 2), [np.uint64(40), 0], range(2), (0, np.int8(9)), confident=(True, False))
    assert transfers(answer) == [(0, 1, 9)]


def test_strided_and_read_only_arrays_are_accepted():
    table = np.array([[1, 100, 0, 0], [9, 0, 0, 0], [2, 0, 0, 60]])
    table.setflags(write=False)
    assert transfers(clear(*table[::2].T)) == [(0, 1, 60)]


def test_the_answer_shares_no_memory_with_the_arguments():
    columns = [np.array(column) for column in ([1, 2], [100, 0], [0, 0], [0, 60])]
    answer = clear(*columns)
    for field in attrs.fields(Clearing):
        if field.name != "bottleneck":
            assert not any(np.shares_memory(getattr(answer, field.name), column) for column in columns)


# -------------------------------------------------------------------------------------------- refusals

NAMES = ("priority", "remaining", "min_reserve", "demand")


def clear_with(name: str, value: object) -> Clearing:
    columns: dict[str, object] = {key: np.array([1, 2, 3]) for key in NAMES} | {name: value}
    return clear(**columns)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.array([1, -2, 3]), "-2"),
        ([1, -2, 3], "-2"),
        (np.array([1, 2, 2**63 + 5], dtype=np.uint64), str(2**63 + 5)),
        ([1, 2, 2**63], str(2**63)),
        ([1, 2, 2**70], str(2**70)),
        ([1, -(2**70), 3], str(-(2**70))),
        (np.array([1.5, 2.0, 3.0]), "1.5"),
        ([1, 2.5, 3], "2.5"),
        (np.array([1.0, np.nan, 3.0]), "nan"),
        ([1, float("nan"), 3], "nan"),
        ([1, float("inf"), 3], "inf"),
        (np.array([True, False, True]), "True"),
        ([1, True, 3], "True"),
        ([1, np.True_, 3], "True"),
        (np.array([1, 2, 3], dtype=object), "object"),
        ([1, "2", 3], "'2'"),
        (["1", "2", "3"], "'1'"),
        ("123", "'123'"),
        (b"123", "b'123'"),
        (np.array(["1", "2", "3"]), "'2'"),
        ([1, None, 3], "None"),
        (None, "None"),
        (7, "()"),
        ([[1, 2, 3]], "[1, 2, 3]"),
        (np.array([1 + 2j, 2, 3]), "1.+2.j"),
        (np.array([[1, 2, 3]]), "(1, 3)"),
        (np.array(7), "()"),
        (np.array(["2026-01-01"] * 3, dtype="datetime64[D]"), "2026-01-01"),
        ({1, 2, 3}, "{1, 2, 3}"),
    ],
    ids=repr,
)
def test_what_is_no_amount_is_refused_with_the_number(name, value, text):
    with pytest.raises(InvalidAmountError) as caught:
        clear_with(name, value)
    assert text in str(caught.value)
    assert str(caught.value).startswith(name)
    assert isinstance(caught.value, (TBCError, ValueError))


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("convert", [list, np.array, lambda x: np.array(x, dtype=np.uint64)])
def test_an_amount_of_two_to_the_53_is_refused_and_one_less_is_not(name, convert):
    clear_with(name, convert([0, LARGEST, 0]))
    with pytest.raises(InvalidAmountError, match=rf"{name}\[1\] must be .* 2\*\*53 - 1, not {LARGEST + 1}$"):
        clear_with(name, convert([0, LARGEST + 1, 0]))


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("value", [np.array([1, 2]), [1, 2, 3, 4], [], np.zeros((3, 1), dtype=int)])
def test_arrays_of_another_shape_are_refused_with_both_shapes(name, value):
    with pytest.raises(InvalidAmountError) as caught:
        clear_with(name, value)
    assert str(caught.value) == f"{name} must be an array of shape (3,), like priority, not {np.shape(value)}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([0, 1, 0], "[0, 1, 0]"),
        (np.array([0, 1, 0]), "0, 1, 0"),
        ([0.0, 1.0, float("nan")], "nan"),
        ([True, 1, False], "1"),
        (np.array([True, False]), "(2,)"),
        (np.array([[True, False, True]]), "(1, 3)"),
        (True, "()"),
        ("yes", "'yes'"),
        ([], "(0,)"),
    ],
    ids=repr,
)
def test_confident_must_be_bools_one_for_each_agent(value, text):
    with pytest.raises(InvalidAmountError) as caught:
        clear_with("confident", value)
    assert text in str(caught.value)
    assert str(caught.value).startswith("confident")


@pytest.mark.parametrize(("name", "side"), [("total supply", 1), ("total demand", 3)])
def test_a_total_of_two_to_the_63_is_refused_and_never_wraps(name, side):
    n = 2**10 + 1
    columns = [np.ones(n, dtype=np.int64), *np.zeros((3, n), dtype=np.int64)]
    columns[side][:] = LARGEST
    columns[side][0] = 2**10 - 1
    total = n * LARGEST - LARGEST + 2**10 - 1
    assert total == 2**63 - 1
    clear(*columns)
    columns[side][0] += 1
    with pytest.raises(InvalidAmountError, match=rf"^{name} must be below 2\*\*63, not {total + 1}$"):
        clear(*columns)


def test_the_first_offender_of_a_long_array_is_named():
    remaining = np.zeros(100_000, dtype=np.int64)
    remaining[[70_001, 90_000]] = -5
    zeros = np.zeros_like(remaining)
    with pytest.raises(InvalidAmountError, match=r"^remaining\[70001\] must be .* not -5$"):
        clear(zeros, remaining, zeros, zeros)
