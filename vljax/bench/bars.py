"""Horizontal stacked bars in panels, drawn by matplotlib; heights are in inches.

Colours are Okabe and Ito's, which the colour-blind can tell apart (https://jfly.uni-koeln.de/color).
"""

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

INK = "#1b1b1f"  # of text and lines; the page puts its own in its place
REFUSED = "#d55e00"
BEYOND = "beyond the limit"
COLOURS = {
    "arguments": "#0072b2",
    "frozen": "#0072b2",
    "trainable": "#009e73",
    "optimizer": "#cc79a7",
    "batch": "#f0e442",
    "temporaries": "#9d9da3",
    BEYOND: REFUSED,
    "compute": "#0072b2",
    "repeated compute": "#56b4e9",
    "HBM": "#f0e442",
    "ICI or NVLink": "#009e73",
    "network": "#cc79a7",
    "all-gather": "#0072b2",
    "reduce-scatter": "#56b4e9",
    "all-reduce": "#009e73",
    "all-to-all": "#e69f00",
    "ragged-all-to-all": "#f0e442",
    "collective-permute": "#cc79a7",
    "collective-broadcast": "#9d9da3",
}
OTHER = "#9d9da3"
SPAN: dict[str, Any] = {"color": INK, "lw": 1.2, "marker": "|", "ms": 7, "mew": 1.6}
LIMIT: dict[str, Any] = {"color": INK, "lw": 1.2, "ls": (0, (3, 1.5))}
BAND = 0.25  # inches that a bar takes, with the space around it


@dataclasses.dataclass(frozen=True)
class Size:
    """``inches`` wide, type of ``points``.

    A reason is cut into lines of so many ``letters``, what stands left of a bar into lines of so
    many in ``label``.
    """

    inches: float
    points: float
    letters: int
    label: int

    @property
    def text(self) -> float:
        """The height of a line, in inches."""
        return 1.25 * self.points / 72

    @property
    def small(self) -> float:
        """The height of a line of a reason, in inches."""
        return 1.25 * (self.points - 1.5) / 72


WIDE = Size(7.6, 8.5, 92, 40)
NARROW = Size(3.8, 7.5, 46, 26)


@dataclasses.dataclass(frozen=True)
class Bar:
    """A stacked bar of named ``parts``, with a note beside it and ``below`` it what is wrong.

    ``span``: from where to where a line is drawn over it; of no length it is a mark.
    """

    label: str
    parts: dict[str, float]
    note: str = ""
    below: str = ""
    refused: bool = False
    span: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Panel:
    title: str
    bars: list[Bar]
    limit: float | None = None


def require_matplotlib() -> None:
    """Raises ValueError where there is none, which is better known before hours of compiling."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError("charts need matplotlib: pip install matplotlib") from error


def draw(panels: Sequence[Panel], size: Size, unit: str, line: str = "", mark: str = "") -> Any:
    """The panels below each other. ``line`` and ``mark``: what limits and spans are called."""
    if not panels:
        return nothing(size)
    heights = [sum(_room(b, size) + _below(b, size) for b in p.bars) + 0.08 for p in panels]
    figure, axes = new_figure(size, 0.7 + sum(0.62 + height for height in heights), heights)
    for ax, panel, height in zip(axes, panels, heights, strict=True):
        ax.set_ylim(height - 0.04, -0.04)
        _panel(ax, panel, size)
        ax.set_xlabel(unit)
    _legend(figure, panels, size, line, mark)
    return figure


def _room(bar: Bar, size: Size) -> float:
    """How high a bar's band is, if it has one: of two lines if its label does."""
    label = size.text * (bar.label.count("\n") + 1) + 0.02
    return max(BAND, label) if bar.parts else 0.0


def _below(bar: Bar, size: Size) -> float:
    """How high the reason is below a bar, or in its place."""
    reason = size.small * len(_reason(bar, size))
    return reason + (0.02 if reason else 0.0) if bar.parts else max(reason + 0.06, BAND)


def _reason(bar: Bar, size: Size) -> list[str]:
    return textwrap.wrap(bar.below, size.letters, max_lines=3, placeholder=" …")


def _panel(ax: Any, panel: Panel, size: Size) -> None:
    ax.set_title(panel.title, loc="left", fontweight="bold", fontsize=size.points + 0.5)
    ax.set_xlim(0, _reach(panel))
    y, ticks = 0.0, []
    for bar in panel.bars:
        room, below = _room(bar, size), _below(bar, size)
        ticks.append(y + (room or below) / 2)
        if bar.parts:
            _bar(ax, bar, y + room / 2)
        if bar.parts and panel.limit:
            ax.plot((panel.limit, panel.limit), (y, y + room), **LIMIT)
        told = "\n".join(_reason(bar, size))
        small = {"va": "center", "color": REFUSED, "fontsize": size.points - 1.5}
        text = ax.text(0, y + room + below / 2, told, **small)
        text.set_in_layout(False)  # it may go on beyond the panel
        y += room + below
    ax.set_yticks(ticks, [bar.label for bar in panel.bars])
    for label, bar in zip(ax.get_yticklabels(), panel.bars, strict=True):
        label.set(color=REFUSED if bar.refused else INK, linespacing=1.1)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.grid(axis="x", alpha=0.35, lw=0.5)
    ax.set_axisbelow(True)


def _bar(ax: Any, bar: Bar, y: float) -> None:
    start = 0.0
    for part, length in bar.parts.items():
        ax.barh(y, length, 0.68 * BAND, start, color=COLOURS.get(part, OTHER), linewidth=0)
        start += length
    if bar.span:
        ax.plot(bar.span, (y, y), **SPAN)
    beside = {"transform": ax.get_yaxis_transform(), "va": "center"}  # x in parts of the panel
    ax.text(1.015, y, bar.note, color=REFUSED if bar.refused else INK, **beside)


def _reach(panel: Panel) -> float:
    """How far a panel's scale goes: what is far beyond the limit is cut, for its figure is told."""
    longest = max((sum(bar.parts.values()) for bar in panel.bars), default=0.0)
    longest = max([longest, *(bar.span[1] for bar in panel.bars if bar.span)])
    wanted = min(max(longest, panel.limit), 1.6 * panel.limit) if panel.limit else longest
    return 1.04 * wanted or 1.0


def _legend(figure: Any, panels: Sequence[Panel], size: Size, line: str, mark: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    drawn = {part for panel in panels for bar in panel.bars for part, x in bar.parts.items() if x}
    known = [part for part in COLOURS if part in drawn] + sorted(drawn - set(COLOURS))
    handles: list[Any] = [Patch(color=COLOURS.get(part, OTHER), label=part, lw=0) for part in known]
    if mark and any(bar.span for panel in panels for bar in panel.bars):
        handles.append(Line2D([], [], label=mark, **SPAN))
    if line and any(panel.limit for panel in panels):
        handles.append(Line2D([], [], label=line, **LIMIT))
    if handles:
        column = 0.62 * size.points * (5.5 + max(len(h.get_label()) for h in handles))
        columns, place = int(72 * size.inches / column), "outside upper left"
        figure.legend(handles=handles, loc=place, ncols=columns, frameon=False)


def new_figure(size: Size, height: float, heights: Sequence[float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure((size.inches, height), layout="constrained")
    axes = figure.subplots(len(heights), squeeze=False, height_ratios=list(heights))
    for ax in axes[:, 0]:
        ax.set_facecolor("none")
    return figure, axes[:, 0]


def nothing(size: Size) -> Any:
    figure, axes = new_figure(size, 0.6, [1.0])
    axes[0].text(0, 0.5, "No row has this.", va="center")
    axes[0].set_axis_off()
    return figure


def style(size: Size) -> Any:
    """matplotlib's settings. A "$" in a name is itself; text in an SVG stays text."""
    return {
        "font.size": size.points,
        "font.family": "sans-serif",
        "axes.labelsize": size.points,
        "xtick.labelsize": size.points - 0.5,
        "ytick.labelsize": size.points,
        "legend.fontsize": size.points,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "text.parse_math": False,
        "svg.fonttype": "none",
    }
