"""The committed plan of the full-size step: its traffic against closed formulas."""

import json
from pathlib import Path

import pytest

from vljax.models.sizes import video_llama_size

PLANS = Path(__file__).parents[2] / "docs/plan"
ROWS = {(r["topology"], r["strategy"]): r for r in json.loads((PLANS / "7b.json").read_text())}
SIZE = video_llama_size("7b")
CLIPS, LENGTH, BYTES = 4, 512, 2  # clips a device, tokens a row, of bfloat16
GATHERED = [
    ("v5e:4x4", "fsdp"),
    ("v5p:4x4x4", "fsdp"),
    ("h100:1x1x8", "fsdp"),
    ("h100:1x8x8", "fsdp"),
]
SPLIT = [k for k, r in ROWS.items() if r["fits"] and k[1] in ("tp", "tp:tensor=16", "fsdp_tp")]


def sent(row, kind, axis):
    return sum(c["bytes"] for c in row["collectives"] if (c["kind"], c["axis"]) == (kind, axis))


def of_ring(devices):
    """What a device sends of each byte gathered; twice that of each byte added up."""
    return (devices - 1) / devices


@pytest.mark.parametrize("where", GATHERED)
def test_fsdp_gathers_the_llm_twice_and_the_rest_once(where):
    """Forward, and again in the backward pass; the encoders have no backward pass."""
    llama, vit, qformer = SIZE.llama, SIZE.vit, SIZE.qformer
    layer = 4 * llama.width**2 + 3 * llama.width * llama.mlp
    head = llama.width * llama.vocab
    encoder = vit.depth * (4 * vit.width**2 + 2 * vit.width * vit.mlp)
    own = 4 * qformer.width**2 + 2 * qformer.width * qformer.mlp
    crossing = 2 * qformer.width**2 + 2 * qformer.width * vit.width
    queries = qformer.depth * own + qformer.depth // 2 * crossing
    expected = BYTES * (2 * llama.depth * layer + head + encoder + queries)
    row = ROWS[where]
    # Over a whole v5p cube the compiler gathers by adding up zeros, which sends twice as much.
    gathered = sent(row, "all-gather", "fsdp") + sent(row, "all-reduce", "fsdp") / 2
    assert gathered / of_ring(row["mesh"]["fsdp"]) == pytest.approx(expected, rel=0.015)


@pytest.mark.parametrize("where", SPLIT)
def test_tensor_strategies_add_up_five_times_a_layer(where):
    """Forward after attention and MLP; backward before them, and attention's output made anew."""
    row = ROWS[where]
    tensor = row["mesh"]["tensor"]
    activations = CLIPS * tensor * LENGTH * SIZE.llama.width * BYTES
    expected = 5 * SIZE.llama.depth * 2 * of_ring(tensor) * activations
    assert 1 <= sent(row, "all-reduce", "tensor") / expected < 1.02  # and the embedding, the loss


def test_slices_change_nothing_inside_a_slice_and_exchange_each_gradient_once():
    one, two = ROWS["v5e:16x16", "fsdp"], ROWS["v5e:16x16*2", "fsdp"]
    assert sent(two, "all-gather", "fsdp") == sent(one, "all-gather", "fsdp")
    gradients = two["parts_gib"]["trainable"] * 2**30  # in float32, as the parameters
    assert 0.8 * gradients < sent(two, "all-reduce", "slices") <= gradients


def test_what_does_not_fit_says_by_how_much():
    rows = {r["strategy"]: r for r in json.loads((PLANS / "13b.json").read_text())}
    assert not rows["dp"]["fits"]
    assert rows["dp"]["reason"].startswith("needs at least 27.71 GiB of 15.75 GiB; the largest")
    assert all(rows[name]["fits"] for name in ("fsdp", "fsdp_tp", "fsdp_sp"))
    assert "does not divide 40 heads" in rows["tp"]["reason"]


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_what_answering_takes_is_its_weights_and_little_more(size):
    """On every card, in every format; in bfloat16 the weights are two bytes each."""
    llama = video_llama_size(size).llama
    layer = 4 * llama.width**2 + 3 * llama.width * llama.mlp
    weights = BYTES * (llama.depth * layer + 2 * llama.vocab * llama.width) / 2**30
    for row in json.loads((PLANS / f"infer_{size}.json").read_text()):
        if row["dtype"] == "bfloat16":
            assert row["gib"]["llm"] == pytest.approx(weights, rel=1e-3)
        if row["fits"]:
            assert row["gib"]["temporaries"] < 0.8
            assert row["gib"]["total"] <= row["gib"]["limit"]


def test_every_row_says_what_it_cost():
    rows = [r for r in ROWS.values() if r["mesh"]]
    assert len(ROWS) == 42
    assert all(1 < r["compile_s"] < 600 and 0.5 < r["peak_rss_gib"] < 4 for r in rows)
