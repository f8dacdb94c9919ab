"""How long a step takes by what it does, and how far from the truth that is.

Where the maker of the devices states rates they bound it. Elsewhere, as on virtual devices that
share a processor's cores, two measured steps give the rates for all others: there a step takes as
long as what all devices compute together, replicated work included, and as its collectives would
if there were nothing to send.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Row = Mapping[str, Any]
GOOD = 0.9  # a rank correlation
WORST = 3  # rows that are told where it is lower


class Rates(NamedTuple):
    """Seconds of work a FLOP and a byte, of all devices; seconds that a second of work takes.

    Bytes are what kernels write and collectives send: both go through the same memory. Work is time
    of the processor where the devices are its own: what else runs there lengthens a step, but not
    its work. ``call``: seconds of a collective whatever its size, measured apart from all rows.
    ``rows``: the places of the two that gave the rates.
    """

    flop: float
    byte: float
    stretch: float
    call: float
    rows: tuple[int, int]


def foretell(rows: Sequence[Row]) -> tuple[list[dict[str, Any]], Rates | None]:
    """The rows with ``predicted_s``: the bound's, or by rates fitted on two of them."""
    ran = [i for i, row in enumerate(rows) if row["measured"]]
    bounded = all(rows[i]["bound_s"] for i in ran)
    rates = None if bounded or len(ran) < 2 else fit(rows, ran)

    def predicted(row: Row) -> float | None:
        if not row["measured"]:
            return None
        return seconds(rates, row) if rates else row["bound_s"] and row["bound_s"]["low"]

    return [{**row, "predicted_s": predicted(row)} for row in rows], rates


def fit(rows: Sequence[Row], ran: Sequence[int]) -> Rates:
    """Rates of the two rows that differ most in bytes a FLOP, found before a time is looked at."""
    from scipy.optimize import nnls

    ran = sorted(ran, key=lambda i: amounts(rows[i])[1] / amounts(rows[i])[0])
    pair = ran[0], ran[-1]
    work = np.array([_without_calls(rows[i], "work_s", "call_work_s") for i in pair])
    times = np.array([_without_calls(rows[i], "median_s", "call_s") for i in pair])
    # Divided by the work, so that both count alike.
    found, _ = nnls(np.array([amounts(rows[i]) for i in pair]) / work[:, None], np.ones(2))
    # What else runs may have lengthened one of the two.
    stretch, call = float((times / work).min()), rows[pair[0]]["measured"]["call_s"]
    return Rates(float(found[0]), float(found[1]), stretch, call, pair)


def _without_calls(row: Row, of: str, call: str) -> float:
    """A positive time: collectives that follow one another faster than alone can't be all of it."""
    spent = row["measured"][of]
    return max(spent - calls(row) * row["measured"][call], spent / 10)


def calls(row: Row) -> int:
    """How many collectives a step has."""
    return sum(c["count"] for c in row["collectives"])


def amounts(row: Row) -> tuple[float, float]:
    """(FLOPs, bytes) of a step on all devices."""
    devices = math.prod(row["mesh"].values())
    moved = row["bytes_written_per_device"] + sum(c["bytes"] for c in row["collectives"])
    return devices * row["flops_compiled_per_device"], devices * moved


def seconds(rates: Rates, row: Row) -> float:
    flops, moved = amounts(row)
    work = rates.flop * flops + rates.byte * moved
    return work * rates.stretch + rates.call * calls(row)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's; None of fewer than three pairs, or where one side is all equal."""
    from scipy.stats import spearmanr

    if len(first) < 3 or len({*first}) == 1 or len({*second}) == 1:
        return None
    return float(spearmanr(first, second).statistic)


def verdict(rows: Sequence[Row], rates: Rates | None) -> str:
    """How the order of the predictions agrees with the measured one, and where it does not.

    The rows that gave the rates are left out.
    """
    fitted = rates.rows if rates else ()
    judged = [
        r for i, r in enumerate(rows) if r["measured"] and r["predicted_s"] and i not in fitted
    ]
    found = _correlation(judged, "median_s")
    if found is None:
        return f"{len(judged)} rows to compare: too few for a rank correlation."
    text = f"Rank correlation of predicted and measured time over {len(judged)} rows: {found:.2f}"
    if judged[0]["backend"] == "cpu":
        text += f" (with the processor's time: {_correlation(judged, 'cpu_s'):.2f})"
    batches = {r["batch_per_device"]: True for r in judged}
    alone = {b: _correlation([r for r in judged if r["batch_per_device"] == b]) for b in batches}
    told = [f"{c:.2f} at {b}" for b, c in alone.items() if c is not None]
    if len(batches) > 1 and told:
        text += f"; of the strategies alone, by clips a device: {', '.join(told)}"
    if found >= GOOD:
        return text + "."
    worst = sorted(judged, key=lambda r: -abs(math.log(_off(r))))[:WORST]
    return f"{text}. Below {GOOD}: it is furthest off at {'; '.join(map(_outlier, worst))}."


def _correlation(rows: Sequence[Row], of: str = "median_s") -> float | None:
    return rank_correlation([r["predicted_s"] for r in rows], [r["measured"][of] for r in rows])


def _off(row: Row) -> float:
    return row["predicted_s"] / row["measured"]["median_s"]


def named(row: Row) -> str:
    """ "fsdp at 2"."""
    return f"{row['strategy']} at {row['batch_per_device']}"


def _outlier(row: Row) -> str:
    span = row["measured"]
    return (
        f"{named(row)} ({_off(row) - 1:+.0%}; {calls(row)} collectives; its steps took from "
        f"{1e3 * span['least_s']:.0f} to {1e3 * span['most_s']:.0f} ms)"
    )


def basis(rows: Sequence[Row], rates: Rates | None) -> str:
    """What the predictions rest on, where that is two of the rows."""
    if rates is None:
        return ""
    first, last = (named(rows[i]) for i in rates.rows)
    return (
        f"Predictions by rates from two rows, {first} and {last}: {1e12 * rates.flop:.3g} ps a "
        f"FLOP and {1e9 * rates.byte:.3g} ns a byte that a kernel writes or a collective sends, "
        f"on all devices together, times {rates.stretch:.2f}; and {1e3 * rates.call:.2f} ms a "
        "collective, as one of a few bytes takes."
    )
