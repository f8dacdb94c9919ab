"""Rows of a plan: compiled for this machine's processor as eight devices, and judged by figures."""

import dataclasses
import functools
import json
import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from vljax.bench.compile import abstract_batch, largest, lower_step, out_of_memory
from vljax.bench.hlo import Collective
from vljax.bench.plan import (
    Died,
    Planned,
    answer,
    apart,
    cached,
    plan,
    ranked,
    row_apart,
    table,
)
from vljax.bench.roofline import axis_rate, bound
from vljax.bench.search import (
    Candidate,
    candidate_of,
    factorised,
    largest_batch,
    least_batch,
    varied,
)
from vljax.bench.topology import Topology, describe, reserve
from vljax.bench.train import RATES, Case
from vljax.cli import plan as cli
from vljax.cli.main import main
from vljax.models.sizes import TINY
from vljax.sharding.chips import CHIPS, chip_of
from vljax.sharding.mesh import make_mesh
from vljax.sharding.placement import Placement
from vljax.sharding.strategy import strategy
from vljax.train.objectives import make_objective
from vljax.train.optimizer import OptimizerConfig, make_optimizer
from vljax.train.step import Problem, abstract_arguments

SMALL = Candidate("cpu:8", "fsdp", 1, 1, 32)


@pytest.mark.slow
def test_a_row_of_a_strategy_that_fits_and_one_that_does_not(tmp_path, capsys):
    out = tmp_path / "rows.json"
    argv = ["--config=configs/vision_pretrain.py:size=tiny", "--topology=cpu:8"]
    argv += ["--strategy=dp,tp", "--batch-per-device=1", "--frames=1", "--seq=32"]
    argv += [f"--cache={tmp_path / 'cache'}", f"--json={out}"]
    charts = [f"--html={tmp_path / 'plan.html'}", f"--png={tmp_path / 'charts'}"]
    assert main(["plan", *argv, *charts]) == 0
    assert "Use dp on cpu:8" in (tmp_path / "plan.html").read_text()
    assert len(list((tmp_path / "charts").glob("*.png"))) == 4
    fits, refused = json.loads(out.read_text())
    assert (fits["strategy"], fits["fits"], fits["mesh"]) == ("dp", True, {"data": 8})
    assert fits["hbm_gib"]["arguments"] == pytest.approx(sum(fits["parts_gib"].values()), rel=0.01)
    assert {c["kind"] for c in fits["collectives"]} == {"all-reduce"}
    assert fits["flops_per_device"] > 0
    assert fits["bound_s"] is None
    assert refused["fits"] is False
    assert "4 heads" in refused["reason"]
    assert "Use dp on cpu:8" in capsys.readouterr().out
    kept = list((tmp_path / "cache").iterdir())
    assert len(kept) == 1
    # what was compiled once is read
    kept[0].write_text(kept[0].read_text().replace('"compile_s": ', '"compile_s": 99'))
    assert main(["plan", *argv]) == 0
    assert json.loads(out.read_text())[0]["compile_s"] > 90


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp", "fsdp_tp"])
@pytest.mark.parametrize(("size", "layers"), [("tiny", 0), ("7b", 4)])
def test_planned_bytes_are_those_of_placed_arrays(name, size, layers):
    """Of frozen and trainable weights, moments and batch: to the byte, on the first device."""
    dtype = jnp.float32 if size == "tiny" else jnp.bfloat16
    model = Case(size, layers).model
    problem = Problem(model, make_objective("vision"), (r"video_proj/", r"video_qformer/"), dtype)
    topology, how = describe("cpu:8"), strategy(name)
    batch = abstract_batch(problem, 8, 2, 32)
    parts = lower_step(problem, RATES, how, topology, batch).parts
    placement = Placement(how, make_mesh(how, topology.devices))
    wanted = abstract_arguments(problem, make_optimizer(RATES, 9), placement, batch)
    state, frozen, placed = zeros(wanted)
    trees = {"frozen": frozen, "trainable": state.params, "optimizer": state.opt_state}
    trees["batch"] = placed
    assert parts == {part: bytes_on(jax.devices()[0], tree) for part, tree in trees.items()}
    whole = sum(x.nbytes for x in jax.tree.leaves(frozen))
    assert whole / 8 <= parts["frozen"] < whole / 4


def zeros(wanted):
    where = jax.tree.map(lambda x: x.sharding, wanted)
    made = jax.jit(
        lambda: jax.tree.map(
            lambda x: (
                jax.random.key(0)
                if jnp.issubdtype(x.dtype, jax.dtypes.extended)
                else jnp.zeros(x.shape, x.dtype)
            ),
            wanted,
        ),
        out_shardings=where,
    )
    return made()


def bytes_on(device, tree):
    shards = (s for x in jax.tree.leaves(tree) for s in x.addressable_shards)
    return sum(s.data.nbytes for s in shards if s.device == device)


def given(strategy, seconds, fits=True, high=0.0):
    terms = {"compute": seconds, "hbm": 0.0, "ici": seconds / 2, "dcn": 0.0}
    return {
        "topology": "v5e:4x4",
        "strategy": strategy,
        "mesh": {"data": 16},
        "batch_per_device": 4,
        "variant": "",
        "fits": fits,
        "reason": "" if fits else "needs 20 GiB of 16 GiB",
        "bound_s": terms | {"low": seconds, "high": high or seconds * 1.5},
        "at_best": {
            "clips_per_s": 64 / seconds,
            "tokens_per_s_per_device": 2048 / seconds,
            "mfu": 0.5,
            "chip_hours": 100 * seconds,
        },
    }


def test_the_fastest_that_fits_comes_first_and_refused_rows_keep_their_reason():
    rows = ranked([given("tp", 2.0), given("dp", 0.5, fits=False), given("fsdp", 1.0)])
    assert [r["strategy"] for r in rows] == ["fsdp", "tp", "dp"]
    assert answer(rows) == (
        "Use fsdp on v5e:4x4, 4 clips a device: at least 1 s a step, limited by compute. Next "
        "best: tp on v5e:4x4, 100% slower at best, because of compute."
    )
    assert "no: needs 20 GiB of 16 GiB" in table(rows)
    assert answer(rows[2:]).startswith("Nothing fits.")


@pytest.mark.parametrize(
    ("least", "most_that_fit", "tries"),
    [(1, 0, 1), (1, 1, 2), (1, 5, 6), (1, 37, 10), (4, 3, 1), (4, 8, 4), (4, 31, 6)],
)
def test_the_largest_batch_is_found_in_few_tries(least, most_that_fit, tries):
    asked = []

    def compiled(candidate):
        asked.append(candidate.batch)
        return {"batch_per_device": candidate.batch, "fits": candidate.batch <= most_that_fit}

    found = largest_batch(compiled, SMALL, least, 64)
    assert found["fits"] == (most_that_fit >= least)
    assert most_that_fit * 0.75 <= found["batch_per_device"] <= max(most_that_fit, least)
    assert all(batch % least == 0 for batch in asked)
    assert len(asked) <= tries


def test_a_batch_leaves_every_part_of_a_step_rows(monkeypatch):
    problem = Problem(TINY, make_objective("vision"), (r"video_proj/",), accumulate=4)
    assert least_batch(problem) == 4
    argv = ["--config=configs/vision_pretrain.py:size=tiny", "--topology=cpu:8"]
    argv += ["--config.accumulate=4", "--batch-per-device=auto", "--most=3"]
    monkeypatch.setattr("sys.argv", ["vljax", *argv])  # where ml_collections looks for fields
    with pytest.raises(ValueError, match="--most: got 3, expected at least 4 clips a device"):
        cli.main(argv)

    def planned(wanted, *_):
        raise InterruptedError(wanted[0].batch)

    monkeypatch.setattr("vljax.bench.plan.plan", planned)
    with pytest.raises(InterruptedError, match=r"^8$"):  # --most is of auto alone
        cli.main([*argv[:-2], "--batch-per-device=8", "--most=3"])


def test_a_compiler_that_died_is_a_row_and_the_next_is_made(monkeypatch, tmp_path):
    def died(*_):
        raise Died("ended with exit code -9")

    monkeypatch.setattr("vljax.bench.plan.apart", died)
    monkeypatch.setattr(
        "vljax.bench.plan.describe", lambda name: Topology(name, None, "cpu", 1, ())
    )
    problem = Problem(TINY, make_objective("vision"), (r"video_proj/",))
    run = Planned(problem, OptimizerConfig(), 1)
    rows = plan([SMALL, SMALL], functools.partial(row_apart, run, tmp_path))
    assert [(r["fits"], r["reason"]) for r in rows] == [(False, "ended with exit code -9")] * 2


def test_a_program_is_compiled_anew_for_other_flags(monkeypatch, tmp_path):
    program, topology = SimpleNamespace(text="a program"), Topology("cpu:8", None, "cpu", 1, ())
    asked = []

    def compiled(*_):
        asked.append(os.environ.get("LIBTPU_INIT_ARGS"))
        return {"told": len(asked)}

    def told():
        return cached(program, topology, tmp_path, compiled)["told"]

    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    assert [told(), told()] == [1, 1]
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=1")
    assert [told(), told()] == [2, 2]
    assert asked == [None, "--xla_tpu_scoped_vmem_limit_kib=1"]


def test_a_message_of_the_compiler_becomes_a_sentence():
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. (25.61G) exceeds available HBM (15.75G) Size: 500.00M  Operator: dot "
        "Shape: bf16[1,8,16]{2,1,0} Unpadded"
    )
    needed, reason = out_of_memory(message)
    assert needed == pytest.approx(25.61)
    assert reason.startswith("needs at least 25.61 GiB of 15.75 GiB; the largest buffers are bf16[")
    assert out_of_memory("INTERNAL: something else") == (0.0, "")
    parts = {"batch": 2**20, "frozen": 3 * 2**30, "optimizer": 2**29}
    assert largest(parts) == "frozen of 3.00 GiB, optimizer of 0.50 GiB"


class Place:
    """A device of a described TPU."""

    def __init__(self, x, y, piece=0):
        self.coords, self.slice_index, self.process_index = (x, y, 0), piece, 0


def mesh_of(width, height):
    devices = np.array([[Place(x, y) for y in range(height)] for x in range(width)])
    return dataclasses.make_dataclass("Mesh", ["devices", "axis_names"])(devices, ("fsdp", "seq"))


def test_rates_follow_the_torus():
    link = CHIPS["v5e"].link
    topology = dataclasses.make_dataclass("T", ["chip"])(CHIPS["v5e"])
    line, ring = mesh_of(4, 4), mesh_of(16, 16)
    assert axis_rate(topology, line, "fsdp") == link
    assert axis_rate(topology, ring, "fsdp") == 2 * link
    assert axis_rate(topology, ring, "fsdp+seq") == 4 * link
    assert axis_rate(topology, ring, "slices") == CHIPS["v5e"].network


def test_a_bound_is_from_its_longest_term_to_their_sum():
    topology = dataclasses.make_dataclass("T", ["chip"])(CHIPS["v5e"])
    found = [
        Collective("all-gather", "fsdp", 1, int(9e9)),
        Collective("all-reduce", "slices", 1, 31),
    ]
    limits = bound(topology, mesh_of(16, 16), 1.97e14, 8.1e11 / 4, found)
    assert limits.compute == 1.0
    assert limits.memory == 0.25
    assert limits.axes == {"fsdp": pytest.approx(0.1)}
    assert limits.network == pytest.approx(1e-8)
    assert limits.low == 1.0
    assert limits.high == pytest.approx(1.35)
    more = bound(topology, mesh_of(16, 16), 1.97e14, 8.1e11 / 4, found, compiled=1.97e14 * 1.5)
    assert (more.low, more.high) == (1.0, pytest.approx(1.85))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("v5e-16", "v5e:4x4"),
        ("v5litepod-256", "v5e:16x16"),
        ("v5e:4y4", "v5e:4x4"),
        ("h1000:8", "h100:1x1x8"),
        ("v5pod:64", "v5p:4x4x4"),
        ("v5e:", "v5e:1x1"),
        ("", "v5e:4x4"),
    ],
)
def test_names_that_are_no_topology_are_told_with_what_was_meant(name, meant):
    with pytest.raises(ValueError, match=rf"expected CHIP:SHAPE such as .*{meant}"):
        describe(name)


def test_slices_of_gpus_are_the_first_number():
    with pytest.raises(ValueError, match=r"got 'h100:1x2x8\*4', expected .* h100:4x2x8"):
        describe("h100:1x2x8*4")


def test_a_larger_topology_may_come_after_a_smaller_one():
    assert apart(_described, ["cpu:2", "v5e:1x1@cpu", "cpu:6"]) == [2, 1, 6]


def _described(names):
    reserve(names)
    return [len(describe(name).devices) for name in names]


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ("ABORTED: Internal error: /tmp/libtpu_lockfile is held", "another process holds libtpu"),
        ("libtpu.so: cannot open shared object file", r"pip install 'vljax\[plan-tpu\]'"),
        ("JAX TPU support not installed; see there", r"pip install 'vljax\[plan-tpu\]'"),
        ("UNKNOWN: no such torus", "TPU v5e does not come in 4x4, but in .*no such torus"),
    ],
)
def test_what_keeps_the_tpu_compiler_away_is_one_sentence(raised, told, monkeypatch):
    def refuse(**_):
        raise RuntimeError(raised)

    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    with pytest.raises(ValueError, match=told):
        describe("v5e:4x4")


def test_ties_are_told_by_what_does_not_overlap():
    best, other = given("fsdp", 1.0, high=1.2), given("tp", 1.0, high=1.8)
    other["bound_s"]["ici"] = 0.9
    assert answer(ranked([other, best])).endswith(
        "Next best: tp on v5e:4x4, 50% slower if nothing overlaps, because of collectives inside "
        "a slice."
    )


def test_a_search_tries_legal_meshes_then_other_policies_and_int8():
    problem = Problem(TINY, make_objective("vision"), (r"video_proj/",), remat="full")
    wanted = [Candidate("cpu:8", name, 1, 1, 32) for name in ("dp", "fsdp_tp")]
    topology = dataclasses.make_dataclass("T", ["devices", "slices"])(range(8), 1)
    names = [c.strategy for c in factorised(wanted, problem, topology)]
    assert names[0] == "dp:data=8"
    assert "fsdp_tp:fsdp=4:tensor=2" in names
    assert "fsdp_tp:fsdp=2:tensor=4" in names
    assert not any("tensor=8" in name for name in names)  # of 4 heads
    rows = [
        dataclasses.asdict(c) | {"mesh": {"data": 8}, "batch_per_device": 1, "tokens_per_row": 32}
        for c in wanted
    ]
    assert candidate_of(rows[0]) == wanted[0]
    tried = {(c.strategy, c.remat, c.quantise) for c in varied(rows, problem)}
    assert ("dp", "dots", "int8") in tried
    assert ("dp", "full", "int8") in tried
    assert ("dp", "full", "") not in tried
    changed = Candidate("cpu:8", "dp", 1, 1, 32, "dots", "int8")
    assert changed.variant == "remat dots, int8"
    assert changed.applied(problem).remat == "dots"
    assert changed.applied(problem).formats


def test_a_chip_is_known_by_the_longest_name():
    assert chip_of("NVIDIA H100 PCIe").name == "h100_pcie"
    assert chip_of("TPU v5 lite").name == "v5e"
    assert chip_of("TPU v5").name == "v5p"
    assert chip_of("cpu") is None


def test_a_batch_of_clips_has_frames_and_tokens():
    problem = Problem(TINY, make_objective("vision"), (r"video_proj/",))
    batch = abstract_batch(problem, 2, 5, 32)
    assert batch["frames"].shape[:2] == batch["frame_mask"].shape == (2, 5)
    assert batch["tokens"].shape == batch["labels"].shape == (2, 32)


@pytest.mark.slow
def test_without_a_chips_compiler_the_processors_stands_in_and_says_so(
    tmp_path, capsys, monkeypatch
):
    def refuse(**_):
        raise RuntimeError("JAX TPU support not installed")

    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    out = tmp_path / "rows.json"
    argv = ["--config=configs/vision_pretrain.py:size=tiny", "--topology=v5e:2x4", "--strategy=dp"]
    argv += ["--batch-per-device=1", "--frames=1", "--seq=32", f"--cache={tmp_path / 'cache'}"]
    assert main(["plan", *argv, f"--json={out}"]) == 0
    (row,) = json.loads(out.read_text())
    assert (row["topology"], row["backend"]) == ("v5e:2x4@cpu", "cpu")
    assert row["fits"]
    assert row["hbm_gib"]["limit"] == pytest.approx(15.75)
    assert row["bound_s"] is None  # a TPU's time is not told by another compiler's program
    told = capsys.readouterr()
    assert "pip install 'vljax[plan-tpu]'; until then the CPU's stands in" in told.err
    assert "temporaries and collectives are not" in told.out
