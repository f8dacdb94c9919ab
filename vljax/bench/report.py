"""A plan's rows as one page of HTML that needs nothing else, and its charts as PNGs."""

import html
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from vljax.bench.bars import INK, NARROW, WIDE, Size, style
from vljax.bench.charts import CHARTS, FITTING, REFUSALS, device_rate, name
from vljax.bench.plan import answer
from vljax.bench.search import Row

CAPTIONS = {
    "overview": (
        "At a glance",
        "Clips a second and device at best, of each strategy's best row that fits. It would take a "
        "step as fast as its longest term: bounds, not measured.",
    ),
    "memory": (
        "Memory",
        "Of a device, as the compiler laid it out; each topology has its own scale. The peak "
        "judges: not all is held at the same time. Where the compiler gave up, temporaries are "
        "what it needed at least beyond the arguments. Here and below, of each topology the first "
        f"{FITTING} rows that fit and {REFUSALS} that do not; the table has all.",
    ),
    "step_time": (
        "Time of a step: bounds, not measured",
        "Counted work over stated rates. At least: the longest term, as if the others could hide "
        "behind it. At most: their sum. Each topology has its own scale. What the compiler "
        "refused, and machines without stated rates, have no bound and are not here.",
    ),
    "collectives": (
        "Collectives by axis of the mesh",
        "What one device sends in a step, in GB (10⁹ bytes) as a ring would send it. Rows without "
        "any, or that the compiler refused, are not here.",
    ),
}
# Title, where in a row, how it is written.
COLUMNS = (
    ("row", "title", ""),
    ("fits", "fits", ""),
    ("mesh", "mesh", ""),
    ("compiler", "backend", ""),
    ("frames", "frames", "d"),
    ("tokens a row", "tokens_per_row", "d"),
    ("frozen GiB", "parts_gib.frozen", ".3f"),
    ("trainable GiB", "parts_gib.trainable", ".3f"),
    ("optimizer GiB", "parts_gib.optimizer", ".3f"),
    ("batch GiB", "parts_gib.batch", ".3f"),
    ("arguments GiB", "hbm_gib.arguments", ".2f"),
    ("temporaries GiB", "hbm_gib.temporaries", ".2f"),
    ("peak GiB", "hbm_gib.peak", ".2f"),
    ("limit GiB", "hbm_gib.limit", ".2f"),
    ("TFLOP a device", "tflops", ".1f"),
    ("compute s", "bound_s.compute", ".3f"),
    ("HBM s", "bound_s.hbm", ".3f"),
    ("ICI or NVLink s", "bound_s.ici", ".3f"),
    ("network s", "bound_s.dcn", ".3f"),
    ("at least s", "bound_s.low", ".3f"),
    ("at most s", "bound_s.high", ".3f"),
    ("clips/s at best", "at_best.clips_per_s", ".1f"),
    ("clips/s a device at best", "device_rate", ".2f"),
    ("tokens/s a device at best", "at_best.tokens_per_s_per_device", ",.0f"),
    ("MFU at best", "at_best.mfu", ".1%"),
    ("chip-hours at least", "at_best.chip_hours", ",.1f"),
)
SENT = (
    ("row", "title", ""),
    ("axis", "axis", ""),
    ("kind", "kind", ""),
    ("times a step", "count", ",d"),
    ("GB a step", "gb", ",.4f"),
)
COST = (
    ("row", "title", ""),
    ("compiled in s", "compile_s", ".1f"),
    ("planner's peak GiB", "peak_rss_gib", ".2f"),
)


def page(rows: Sequence[Row], rates: Iterable[str] = ()) -> str:
    """The whole page. ``rates``: what the bounds rest on, a sentence each."""
    told = [_told(r) for r in rows]
    sent = [
        r | c | {"gb": c["bytes"] / 1e9}
        for r in told
        for c in sorted(r.get("collectives") or (), key=lambda c: (c["axis"], -c["bytes"]))
    ]
    inside = {"collectives": _folded("Every collective", _table(SENT, sent))}
    sections = [_chart(chart, rows, inside.get(chart, "")) for chart in CHARTS]
    sections += [
        _section("All rows", _table(COLUMNS, told)),
        _section("What does not fit, and why", _reasons(rows)),
        _section("What the bounds rest on", _listed(dict.fromkeys(rates))),
        _section("What the plan cost", _cost(rows) + _table(COST, told)),
    ]
    lead = f'<p class="answer">{html.escape(answer(rows))}</p>'
    heading = f"<h1>vljax plan</h1>\n{lead}\n<p class=note>{html.escape(_scope(rows))}</p>"
    return _PAGE.format(css=_CSS, body="\n".join([heading, *sections]))


def write_pngs(rows: Sequence[Row], folder: Path, pixels: int = 1520) -> list[Path]:
    """Writes each chart as NAME.png, so many ``pixels`` wide; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {chart: folder / f"{chart}.png" for chart in CHARTS}
    for chart, file in files.items():
        _save(chart, rows, WIDE, file, format="png", dpi=pixels / WIDE.inches, facecolor="white")
    return list(files.values())


def svg(chart: str, rows: Sequence[Row], size: Size) -> str:
    """A chart as an element for HTML: names of its own, the page's font and its colour of text."""
    text = StringIO()
    none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    _save(chart, rows, size, text, format="svg", facecolor="none", metadata=none)
    root = ElementTree.fromstring(text.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.split("}")[-1] in ("style", "metadata"):
                parent.remove(child)
    prefix = f"{chart}-{size.points:g}-"
    for node in root.iter():
        node.tag = node.tag.split("}")[-1]
        node.attrib = {k.split("}")[-1]: _own(k, v, prefix) for k, v in node.attrib.items()}
    for unwanted in ("width", "height", "version"):
        root.attrib.pop(unwanted, None)
    root.attrib |= {"class": "wide" if size is WIDE else "narrow", "role": "img"}
    root.attrib["aria-label"] = CAPTIONS[chart][0]
    return ElementTree.tostring(root, encoding="unicode")


def _own(key: str, value: str, prefix: str) -> str:
    if key == "id":
        return prefix + value
    if key == "style":
        families = re.sub("'DejaVu Sans'[^;]*", "system-ui, sans-serif", value)
        return families.replace(INK, "currentColor")
    return re.sub(r"^(url\()?#", rf"\g<1>#{prefix}", value)


def _save(chart: str, rows: Sequence[Row], size: Size, to: Any, **how: Any) -> None:
    import matplotlib

    with matplotlib.rc_context(style(size)):
        CHARTS[chart](rows, size).savefig(to, **how)


def _chart(chart: str, rows: Sequence[Row], below: str) -> str:
    title, caption = CAPTIONS[chart]
    drawn = "\n".join(svg(chart, rows, size) for size in (WIDE, NARROW))
    figure = f"<p class=note>{html.escape(caption)}</p>\n<figure>{drawn}</figure>"
    return _section(title, figure + below)


def _section(title: str, inside: str) -> str:
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{inside}\n</section>"


def _scope(rows: Sequence[Row]) -> str:
    fitting = sum(bool(r["fits"]) for r in rows)
    return (
        f"{fitting} of {len(rows)} candidates fit. Memory, collectives and FLOPs are facts of the "
        "compiled program; times are bounds from stated rates, not measured."
    )


def _told(row: Row) -> Row:
    """The row with what only people read of it."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in row["mesh"].items() if size > 1)
    flops = row.get("flops_per_device")
    return row | {
        "title": f"{row['topology']} · {name(row)}",
        "mesh": mesh or None,
        "fits": "yes" if row["fits"] else "no",
        "tflops": flops / 1e12 if flops is not None else None,
        "device_rate": device_rate(row),
    }


def _table(columns: Sequence[tuple[str, str, str]], rows: Sequence[Row]) -> str:
    """A table of the columns that some row has."""
    if not rows:
        return "<p class=note>None.</p>"
    kept = [c for c in columns if any(_at(r, c[1]) not in (None, "") for r in rows)]
    head = "".join(f"<th>{html.escape(title)}</th>" for title, _, _ in kept)
    lines = [
        f"<tr{'' if r['fits'] == 'yes' else ' class=refused'}>"
        + "".join(_written(_at(r, path), form) for _, path, form in kept)
        + "</tr>"
        for r in rows
    ]
    body = "\n".join(lines)
    return (
        f"<div class=scroll><table>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _at(row: Row, path: str) -> Any:
    found: Any = row
    for key in path.split("."):
        found = (found or {}).get(key)
    return found


def _written(value: Any, form: str) -> str:
    text = "–" if value is None or value == "" else format(value, form)
    return f"<td{' class=n' if form else ''}>{html.escape(text)}</td>"


def _reasons(rows: Sequence[Row]) -> str:
    return _listed(f"{r['topology']} · {name(r)}: {r['reason']}" for r in rows if not r["fits"])


def _listed(lines: Iterable[str]) -> str:
    items = "\n".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul>\n{items}\n</ul>" if items else "<p class=note>None.</p>"


def _cost(rows: Sequence[Row]) -> str:
    compiled = [r for r in rows if "compile_s" in r]
    if not compiled:
        return "<p>Nothing was compiled.</p>"
    seconds = sum(r["compile_s"] for r in compiled)
    most = max(r["peak_rss_gib"] for r in compiled)
    return (
        f"<p>{len(compiled)} programs were compiled in {seconds:,.0f} s altogether, where none was "
        f"kept from before; a compiler's process held {most:.1f} GiB at most.</p>"
    )


def _folded(title: str, inside: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>\n{inside}\n</details>"


_CSS = """
:root { color-scheme: light dark; --ink: #1b1b1f; --faint: #5c5c66; --paper: #fff;
  --line: #dcdce2; --card: #f6f6f8; --refused: #b34700; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ec; --faint: #a5a5b0;
  --paper: #17171a; --line: #3a3a42; --card: #212126; --refused: #ff8a3d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 58rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1rem; font-weight: 600; color: var(--faint); margin: 0; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 3rem 0 .4rem; }
.answer { font-size: 1.3rem; line-height: 1.4; margin: .6rem 0; max-width: 46rem; }
.note, summary { color: var(--faint); max-width: 46rem; margin: .3rem 0 1rem; }
figure { margin: 0; }
svg { display: block; width: 100%; height: auto; }
svg * { stroke-linejoin: round; }
.narrow { display: none; }
@media (max-width: 40rem) { .wide { display: none; } .narrow { display: block; }
  .answer { font-size: 1.15rem; } }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; }
table { border-collapse: collapse; font-size: .85rem; line-height: 1.35;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
table { min-width: 100%; }
th, td { padding: .4rem .7rem; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { background: var(--card); font-weight: 600; white-space: normal; min-width: 6.2rem;
  vertical-align: bottom; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--card);
  white-space: normal; min-width: 9rem; }
@media (max-width: 40rem) { td:first-child { max-width: 10rem; overflow-wrap: anywhere; } }
tbody tr:last-child td { border-bottom: 0; }
.n { text-align: right; }
.refused td { color: var(--refused); }
li { margin: .35rem 0; }
summary { cursor: pointer; margin-top: 1rem; }
@media print { .scroll { overflow: visible; border: 0; } }
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>vljax plan</title>
<style>{css}</style>
</head>
<body>
{body}
</body>
</html>
"""
