"""*Predicted vs measured*, as Markdown."""

from collections.abc import Sequence
from typing import Any

from vljax.bench.forecast import Rates, Row, basis, verdict

HEAD = (
    "strategy",
    "mesh",
    "clips/device",
    "predicted ms",
    "measured ms (least – most)",
    "off by",
    "processor s",
    "GiB predicted / measured",
    "in collectives ms",
    "compiled in",
)


def told(rows: Sequence[Row], rates: Rates | None) -> str:
    """The verdict first, the table, and what it rests on."""
    return "\n\n".join(
        filter(None, [verdict(rows, rates), table(rows, rates), *notes(rows, rates)])
    )


def table(rows: Sequence[Row], rates: Rates | None) -> str:
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    fitted = rates.rows if rates else ()
    cells = [_cells(row, i in fitted) for i, row in enumerate(rows)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells)])


def notes(rows: Sequence[Row], rates: Rates | None) -> list[str]:
    """What the figures are."""
    ran = [r["measured"] for r in rows if r["measured"]]
    if not ran:
        return []
    found = [
        basis(rows, rates) or "Predicted: the longest term of the bound by stated rates, see plan.",
        f"Measured: medians of {ran[0]['steps']} steps; in collectives: a step's, traced, of a "
        "device in the mean, waiting for the others included.",
    ]
    if ran[0]["memory_gib"] is None:
        found.append("GiB: the compiler's peak a device; these devices keep no account of theirs.")
    else:
        found.append("GiB: the compiler's peak a device, and the highest that the device counted.")
    return found


def _cells(row: Row, fitted: bool) -> tuple[str, ...]:
    mesh = " × ".join(f"{a} {n}" for a, n in row["mesh"].items() if n > 1)
    start = (row["strategy"], mesh or "–", str(row["batch_per_device"]))
    if row["same_as"]:
        return *start, f"the same program as {row['same_as']} here", *["–"] * (len(HEAD) - 4)
    if not row["fits"]:
        return *start, f"no: {row['reason']}", *["–"] * (len(HEAD) - 4)
    span, memory = row["measured"], row["measured"]["memory_gib"]
    low, median, high = (f"{1e3 * span[n]:,.0f}" for n in ("least_s", "median_s", "most_s"))
    predicted = row["predicted_s"]
    return (
        *start,
        f"{1e3 * predicted:,.0f}" if predicted else "–",
        f"{median} ({low} – {high})",
        "fitted" if fitted else f"{predicted / span['median_s'] - 1:+.0%}" if predicted else "–",
        f"{span['cpu_s']:.2f}",
        f"{row['hbm_gib']['peak']:.3f} / {'–' if memory is None else f'{memory:.3f}'}",
        _milliseconds(span["collectives_s"]),
        f"{row['compile_s']:.0f} s",
    )


def _milliseconds(seconds: Any) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:,.0f}"
