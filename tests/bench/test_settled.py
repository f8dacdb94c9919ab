"""What is read of a program before its machine code is written, against the whole compile."""

import os
import threading
import time

import jax.numpy as jnp
import pytest

from vljax.bench.compile import abstract_batch, compiled_step, lower_step
from vljax.bench.plan import apart
from vljax.bench.settled import assigned, settled
from vljax.bench.topology import describe
from vljax.bench.train import RATES
from vljax.models.sizes import video_llama_size
from vljax.sharding.strategy import strategy
from vljax.train.objectives import make_objective
from vljax.train.step import Problem

PROBLEM = Problem(video_llama_size("tiny"), make_objective("vision"), (r"video_",), jnp.bfloat16)

ASSIGNMENT = """BufferAssignment:
allocation 0: size 1000, page 0, parameter 0, shape |f32[250]| at ShapeIndex {}:
 value: <1 a @0> (size=1000,offset=0): f32[250]
allocation 1: size 24, page 0, parameter 1, shape |f32[6]| at ShapeIndex {}, maybe-live-out:
allocation 2: size 512, page 0, maybe-live-out:
allocation 3: size 512, page 0, constant:
allocation 4: size 4096, page 0, thread-local:
allocation 5: size 6656, color 6, page 0, preallocated-temp:
allocation 6: size 9000, page 0, preallocated-temp:
"""


def test_bytes_of_an_assignment(tmp_path):
    path = tmp_path / "module_0001.jit_step.after_optimizations-buffer-assignment.txt"
    path.write_text(ASSIGNMENT)
    assert assigned(tmp_path) == {"arguments": 1024, "temporaries": 9000, "outputs": 512}


def test_a_compiler_that_is_done_first(tmp_path):
    assert settled(lambda: "program", tmp_path) == "program"


def test_a_compiler_that_fails(tmp_path):
    def fails():
        raise RuntimeError("Ran out of memory on HBM")

    with pytest.raises(RuntimeError, match="Ran out of memory"):
        settled(fails, tmp_path)


def test_a_compiler_still_at_work_when_buffers_are_assigned(tmp_path):
    finish = threading.Event()

    def compiling():
        (tmp_path / "m.after_optimizations_after_buffer_assignment.txt").write_text("HloModule")
        finish.wait()
        return "program"

    assert settled(compiling, tmp_path) is None
    finish.set()


def test_a_process_is_not_waited_for_after_its_answer():
    began = time.monotonic()
    # An interpreter would wait for its threads.
    goes_on = "__import__('threading').Thread(target=__import__('time').sleep, args=(600,)).start()"
    assert apart(eval, f"{goes_on} or 42") == 42
    assert time.monotonic() - began < 60


def test_what_a_process_raises_is_raised_here():
    with pytest.raises(ValueError, match="no such mesh"):
        apart(int, "no such mesh")


def test_a_process_that_dies_is_told():
    with pytest.raises(RuntimeError, match="exit code 3 and no answer"):
        apart(os._exit, 3)


@pytest.mark.parametrize(("chips", "name"), [("v5e:2x4", "fsdp"), ("v5p:2x2x2", "fsdp_tp")])
def test_facts_are_those_of_the_whole_compile(chips, name):
    try:
        describe(chips)
    except ValueError as error:
        pytest.skip(str(error))
    early, whole = (apart(_facts, chips, name, whole) for whole in (False, True))
    for facts in (early, whole):
        del facts["compile_s"], facts["peak_rss_gib"]
    memory, told = early.pop("hbm_gib"), whole.pop("hbm_gib")
    assert early == whole  # collectives and FLOPs
    assert memory["arguments"] == told["arguments"]
    # Constants, of 512 bytes each, are temporaries to one and not to the other.
    assert memory["temporaries"] == pytest.approx(told["temporaries"], rel=0.01)
    assert memory["peak"] == pytest.approx(told["peak"], rel=0.01)


def _facts(chips, name, whole):
    topology, how = describe(chips), strategy(name)
    batch = abstract_batch(PROBLEM, 8, 4, 64)
    return compiled_step(lower_step(PROBLEM, RATES, how, topology, batch), topology, whole)[1]
