"""One step: what moves, what does not, and that its parts make the whole."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from vljax.config import AUDIO, VISION
from vljax.data.text import IGNORE
from vljax.sharding.mesh import make_mesh
from vljax.sharding.placement import Placement
from vljax.sharding.strategy import strategy
from vljax.store import content_hash, flatten, unflatten
from vljax.train import partition
from vljax.train.loop import place
from vljax.train.objectives import cross_entropy, language_loss, make_objective
from vljax.train.optimizer import OptimizerConfig, make_optimizer
from vljax.train.step import Problem, make_state, make_train_step, microbatches

RATES = OptimizerConfig(peak_lr=1e-2, min_lr=1e-3, warmup_steps=0)
OBJECTIVES = {
    "vision": (VISION, {}),
    "audio": (AUDIO, {"feature_noise": 0.5}),
    "text": ((r"llama/",), {"context_noise": 0.5}),
    "tags": ((r"frame_encoder/", r"tag_heads/", r"patch_head/"), {"classes": (7, 6), "things": 2}),
    "pairs": ((r"imagebind/", r"log_scale"), {}),
}


@pytest.fixture(scope="module")
def problem(small):
    """The problem of a named objective on the small model."""

    @functools.cache
    def make(name: str) -> Problem:
        trainable, options = OBJECTIVES[name]
        return Problem(small, make_objective(name, **options), trainable)

    return make


def draw(abstract: dict) -> dict:
    """Numpy parameters, without compiling an initialiser."""
    rng = np.random.default_rng(0)
    flat = flatten(abstract)
    return unflatten(
        {n: rng.normal(n.endswith("scale"), 0.1, x.shape).astype(x.dtype) for n, x in flat.items()}
    )


@pytest.fixture(scope="module")
def initial(problem):
    """Parameters of a named objective, on the host."""

    @functools.cache
    def make(name: str) -> dict:
        return draw(nn.unbox(problem(name).abstract()))

    return make


def train(problem, params, batches, name="dp", devices=1):
    """-> (state, frozen, metrics of each step) after a step a batch."""
    placement = Placement(strategy(name), make_mesh(strategy(name), jax.devices()[:devices]))
    where = flatten(placement.parameters(problem.abstract()))
    placed = unflatten({n: jax.device_put(x, where[n]) for n, x in flatten(params).items()})
    trainable, frozen = partition.split(placed, problem.trainable)
    tx = make_optimizer(RATES, 5)
    state = make_state(trainable, tx, jax.random.key(1))
    state = jax.tree.map(lambda x: x if x.ndim else jax.device_put(x, placement.replicated), state)
    frozen = problem.lay_out(frozen)
    step = make_train_step(problem, tx, placement, state)
    metrics = []
    for batch in batches:
        state, row = step(state, frozen, place(batch, placement))
        metrics.append(jax.device_get(row))
    return state, frozen, metrics


@pytest.fixture(scope="module")
def trained(problem, initial, media_batch):
    return train(problem("vision"), initial("vision"), [media_batch(i % 7) for i in range(50)])


def test_what_is_frozen_stays_as_it_is(trained, initial):
    state, frozen, _ = trained
    before, kept = partition.split(initial("vision"), VISION)
    assert content_hash(frozen) == content_hash(kept)
    for name, x in flatten(state.params).items():
        assert (np.asarray(x) != flatten(before)[name]).any() or name.endswith("key/bias"), name


def test_the_optimizer_knows_trainables_only(trained):
    state = trained[0]
    sizes = {name: x.shape for name, x in flatten(state.params).items()}
    adam = [s for s in jax.tree.leaves(state.opt_state, is_leaf=_is_adam) if _is_adam(s)]
    assert len(adam) == 1
    for moments in (adam[0].mu, adam[0].nu):
        assert {name: x.shape for name, x in flatten(moments).items()} == sizes
    assert set(state.params) == {"frame_position", "video_qformer", "video_proj"}


def _is_adam(node: object) -> bool:
    return isinstance(node, optax.ScaleByAdamState)


def test_metrics_and_the_count_of_steps(trained):
    state, _, metrics = trained
    assert int(state.step) == len(metrics) == 50
    assert all(set(row) == {"loss", "grad_norm", "token_accuracy"} for row in metrics)
    assert all(np.isfinite(list(row.values())).all() for row in metrics)


@pytest.mark.slow
def test_layers_one_by_one_give_the_same_losses(problem, initial, media_batch, trained):
    """And what is frozen comes back from its single layers as it was stacked."""
    one_by_one = dataclasses.replace(problem("vision"), unroll=True)
    batches = [media_batch(i) for i in range(3)]
    _, frozen, metrics = train(one_by_one, initial("vision"), batches, "fsdp", 4)
    expected = [row["loss"] for row in trained[2][:3]]
    np.testing.assert_allclose([row["loss"] for row in metrics], expected, rtol=1e-5)
    assert frozen["llama"]["layers"]["mlp"]["up"]["kernel"]["1"].ndim == 2
    assert content_hash(partition.restack(frozen)) == content_hash(trained[1])


@pytest.fixture(scope="module")
def without_dropout(small):
    def make(count: int) -> Problem:
        problem = Problem(small.without_dropout(), make_objective("vision"), VISION)
        return dataclasses.replace(problem, accumulate=count)

    return make


@pytest.mark.slow
def test_accumulation_changes_no_gradient(without_dropout, initial, media_batch):
    """Though its parts, on four devices, teach unequal numbers of tokens."""
    batch = media_batch(0)
    batch["labels"][1::2, :6] = IGNORE
    taught = (batch["labels"][:, 1:] != IGNORE).sum(1)
    assert taught[::2].sum() != taught[1::2].sum()
    states, metrics = [], []
    for count in (1, 2):
        state, _, [row] = train(without_dropout(count), initial("vision"), [batch], "fsdp", 4)
        metrics.append(row)
        states.append(optax.tree_utils.tree_get(state.opt_state, "mu"))
    assert metrics[0].keys() == metrics[1].keys()
    for name, value in metrics[0].items():
        np.testing.assert_allclose(value, metrics[1][name], rtol=1e-6)
    chex.assert_trees_all_close(*states, atol=1e-7, rtol=1e-5)


def test_rows_of_a_microbatch_stay_on_their_device():
    mesh = make_mesh(strategy("dp"), jax.devices()[:4])
    placement = Placement(strategy("dp"), mesh)
    batch = place({"tokens": np.arange(16).reshape(8, 2)}, placement)
    split = jax.jit(lambda b: microbatches(b, 2, placement))
    assert split(batch)["tokens"][:, :, 0].tolist() == [[0, 4, 8, 12], [2, 6, 10, 14]]
    text = split.lower(batch).compile().as_text()
    assert not [op for op in ("all-to-all", "all-gather", "collective-permute") if op in text]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"accumulate": 0}, "accumulate, frame_chunk: got 0 and 0, expected at least 1 and"),
        ({"remat": "dot"}, "remat: got 'dot', expected one of none, dots, "),
        ({"objective": make_objective("pairs"), "accumulate": 2}, "got 2, expected 1 for an obj"),
    ],
)
def test_a_problem_that_cannot_be(small, fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Problem(**{"size": small, "objective": make_objective("vision"), "trainable": ()} | fields)


@pytest.mark.parametrize(
    ("name", "towers", "moving"),
    [
        ("vision", {"frame_encoder"}, {"frame_position", "video_qformer", "video_proj", "llama"}),
        ("audio", {"imagebind"}, {"audio_position", "audio_qformer", "audio_proj", "llama"}),
    ],
)
def test_no_gradient_reaches_a_frozen_tower(problem, initial, media_batch, name, towers, moving):
    """Even when everything is differentiated; LLaMA hands the gradient on, so it has one."""

    def loss(params):
        return problem(name).loss(params, media_batch(0), jax.random.key(0))[0]

    grads = jax.jit(jax.grad(loss))(initial(name))
    largest = {
        module: max(float(np.abs(g).max()) for g in jax.tree.leaves(tree))
        for module, tree in grads.items()
    }
    assert {m for m, size in largest.items() if size == 0} == towers
    assert {m for m, size in largest.items() if size > 0} == moving


def test_the_audio_branch_hears_nothing(problem, small):
    """Its parameters hold no sound tower, and its batch no spectrogram."""
    audio = problem("audio")
    names = flatten(nn.unbox(audio.abstract()))
    assert not [n for n in names if n.startswith("imagebind/sound")]
    assert [n for n in names if n.startswith("imagebind/vision")]
    assert not [n for n in names if n.startswith(("frame_", "video_"))]
    assert set(audio.objective.batch(small)) == {
        "frames",
        "frame_mask",
        "tokens",
        "mask",
        "labels",
    }


def test_the_vision_branch_has_no_imagebind(problem):
    assert set(problem("vision").abstract()) == {
        "frame_encoder",
        "frame_position",
        "video_qformer",
        "video_proj",
        "llama",
    }


@pytest.mark.parametrize("name", ["audio", "text", "tags", "pairs"])
def test_the_other_objectives_learn(problem, initial, media_batch, small, name):
    """Six steps on one batch bring the loss down."""
    batch = {n: x for n, x in media_batch(0).items() if n in problem(name).objective.batch(small)}
    rng = np.random.default_rng(0)
    if "frame_mask" not in batch and "frames" in batch:
        batch["frames"] = batch["frames"][:, :1]
    if name == "text":
        batch["tokens"] = batch["tokens"] % small.llama.vocab
        batch["context"] = np.arange(10)[None] < np.full((8, 1), 3)
    if name == "tags":
        batch["tags"] = rng.integers(0, 6, (8, 2, 2)).astype(np.int32)
        batch["patch_tags"] = rng.integers(0, 7, (8, 4)).astype(np.int32)
        batch["rgb"] = rng.uniform(size=(8, 2, 3)).astype(np.float32)
        batch["rgb"][:3, 1] = np.nan  # no second thing
    if name == "pairs":
        batch["mel"] = rng.normal(size=(8, 1, 32, 96)).astype(np.float32)
        batch["kinds"] = np.arange(8, dtype=np.int32) % 4
    assert set(batch) == set(problem(name).objective.batch(small))
    _, _, metrics = train(problem(name), initial(name), [batch] * 6)
    assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_an_unknown_objective_is_named():
    with pytest.raises(ValueError, match="objective: got 'visoin', expected one of"):
        make_objective("visoin")


def test_cross_entropy_counts_taught_labels_only():
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [1.0, 1.0, 1.0]]]))
    loss, accuracy = cross_entropy(logits, np.array([[0, 2, -100]]))
    np.testing.assert_allclose(loss, -(np.log(0.5) + np.log(0.1)) / 2, rtol=1e-6)
    assert accuracy == 0.5
    assert cross_entropy(logits, np.full((1, 3), -100)) == (0, 0)


def test_a_token_is_taught_by_what_stands_before_it():
    logits = np.full((1, 3, 4), -9.0)
    logits[0, 0, 2] = logits[0, 1, 3] = 9.0
    loss, metrics = language_loss(logits, np.array([[-100, 2, 3]]))
    assert loss < 1e-6
    assert metrics["token_accuracy"] == 1
