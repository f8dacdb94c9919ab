"""The page and the charts of a plan, from made-up rows."""

import re
import struct
import sys
from html.parser import HTMLParser

import pytest

pytest.importorskip("matplotlib")

from vljax.bench import report
from vljax.bench.bars import COLOURS, NARROW, WIDE, style
from vljax.bench.charts import CHARTS, FITTING, REFUSALS
from vljax.cli.main import main

VOID = {"meta", "br", "hr", "img", "link", "input"}
HOSTILE = '<script src="http://x">$a_1$ & "q"</script>'


def given(strategy="fsdp", topology="v5e:4x4", **changes):
    """A row that fits, as the planner makes them."""
    row = {
        "topology": topology,
        "strategy": strategy,
        "variant": "",
        "batch_per_device": 4,
        "frames": 8,
        "tokens_per_row": 512,
        "backend": "tpu",
        "mesh": {"data": 1, "fsdp": 16},
        "fits": True,
        "reason": "",
        "hbm_gib": {"arguments": 1.875, "temporaries": 3.25, "peak": 4.75, "limit": 15.75},
        "parts_gib": {"frozen": 1.5, "trainable": 0.125, "optimizer": 0.2, "batch": 0.05},
        "collectives": [
            {"kind": "all-gather", "axis": "fsdp", "count": 1234, "bytes": 5_678_000_000},
            {"kind": "all-reduce", "axis": "data", "count": 7, "bytes": 91_000_000},
        ],
        "flops_per_device": 9.41e13,
        "flops_per_device_once": 7.29e13,
        "bound_s": {"compute": 0.477, "repeated": 0.05, "hbm": 0.012, "ici": 0.379, "dcn": 0.033}
        | {"low": 0.477, "high": 0.901},
        "at_best": {"clips_per_s": 134.2, "tokens_per_s_per_device": 4294.0}
        | {"mfu": 0.775, "chip_hours": 12.6},
        "compile_s": 31.2,
        "peak_rss_gib": 2.34,
    }
    return row | changes


def beyond(reason="needs at least 20.50 GiB of 15.75 GiB; the largest buffers are f32[8] of 2GiB"):
    """What the compiler refused."""
    hbm = {"arguments": 1.875, "temporaries": None, "peak": 20.5, "limit": 15.75}
    none = {"collectives": [], "bound_s": None, "at_best": None}
    return given("dp", fits=False, reason=reason, hbm_gib=hbm, **none)


def rejected(strategy="tp", reason="4 heads on 16 devices"):
    """What was refused before it was compiled."""
    kept = ("topology", "variant", "batch_per_device", "frames", "tokens_per_row", "backend")
    row = {name: given()[name] for name in kept}
    return row | {"strategy": strategy, "mesh": {}, "fits": False, "reason": reason}


def on_cpu():
    hbm = {"arguments": 1.0, "temporaries": 0.5, "peak": 1.5, "limit": None}
    return given("dp", "cpu:8", hbm_gib=hbm, bound_s=None, at_best=None, backend="cpu")


class Page(HTMLParser):
    """Text, what is referred to and every id; fails on a tag that is not closed in its turn."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.refers, self.ids, self.tags = [], [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                self.refers.append(value)
            self.refers += re.findall(r"url\((.*?)\)", value or "")
            self.ids += [value] if name == "id" else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page():
    rows = [given(variant="remat dots", batch_per_device=16), given(), on_cpu(), beyond()]
    return Page(report.page([*rows, rejected(HOSTILE, HOSTILE)], ["v5e: 197 TFLOP/s", "no rates"]))


def test_the_page_tells_the_answer_then_all_figures_and_reasons(page):
    text = "\n".join(page.text)
    assert "Use fsdp on v5e:4x4 with remat dots, 16 clips a device: at least 0.477 s" in text
    told = ["fsdp · 16 clips · remat dots", "cpu:8 · dp · 4 clips", "3 of 5 candidates fit"]
    told += ["1.500", "0.125", "0.200", "0.050", "1.88", "3.25", "4.75", "15.75", "20.50"]
    told += ["94.1", "0.012", "0.379", "0.033", "0.901", "134.2", "8.39", "77.5%", "4,294", "12.6"]
    told += ["1,234", "5.6780", "0.0910", "31.2", "2.34", "v5e: 197 TFLOP/s", "no rates"]
    told += ["bounds, not measured", f"v5e:4x4 · dp · 4 clips: {beyond()['reason']}"]
    assert [x for x in told if x not in text] == []


def test_the_page_needs_nothing_else_and_no_name_breaks_it(page):
    assert {x for x in page.refers if not x.startswith("#")} == set()
    assert {x[1:] for x in page.refers} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 2 * len(CHARTS)
    assert "script" not in page.tags
    # in the drawing itself, in the table and among the reasons
    assert sum(HOSTILE in text for text in page.text) >= 3


def test_the_page_of_no_row_and_of_rejected_rows_alone():
    assert "0 of 0 candidates fit" in "".join(Page(report.page([])).text)
    page = "".join(Page(report.page([rejected(), rejected("dp", "another reason")])).text)
    assert "Nothing fits. v5e:4x4 tp: 4 heads on 16 devices" in page
    assert "v5e:4x4 · dp · 4 clips: another reason" in page
    assert page.count("No row has this.") == 4  # time and collectives, wide and narrow


def test_pngs_are_as_wide_as_wanted(tmp_path):
    rows = [given(), beyond(), rejected(HOSTILE, HOSTILE)]
    files = report.write_pngs(rows, tmp_path / "new" / "folder", pixels=760)
    assert [f.name for f in files] == [f"{name}.png" for name in CHARTS]
    for file in files:
        magic, (width, height) = (
            file.read_bytes()[:8],
            struct.unpack(">II", file.read_bytes()[16:24]),
        )
        assert magic == b"\x89PNG\r\n\x1a\n"
        assert width == 760
        assert 100 < height < 2000


def drawn(chart, rows, size=WIDE):
    import matplotlib

    with matplotlib.rc_context(style(size)):
        figure = CHARTS[chart](rows, size)
        figure.draw_without_rendering()
    return figure


def lengths(axes, part):
    """How long the pieces of a bar's part are."""
    from matplotlib.colors import to_hex

    return [p.get_width() for p in axes.patches if to_hex(p.get_facecolor()) == COLOURS[part]]


def test_memory_is_drawn_part_by_part_and_apart_beyond_the_limit():
    axes = drawn("memory", [given(), beyond(), rejected()]).axes[0]
    assert lengths(axes, "frozen") == [1.5, 1.5]
    assert lengths(axes, "trainable") == [0.125, 0.125]
    assert lengths(axes, "temporaries") == pytest.approx([3.25, 15.75 - 1.875])
    assert lengths(axes, "beyond the limit") == pytest.approx([20.5 - 15.75])
    limits = [tuple(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "--"]
    assert limits == [(15.75, 15.75)] * 2
    assert {"4.75", "20.50", rejected()["reason"]} <= {t.get_text() for t in axes.texts}


def test_time_is_drawn_term_by_term_under_its_range():
    axes = drawn("step_time", [given(), on_cpu(), beyond()]).axes
    assert len(axes) == 1  # of the topology that has a bound
    widths = [p.get_width() for p in axes[0].patches]
    assert widths == pytest.approx([0.477, 0.05, 0.012, 0.379, 0.033])
    assert [tuple(line.get_xdata()) for line in axes[0].lines] == [(0.477, 0.901)]


def test_collectives_have_a_bar_an_axis():
    axes = drawn("collectives", [given()]).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "fsdp · 4 clips\nover fsdp",
        "over data",
    ]
    assert lengths(axes, "all-gather") == [5.678]
    assert lengths(axes, "all-reduce") == [0.091]


def test_a_cell_is_of_the_best_row_that_fits():
    slow, fast = given("fsdp:fsdp=8"), given(batch_per_device=8)
    fast["at_best"] = fast["at_best"] | {"clips_per_s": 320.0}
    axes = drawn("overview", [fast, slow, beyond(), given("tp", "h100:1x1x8"), on_cpu()]).axes[0]
    cells = [t.get_text() for t in axes.texts]
    assert cells[:3] == ["20\n8 clips", "–", "–"]  # fsdp
    assert cells[3:6] == ["does\nnot fit", "–", "fits\n4 clips"]  # dp
    assert cells[6:] == ["–", "8.39\n4 clips", "–"]  # tp


def test_of_many_rows_the_first_are_drawn_and_the_title_says_so():
    many = [given(batch_per_device=n) for n in range(30)] + [beyond() for _ in range(9)]
    axes = drawn("memory", many).axes[0]
    assert len(axes.get_yticklabels()) == FITTING + REFUSALS
    assert axes.get_title(loc="left").startswith("v5e:4x4 (12 of 39)")


@pytest.mark.parametrize("size", [WIDE, NARROW])
@pytest.mark.parametrize("chart", CHARTS)
def test_no_text_lies_on_another_or_outside(chart, size):
    long = given("fsdp_tp:data=2:fsdp=4:tensor=2", "v5e:16x16*2", variant="remat nothing, int8")
    names = ("dp", "fsdp", "tp", "fsdp_tp", "fsdp_sp")
    places = ("v5e:16x16*2", "v5p:4x4x4", "h100:1x2x8", "v6e:8x8")
    rows = [long] * 4 + [given(name, place) for place in places for name in names]
    rows += [beyond(), beyond("a long reason " * 30), rejected()]
    figure = drawn(chart, rows, size)
    texts = [t for t in shown_texts(figure) if t.get_text()]
    boxes = [t.get_window_extent() for t in texts]
    for place, (text, box) in enumerate(zip(texts, boxes, strict=True)):
        assert box.x0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert [texts[i] for i in range(place) if depth(box, boxes[i]) > 2] == [], text


def shown_texts(figure):
    for axes in figure.axes:
        low, high = sorted(axes.get_xlim())
        yield from axes.texts
        yield from axes.get_yticklabels()
        yield from (t for t in axes.get_xticklabels() if low <= t.get_position()[0] <= high)
        yield from (axes.xaxis.label, axes._left_title)
    for legend in figure.legends:
        yield from legend.get_texts()


def depth(one, other):
    """How many pixels deep two boxes lie in each other, the smaller of both ways."""
    wide = min(one.x1, other.x1) - max(one.x0, other.x0)
    high = min(one.y1, other.y1) - max(one.y0, other.y0)
    return min(wide, high)


def test_without_matplotlib_a_plan_with_charts_is_refused_before_it_compiles(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    argv = ["plan", "--config=configs/vision_pretrain.py:size=tiny", "--topology=cpu:8"]
    assert main([*argv, "--html=x.html"]) == 1
    assert "charts need matplotlib: pip install matplotlib" in capsys.readouterr().err
