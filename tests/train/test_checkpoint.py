"""Checkpoints: what is damaged is found out and left out."""

import functools
import json
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore as ts

from vljax.config import VISION
from vljax.models.sizes import TINY, VideoLlamaSize, video_llama_size
from vljax.store import WeightsError
from vljax.train import partition
from vljax.train.checkpoint import Checkpoints, checksum, checksum_on_host
from vljax.train.objectives import make_objective
from vljax.train.optimizer import OptimizerConfig, make_optimizer
from vljax.train.step import Problem, TrainState, make_state

FACTS = {"frozen": "abc"}


def state_at(step: int) -> TrainState:
    rng = np.random.default_rng(step)
    params = {"a": {"kernel": jnp.asarray(rng.normal(size=(300, 40)), jnp.float32)}}
    state = make_state(params, optax.adamw(1e-3), jax.random.key(step))
    return state.replace(step=jnp.int32(step))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore(state_at(0), FACTS) is None
        for step in (2, 4, 6):
            checkpoints.save(state_at(step), FACTS | {"consumed": {"x": step}})
    assert {p.name for p in folder.iterdir()} == {"4", "6"}
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "checkpoints"))


def largest(path: Path) -> Path:
    return max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(path: Path) -> None:
    file = largest(path / "state")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    file = largest(path / "state")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def garble(path: Path) -> None:
    (path / "meta" / "metadata").write_text('{"frozen": "ab')


DAMAGES = {
    "truncated": truncate,
    "a flipped bit": flip_a_bit,
    "a file gone": lambda path: largest(path / "state").unlink(),
    "arrays gone": lambda path: shutil.rmtree(path / "state"),
    "no marker": lambda path: (path / "commit_success.txt").unlink(),
    "garbled facts": garble,
    "other facts": lambda path: (path / "meta" / "metadata").write_text("{}"),
    "empty": lambda path: [shutil.rmtree(path), path.mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_a_damaged_one_is_used(folder, damage, capfd):
    DAMAGES[damage](folder / "6")
    with Checkpoints(folder) as checkpoints:
        state, meta = checkpoints.restore(state_at(0), FACTS)
        assert int(state.step) == 4 and meta["consumed"] == {"x": 4}
        expected = state_at(4)
        np.testing.assert_array_equal(state.params["a"]["kernel"], expected.params["a"]["kernel"])
        assert jax.random.key_data(state.rng).tolist() == [0, 4]
        checkpoints.save(state_at(6), FACTS)  # its place is free again
    assert "checkpoint 6 is left out: " in capfd.readouterr().err
    assert (folder / "6.bad").is_dir()
    with Checkpoints(folder) as checkpoints:
        assert int(checkpoints.restore(state_at(0), FACTS)[0].step) == 6


def test_all_of_them_damaged(folder):
    for step in ("4", "6"):
        truncate(folder / step)
    for _ in range(2):  # and none is put aside, or the next start would begin anew
        with pytest.raises(WeightsError, match="none of its checkpoints is whole; bring one back"):
            Checkpoints(folder)


def test_another_version_s_is_told(folder):
    path = folder / "6" / "meta" / "metadata"
    path.write_text(json.dumps(FACTS))
    told = "another version of vljax; let that one finish"
    with Checkpoints(folder) as checkpoints, pytest.raises(WeightsError, match=told):
        checkpoints.restore(state_at(0), FACTS)


def test_other_facts_and_other_arrays_are_refused(folder):
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(WeightsError, match="checkpoint 6: was written with frozen=abc, got x"):
            checkpoints.restore(state_at(0), {"frozen": "x"})
        other = make_state({"b": jnp.zeros(3)}, optax.adamw(1e-3), jax.random.key(0))
        with pytest.raises(WeightsError, match="its arrays are not those of this run"):
            checkpoints.restore(other, FACTS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint32", "int8"])
@pytest.mark.parametrize("shape", [(), (7,), (3, 8, 5)])
def test_checksums_are_of_every_bit_and_its_place(shape, dtype):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 100, shape).astype(dtype)
    spread = jax.device_put(
        x, jax.sharding.NamedSharding(jax.make_mesh((1,), ("d",)), jax.sharding.PartitionSpec())
    )
    whole = int(jax.jit(checksum)(spread))
    assert whole == int(checksum_on_host(x))
    bits = x.reshape(-1).view(np.uint8)
    for place in (0, bits.size // 2, bits.size - 1):
        for bit in (0, 7):
            bits[place] ^= 1 << bit
            assert int(checksum_on_host(x)) != whole
            bits[place] ^= 1 << bit
    if x.size > 1:
        assert int(checksum_on_host(x[::-1].copy())) != whole


def vision_state(size: VideoLlamaSize) -> TrainState:
    """Abstract: what a run of the vision stage keeps."""
    problem = Problem(size, make_objective("vision"), VISION)
    trainable, _ = partition.split(nn.unbox(problem.abstract()), VISION)
    make = functools.partial(make_state, tx=make_optimizer(OptimizerConfig(), 10))
    return jax.eval_shape(lambda params: make(params, rng=jax.random.key(0)), trainable)


def size_in_bytes(tree: object) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_a_checkpoint_of_7b_holds_nothing_frozen():
    assert size_in_bytes(vision_state(video_llama_size("7b"))) < 300e6


def test_a_checkpoint_of_tiny_is_less_than_three_times_its_trainables(tmp_path):
    """As it is stored, where even noise is packed a little: trainables and two moments of each.

    The files hold more where writing was interrupted: how values are bundled is a matter of time.
    """
    abstract = vision_state(TINY)
    rng = np.random.default_rng(0)

    def draw(x: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(rng.normal(size=x.shape), x.dtype)

    params, opt_state = (jax.tree.map(draw, t) for t in (abstract.params, abstract.opt_state))
    state = TrainState(jnp.int32(1), params, opt_state, jax.random.key(0))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(state, FACTS)
    (folder,) = (tmp_path / "checkpoints").glob("*/state")
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/"}).result()
    written = sum(len(store[key]) for key in store.list().result())
    assert 2 < written / size_in_bytes(params) < 3
