"""Whether a model that answers fits: planned bytes against closed formulas and placed arrays."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from vljax.bench import infer
from vljax.bench.answering import LOOKUP, Load, Model, programs, read_a_token
from vljax.bench.compile import GIB
from vljax.bench.cuda import target_config
from vljax.bench.hlo import Collective
from vljax.bench.infer import Candidate, answer, candidates, judged, table
from vljax.bench.topology import Topology, cpu_devices
from vljax.cli.main import main
from vljax.generate.chat import load
from vljax.models.precision import array_bytes, formats, weights_bytes
from vljax.models.sizes import TINY, video_llama_size
from vljax.sharding.chips import CHIPS, chip_of
from vljax.sharding.mesh import make_mesh
from vljax.sharding.placement import Placement
from vljax.sharding.strategy import strategy
from vljax.store import flatten
from vljax.train.objectives import make_objective
from vljax.train.step import Problem

PROBLEM = Problem(TINY, make_objective("vision"), (r"video_proj/",))
DEVICES = cpu_devices(8)[:1]  # other tests want as many
LOAD = Load(batch=2, context=24, new_tokens=8, frames=2)


@pytest.fixture(scope="module")
def placement():
    one = strategy("tp")
    return Placement(one, make_mesh(one, DEVICES))


def stand_in(name: str, **changes: float) -> Topology:
    """A card compiled for by this machine's processor."""
    return Topology(f"{name}:1x1x1", replace(CHIPS[name], **changes), "cpu", 1, DEVICES)


def test_planned_weights_are_those_that_are_placed(placement):
    engine = load("tiny", quantise="int4", quantise_vit="int8").engine
    held = formats("int4", "int8")
    planned = Model(TINY, engine.dtype, held, hears=True).weights(placement)
    assert weights_bytes(planned) == weights_bytes(engine.params)
    assert set(flatten(planned)) == set(flatten(engine.params))


@pytest.mark.parametrize(
    ("quantise", "llm", "whole"), [("", 12.6, 16.0), ("int8", 6.4, 9.9), ("int4", 3.8, 7.2)]
)
def test_weights_of_7b_without_compiling(placement, quantise, llm, whole):
    model = Model(video_llama_size("7b"), formats=formats(quantise), hears=True)
    sizes = weights_bytes(model.weights(placement))
    assert round(sizes["llama"] / GIB, 1) == llm
    pictures = 1.18  # GiB of ImageBind's picture tower, which nobody needs who only answers
    assert sum(sizes.values()) / GIB + pictures == pytest.approx(whole, abs=0.06)
    deaf = replace(model, hears=False).weights(placement)
    assert not any(part.startswith(("imagebind", "audio")) for part in deaf)


def test_the_cache_and_what_a_token_reads(placement):
    model = Model(TINY)
    weights = model.weights(placement)
    decode = programs(model, weights, placement, LOAD)["decode"]
    llama, slots, next_slots = TINY.llama, LOAD.context + LOAD.new_tokens, 4 * TINY.llama.depth
    heads = llama.kv_heads * (llama.width // llama.heads)
    assert decode.parts["cache"] - next_slots == 2 * llama.depth * heads * slots * LOAD.batch * 2
    lookup = array_bytes(flatten(weights)[LOOKUP])
    llm = weights_bytes(weights)["llama"]
    assert decode.parts["weights"] == llm
    assert read_a_token(model, weights, decode) == llm - lookup + decode.parts["cache"]
    # a multiply-add for each weight that is not looked up, and two for each of the cache's numbers
    products = 2 * (llm - lookup) / 2 + 2 * (decode.parts["cache"] - next_slots) / 2 / LOAD.batch
    assert decode.flops == pytest.approx(LOAD.batch * products, rel=0.01)


def test_a_row_is_all_that_is_held_and_a_card_that_is_too_small_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(infer, "describe", lambda name: stand_in("t4"))
    candidate = Candidate("t4:1x1x1", "tp", "bfloat16", LOAD)
    row = infer.row(PROBLEM, False, candidate, tmp_path)
    assert (row["fits"], row["reason"], row["batch"]) == (True, "", 2)
    assert set(row["programs"]) == {"see", "prefill", "decode"}
    gib = row["gib"]
    assert gib["total"] == pytest.approx(
        sum(gib[part] for part in ("llm", "towers", "cache", "padding", "temporaries"))
    )
    for facts in row["programs"].values():  # what the compiler was given is what was counted
        assert facts["hbm_gib"]["arguments"] == pytest.approx(
            sum(facts["parts_gib"].values()), rel=1e-3
        )
    assert row["bound_s"]["decode"] == pytest.approx(row["bytes_per_token"] / CHIPS["t4"].hbm)
    assert len(list(tmp_path.iterdir())) == 3
    little = (gib["llm"] + gib["towers"] + gib["cache"]) * GIB
    monkeypatch.setattr(infer, "describe", lambda name: stand_in("t4", memory=little + 1))
    reason = infer.row(PROBLEM, False, candidate, tmp_path)["reason"]
    assert reason == f"needs {gib['total']:.2f} of {little / GIB:.2f} GiB"
    monkeypatch.setattr(infer, "describe", lambda name: stand_in("t4", memory=little - 1e5))
    refused = infer.row(PROBLEM, False, candidate, tmp_path)
    assert not refused["fits"]
    assert refused["reason"].startswith("weights and cache alone take")
    assert "programs" not in refused  # the compiler was not asked


def facts(arguments, peak, found=(), parts=None, reason=""):
    memory = {"arguments": arguments, "temporaries": 0.0, "peak": peak}
    named = {"hbm_gib": memory, "parts_gib": {"weights": parts or arguments}, "reason": reason}
    return named | {"collectives": [vars(c) for c in found], "flops_per_device": 8.1e10}


def test_memory_and_bounds_of_programs_in_turn(placement):
    found = [Collective("all-reduce", "tensor", 1, int(1.6e7))]
    known = {
        "see": facts(1.0, 1.5),
        "prefill": facts(6.0, 8.0),  # a GiB of which is the cache
        "decode": facts(7.25, 7.5, found, parts=7.0),
    }
    held = {"llm": 6.0, "towers": 1.0, "cache": 1.0}
    row = judged(stand_in("t4"), placement, held, known, int(6.4e9), LOAD)
    assert row["gib"] == held | {
        "padding": 0.25,
        "temporaries": 1.0,
        "total": 9.25,
        "limit": CHIPS["t4"].memory / GIB,
    }
    assert row["bound_s"]["decode_terms"] == {
        "compute": pytest.approx(0.01),
        "memory": pytest.approx(0.02),
        "collectives": pytest.approx(1e-3),
    }
    assert row["at_best"]["tokens_per_s"] == pytest.approx(LOAD.batch / 0.021)
    assert row["bound_s"]["prefill"] == pytest.approx(6 * GIB / CHIPS["t4"].hbm)
    known["prefill"] = facts(6.0, 20.0, reason="needs at least 20.00 GiB of 15.75 GiB")
    assert judged(stand_in("t4"), placement, held, known, 1, LOAD)["reason"] == (
        "prefill needs at least 20.00 GiB of 15.75 GiB"
    )


def test_the_answer_comes_first(placement):
    known = {"topology": "t4:1x1x1", "strategy": "tp", "batch": 1, "context": 512, "new_tokens": 64}
    known |= {"mesh": {"tensor": 1}, "reason": ""}
    gib = {"llm": 4.0, "towers": 2.0, "cache": 0.3, "padding": 0.0, "temporaries": 1.8}
    terms = {"compute": 0.001, "memory": 0.02, "collectives": 0.0}
    small = known | {"dtype": "int4", "fits": True, "gib": gib | {"total": 8.1, "limit": 14.56}}
    small |= {"bound_s": {"prefill": 0.5, "decode": 0.02, "decode_terms": terms}}
    small |= {"at_best": {"tokens_per_s": 50.0, "first_token_s": 0.75}}
    large = known | {"dtype": "bfloat16", "fits": False, "reason": "needs 16.40 of 14.56 GiB"}
    assert answer([large, small], "7b") == (
        "7b on t4:1x1x1, batch 1, 512 + 64 tokens: bfloat16 does not fit: needs 16.40 of 14.56 "
        "GiB; int4 fits, 8.1 of 14.6 GiB, at most 50 tokens/s."
    )
    refused, fitting = table([large, small]).splitlines()[2:]
    assert "no: needs 16.40 of 14.56 GiB" in refused
    assert "4.00 / 2.00 / 0.30 / 1.80 = 8.10 (14.56) | 0.250 / 0.500 | 1.00 / 20.00" in fitting


def test_on_one_device_all_strategies_are_one():
    one, two = (SimpleNamespace(name=f"cpu:{n}", devices=[None] * n) for n in (1, 2))
    wanted = candidates([one, two], ["tp", "fsdp"], ["int8"], [LOAD])
    names = [(c.topology, c.strategy) for c in wanted]
    assert names == [("cpu:1", "tp"), ("cpu:2", "tp"), ("cpu:2", "fsdp")]


def test_a_prompt_has_room_for_its_media(tmp_path, monkeypatch):
    monkeypatch.setattr(infer, "describe", lambda name: stand_in("t4"))
    candidate = Candidate("t4:1x1x1", "tp", "bfloat16", replace(LOAD, context=7))
    reason = infer.row(PROBLEM, False, candidate, tmp_path)["reason"]
    assert reason == "context: got 7 tokens, expected at least the 8 that the media take"


def test_every_card_is_described_and_known_by_its_own_name():
    for chip in CHIPS.values():
        assert chip_of(chip.kinds[0]) == chip
        if not chip.is_tpu:
            assert f"device_memory_size: {int(chip.memory)}" in target_config(chip)
    assert "major: 7 minor: 5" in target_config(CHIPS["t4"])
    for other in ("NVIDIA L40S", "NVIDIA GeForce RTX 4090 Laptop GPU"):
        assert chip_of(other) is None
    assert Model(TINY).dtype == jnp.bfloat16


@pytest.mark.slow
def test_the_command_answers(tmp_path, capsys):
    out = tmp_path / "rows.json"
    argv = ["--config=configs/tiny.py:stage=all", "--topology=cpu:2", "--dtype=bfloat16,int8"]
    argv += ["--context=24", "--new-tokens=8", f"--cache={tmp_path / 'cache'}", f"--json={out}"]
    assert main(["plan", "--infer", *argv]) == 0
    row, eighth = json.loads(out.read_text())
    assert set(row["programs"]) == {"see", "hear", "prefill", "decode"}
    assert row["gib"]["towers"] == eighth["gib"]["towers"]
    assert row["gib"]["llm"] > eighth["gib"]["llm"]
    assert row["bytes_per_token"] > eighth["bytes_per_token"]
    assert len(list((tmp_path / "cache").iterdir())) == 6  # the encoders' programs are the same
    assert row["mesh"] == {"data": 1, "tensor": 2}
    kinds = {c["kind"] for c in row["programs"]["decode"]["collectives"]}
    assert "all-reduce" in kinds
    assert row["bound_s"] is None
    told = capsys.readouterr().out
    assert told.startswith("tiny (vicuna) on cpu:2, batch 1, 24 + 8 tokens: bfloat16 fits by tp")
    assert main(["plan", "--infer", *argv, "--dtype=int3"]) == 1
    assert "--dtype: got 'int3', expected some of float32, bfloat16" in capsys.readouterr().err
