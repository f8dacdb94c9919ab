"""Rates from two rows, the order of the others, and what is told of it; on made-up figures."""

import pytest

from vljax.bench.forecast import amounts, basis, fit, foretell, rank_correlation, verdict

FLOP, BYTE, STRETCH = 3e-11, 5e-10, 0.6
CALL, CALL_WORK = 2e-3, 3e-3
MIB = 2**20


def row(strategy, batch, flops, written, sent, times=1.0, calls=7):
    """A row that took what the rates above say, ``times`` as long."""
    collectives = [{"kind": "all-gather", "axis": "fsdp", "count": calls, "bytes": sent}]
    made = {
        "strategy": strategy,
        "batch_per_device": batch,
        "backend": "cpu",
        "mesh": {"data": 2, "fsdp": 4},
        "flops_compiled_per_device": flops,
        "bytes_written_per_device": written,
        "collectives": collectives,
        "bound_s": None,
    }
    work = 8 * (FLOP * flops + BYTE * (written + sent)) * times
    wall, spent = STRETCH * work + calls * CALL, work + calls * CALL_WORK
    span = {"median_s": wall, "work_s": spent, "cpu_s": spent, "call_s": CALL}
    span |= {"least_s": 0.9 * wall, "most_s": 2 * wall, "steps": 3, "call_work_s": CALL_WORK}
    return made | {"measured": span}


def rows(*times):
    """dp and tp at 4 are furthest apart in bytes a FLOP; ``times``: of the four between."""
    between = [("dp", 1), ("fsdp", 1), ("fsdp", 2), ("tp", 1)]
    return [
        row("dp", 4, 4 * 10**9, 20 * MIB, MIB),
        *(
            row(name, batch, batch * 10**9, batch * 10 * MIB, i * 5 * MIB, t)
            for i, ((name, batch), t) in enumerate(zip(between, times, strict=True))
        ),
        row("tp", 4, 4 * 10**9, 400 * MIB, 90 * MIB),
    ]


def test_rates_are_those_of_the_two_rows_and_no_other_is_looked_at():
    for times in ((1, 1, 1, 1), (0.2, 3, 0.5, 9)):
        rates = fit(rows(*times), range(6))
        assert rates[:4] == pytest.approx((FLOP, BYTE, STRETCH, CALL))
        assert rates.rows == (0, 5)
    told, rates = foretell(rows(1, 1, 1, 1))
    for made in told:
        assert made["predicted_s"] == pytest.approx(made["measured"]["median_s"])
    assert "dp at 4 and tp at 4: 30 ps a FLOP and 0.5 ns a byte" in basis(told, rates)


def test_no_rate_is_negative():
    made = rows(1, 1, 1, 1)
    made[5]["measured"]["work_s"] /= 100  # many more bytes in no time at all
    rates = fit(made, range(6))
    assert rates.byte == 0
    assert rates.flop > 0


def test_replicated_work_counts_on_every_device():
    assert amounts(row("dp", 1, 10, 20, 3)) == (80, 184)


def test_stated_rates_go_before_fitted_ones_and_what_did_not_run_has_no_prediction():
    made = [r | {"bound_s": {"low": 0.1 * i}} for i, r in enumerate(rows(1, 1, 1, 1), 1)]
    made.append({"measured": None, "bound_s": None})
    told, rates = foretell(made)
    assert rates is None
    assert [r["predicted_s"] for r in told] == [
        *(pytest.approx(0.1 * i) for i in range(1, 7)),
        None,
    ]
    assert basis(told, rates) == ""


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3], [10, 20, 99], 1),
        ([1, 2, 3], [3, 2, 1], -1),
        ([1, 2, 3], [1, 3, 2], 0.5),
        ([1, 2, 2, 3], [1, 2, 2, 3], 1),  # ties share a rank
        ([1, 2], [1, 2], None),
        ([1, 1, 1], [1, 2, 3], None),
    ],
)
def test_rank_correlation(first, second, expected):
    assert rank_correlation(first, second) == (
        None if expected is None else pytest.approx(expected)
    )


def test_the_verdict_leaves_the_fitted_rows_out_and_names_what_is_furthest_off():
    good = verdict(*foretell(rows(1, 1, 1, 1)))
    assert "over 4 rows: 1.00 (with the processor's time: 1.00)" in good
    assert good.endswith("by clips a device: 1.00 at 1.")
    bad = verdict(*foretell(rows(9, 1, 0.8, 0.7)))
    assert "Below 0.9: it is furthest off at dp at 1 (-88%; 7 collectives; its steps" in bad


def test_a_collective_takes_its_time_whatever_it_sends():
    made = [*rows(1, 1, 1, 1), row("fsdp_tp", 1, 10**9, 10 * MIB, 5 * MIB, calls=500)]
    told, rates = foretell(made)
    assert told[6]["predicted_s"] == pytest.approx(made[6]["measured"]["median_s"])
    assert told[6]["predicted_s"] - told[2]["predicted_s"] == pytest.approx((500 - 7) * CALL)
    assert "and 2.00 ms a collective" in basis(told, rates)


def test_a_step_is_not_all_collectives_however_slow_one_is_alone():
    made = rows(1, 1, 1, 1)
    for one in made:
        one["measured"] |= {"call_s": 9, "call_work_s": 9}
    assert fit(made, range(6)).stretch > 0
