"""Charts of a plan's rows: memory, bounds of the step's time, collectives, and all at a glance.

Each takes the rows, best first, and a size, and returns a matplotlib figure. Three of them are bars
of a topology's first rows, in a panel a topology.
"""

import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vljax.bench.bars import BEYOND, INK, REFUSED, Bar, Panel, Size, draw, new_figure, nothing
from vljax.bench.search import Row

FITTING, REFUSALS = 8, 4  # rows of a topology that are drawn as bars, at most
MISFIT = "does\nnot fit"


def memory(rows: Sequence[Row], size: Size) -> Any:
    """GiB of HBM a device: what the step is given, apart, and its temporaries; a line where the
    limit is. A mark shows the peak, which judges: not all is held at the same time."""
    panels = []
    for title, own in _drawn(rows):
        limit = next((r["hbm_gib"]["limit"] for r in own if r.get("hbm_gib")), None)
        told = f"{title}, of {limit:.2f} GiB" if limit else title
        panels.append(Panel(told, [_memory_bar(r, size) for r in own], limit))
    return draw(panels, size, "GiB a device", "limit", "peak")


def _memory_bar(row: Row, size: Size) -> Bar:
    label, refused = _label(row, size), not row["fits"]
    hbm = row.get("hbm_gib")
    if not hbm:
        return Bar(label, {}, "", row["reason"], refused)
    parts = dict(row.get("parts_gib") or {"arguments": hbm["arguments"]})
    peak, rest = hbm["peak"], hbm["temporaries"]
    if rest is None:  # the compiler gave up, and said how much it would need at least
        rest = max((peak or 0.0) - sum(parts.values()), 0.0)
    parts["temporaries"] = rest
    if refused and hbm["limit"]:
        parts = _cut(parts, hbm["limit"])
    note = f"{peak:.2f}" if peak else ""
    return Bar(label, parts, note, row["reason"], refused, (peak, peak) if peak else None)


def _cut(parts: dict[str, float], limit: float) -> dict[str, float]:
    """The same sum, with what is beyond the limit as a part of its own."""
    kept, room = {}, limit
    for part, length in parts.items():
        kept[part] = min(length, room)
        room -= kept[part]
    return kept | {BEYOND: sum(parts.values()) - sum(kept.values())}


def step_time(rows: Sequence[Row], size: Size) -> Any:
    """Seconds a step, bounds: the terms one after the other; a line from the longest to the sum."""
    panels = [
        Panel(title, [_time_bar(r, size) for r in own])
        for title, own in _drawn(r for r in rows if r.get("bound_s"))
    ]
    return draw(panels, size, "s a step: bounds, not measured", mark="at least – at most")


def _time_bar(row: Row, size: Size) -> Bar:
    terms = {"compute": "compute", "repeated": "repeated compute", "hbm": "HBM"}
    terms |= {"ici": "ICI or NVLink", "dcn": "network"}
    bound = row["bound_s"]
    parts = {told: bound.get(term, 0.0) for term, told in terms.items()}
    low, high = bound["low"], bound["high"]
    below = "" if row["fits"] else "does not fit"
    note = f"{low:.3g} – {high:.3g}"
    return Bar(_label(row, size), parts, note, below, not row["fits"], (low, high))


def collectives(rows: Sequence[Row], size: Size) -> Any:
    """GB that a device sends in a step, by kind; a bar for each axis of the mesh."""
    panels = [
        Panel(title, [bar for r in own for bar in _axis_bars(r, size)])
        for title, own in _drawn(r for r in rows if r.get("collectives"))
    ]
    return draw(panels, size, "GB a device sends in a step")


def _axis_bars(row: Row, size: Size) -> list[Bar]:
    axes: dict[str, dict[str, float]] = {}
    for one in row["collectives"]:
        kinds = axes.setdefault(one["axis"], {})
        kinds[one["kind"]] = kinds.get(one["kind"], 0.0) + one["bytes"] / 1e9
    ordered = sorted(axes.items(), key=lambda item: -sum(item[1].values()))
    labels = [f"over {axis}" for axis, _ in ordered]
    labels[0] = _label(row, size, labels[0])
    return [
        Bar(label, kinds, f"{sum(kinds.values()):.3g}", "", not row["fits"])
        for label, (_, kinds) in zip(labels, ordered, strict=True)
    ]


def overview(rows: Sequence[Row], size: Size) -> Any:
    """Strategies x topologies: clips/s at best a device, of the best row that fits, of any mesh."""
    if not rows:
        return nothing(size)
    strategies = list(dict.fromkeys(_base(r) for r in rows))
    topologies = list(dict.fromkeys(r["topology"] for r in rows))
    figure, axes = new_figure(size, 0.9 + 0.6 * len(strategies), [1.0])
    points = size.points - 1
    letters = int(0.8 * 72 * size.inches / len(topologies) / (0.62 * points))
    cells = [[_cell(rows, s, t, letters) for t in topologies] for s in strategies]
    rates = [[math.nan if rate is None else rate for _, rate in line] for line in cells]
    top = max((x for line in rates for x in line if x > 0), default=1.0)
    ax = axes[0]
    ax.pcolormesh(rates, cmap="cividis", vmin=0, vmax=top, edgecolors="white", linewidth=1.5)
    for (y, line), x in itertools.product(enumerate(cells), range(len(topologies))):
        text, rate = line[x]
        dark = "black" if rate is not None and rate > 0.42 * top else "white"
        colour = dark if rate is not None else (REFUSED if text == MISFIT else INK)
        place = {"ha": "center", "va": "center"}
        ax.text(x + 0.5, y + 0.5, text, color=colour, fontsize=points, **place)
    turned = {"rotation": 30, "ha": "left"} if max(map(len, topologies)) > letters else {}
    ax.set_xticks([i + 0.5 for i in range(len(topologies))], topologies, **turned)
    ax.set_yticks([i + 0.5 for i in range(len(strategies))], strategies)
    ax.set_xlabel("clips/s a device at best: bounds, not measured")
    ax.invert_yaxis()
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return figure


def _cell(
    rows: Sequence[Row], strategy: str, topology: str, letters: int
) -> tuple[str, float | None]:
    """What is written of a strategy on a topology, and the rate of its best row that fits."""
    tried = [r for r in rows if (_base(r), r["topology"]) == (strategy, topology)]
    best = max((r for r in tried if r["fits"]), key=lambda r: device_rate(r) or 0.0, default=None)
    if best is None:
        return MISFIT if tried else "–", None
    rate = device_rate(best)
    what = "fits" if rate is None else f"{rate:.3g}"
    sizes = " ".join(best["strategy"].split(":")[1:])
    told = [what, f"{best['batch_per_device']} clips", best.get("variant", ""), sizes]
    return "\n".join(textwrap.shorten(t, letters, placeholder="…") for t in told if t), rate


def _base(row: Row) -> str:
    """A strategy's name, without the sizes of its mesh."""
    return row["strategy"].split(":")[0]


def device_rate(row: Row) -> float | None:
    """Clips a second and device at best, of a row that has a bound."""
    best = row.get("at_best")
    return best["clips_per_s"] / math.prod(row["mesh"].values()) if best else None


CHARTS: dict[str, Callable[[Sequence[Row], Size], Any]] = {
    "overview": overview,
    "memory": memory,
    "step_time": step_time,
    "collectives": collectives,
}


def name(row: Row) -> str:
    """What tells a row from others of its topology."""
    parts = [row["strategy"], f"{row['batch_per_device']} clips", row.get("variant", "")]
    return " · ".join(filter(None, parts))


def _label(row: Row, size: Size, *more: str) -> str:
    """A row's name and ``more``, in three lines at most."""
    spaced = name(row).replace(":", " ")
    lines = textwrap.wrap(spaced, size.label, max_lines=3 - len(more), placeholder=" …")
    return "\n".join([*lines, *more])


def _drawn(rows: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    """(title, rows) of each topology: those that are drawn, and of how many if there are more."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["topology"], []).append(row)
    drawn = []
    for topology, own in found.items():
        fitting, refused = ([r for r in own if r["fits"] is fits] for fits in (True, False))
        kept = fitting[:FITTING] + refused[:REFUSALS]
        more = f" ({len(kept)} of {len(own)})" if len(kept) < len(own) else ""
        drawn.append((topology + more, kept))
    return drawn
