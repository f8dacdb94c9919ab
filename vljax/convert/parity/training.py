"""One AdamW step of each branch: loss, gradients, parameters after it, loss after it."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vljax.config import AUDIO, VISION
from vljax.convert.parity.compare import EXACT, NORM, PIXEL, Check
from vljax.convert.parity.golden import GoldenSet, frames_last
from vljax.convert.parity.language import Batch, batch_of, captions, conversations
from vljax.convert.towers import to_torch
from vljax.data.text import caption_example
from vljax.data.video import CLIP_MEAN, CLIP_STD
from vljax.sharding.mesh import make_mesh
from vljax.sharding.placement import Placement
from vljax.sharding.strategy import strategy
from vljax.store import flatten, unflatten
from vljax.train import partition
from vljax.train.objectives import make_objective
from vljax.train.optimizer import OptimizerConfig, decays, make_optimizer
from vljax.train.step import Problem, make_state, make_train_step

NOISE = "self.key.bias"  # no output depends on these: their gradients are rounding, and so Adam's

Tensors = dict[str, np.ndarray]


class Stepped(NamedTuple):
    """What one step did, in torch names."""

    loss: jax.Array
    loss_after: jax.Array
    grads: Tensors
    params: Tensors
    decay: Tensors


def problem(golden: GoldenSet, branch: str) -> Problem:
    """A branch's problem as a stage of training has it, without dropout."""
    size = golden.size.without_dropout()
    if branch == "audio":
        return Problem(size, make_objective("audio", feature_noise=0.0), AUDIO)
    return Problem(size, make_objective("vision"), VISION)


def trainable_names(golden: GoldenSet, branch: str) -> list[str]:
    """Torch names of what a branch trains, sorted."""
    params, _ = partition.split(golden.params, problem(golden, branch).trainable)
    return sorted(to_torch(params, golden.size))


def training(golden: GoldenSet, check: Check, case: str) -> None:
    """train_CASE.npz."""
    with check.attempt(case):
        branch = case.split("_")[0]
        batch = BATCHES[case](golden)
        rate, decay = golden.config["train_lr"], golden.config["train_weight_decay"]
        check("lr", np.float32(rate), EXACT)
        stepped = step(golden, problem(golden, branch), batch, rate, decay)
        check("loss", stepped.loss)
        check("loss_after_step", stepped.loss_after)
        for name, value in stepped.decay.items():
            check(f"weight_decay/{name}", value, PIXEL)
        for name, grad in stepped.grads.items():
            _unless_noise(check, f"grad_norm/{name}", np.linalg.norm(grad))
            _unless_noise(check, f"grad/{name}", grad)
        for name, value in stepped.params.items():
            _unless_noise(check, f"param_norm_after/{name}", np.linalg.norm(value))
            _unless_noise(check, f"param_after/{name}", value)


def _unless_noise(check: Check, name: str, got: Any) -> None:
    if name.endswith(NOISE):
        check.skip(name, "rounding noise: a key bias has no effect")
    elif name.startswith("grad"):
        check(name, got, NORM)
    else:
        check(name, got)


def step(golden: GoldenSet, problem: Problem, batch: Batch, rate: float, decay: float) -> Stepped:
    """Two steps of training's own program: the first one's effects, and the second one's loss."""
    config = OptimizerConfig(
        peak_lr=rate, min_lr=rate, warmup_steps=0, steps_per_epoch=1, weight_decay=decay
    )
    tx = make_optimizer(config, 1)
    one = strategy("dp")
    placement = Placement(one, make_mesh(one, jax.devices()[:1]))
    put = functools.partial(jax.device_put, device=placement.replicated)
    trainable, frozen = partition.split(golden.params, problem.trainable)
    state = put(make_state(jax.tree.map(jnp.array, trainable), tx, jax.random.key(0)))
    run = make_train_step(problem, tx, placement, state)
    state, metrics = run(state, put(frozen), put(batch))
    # After one step Adam's first moment is the gradient times 1 - b1.
    moment = optax.tree_utils.tree_get(state.opt_state, "mu")
    grads = jax.tree.map(lambda m: np.asarray(m) / np.float32(1 - config.b1), moment)
    after = jax.tree.map(np.asarray, state.params)
    _, later = run(state, put(frozen), put(batch))
    names = functools.partial(to_torch, size=golden.size)
    return Stepped(
        metrics["loss"], later["loss"], names(grads), names(after), _decay(golden, after, config)
    )


def _decay(golden: GoldenSet, params: Any, config: OptimizerConfig) -> Tensors:
    """The weight decay of each tensor, as a scalar."""
    flags = flatten(decays(params, config))
    filled = {
        name: np.full(x.shape, config.weight_decay * flags[name], np.float32)
        for name, x in flatten(params).items()
    }
    return {name: x.max() for name, x in to_torch(unflatten(filled), golden.size).items()}


def vision_caption(golden: GoldenSet) -> Batch:
    examples = captions(golden, "caption_vicuna", limit_of="train_vision_caption")
    return batch_of(examples) | _frames(frames_last(golden.vision["video"]))


def vision_instruct(golden: GoldenSet) -> Batch:
    examples = conversations(golden, "video_vicuna")
    return batch_of(examples) | _frames(frames_last(golden.vision["video"]))


def audio_caption(golden: GoldenSet) -> Batch:
    """Pictures stand for sounds; as many texts as there are pictures."""
    images = golden.arrays("audio_imagebind")["vision/images_b_t_c_h_w"]
    c = golden.texts["caption"]
    limit = c["max_txt_len"]["train_audio_caption"]
    queries = golden.config["n_audio_query"]
    examples = [
        caption_example(golden.tokenizer, text, queries, end="\n", limit=limit)
        for text in c["texts"][: len(images)]
    ]
    return batch_of(examples) | _frames(images.transpose(0, 1, 3, 4, 2))


BATCHES = {
    "vision_caption": vision_caption,
    "vision_instruct": vision_instruct,
    "audio_caption": audio_caption,
}


def _frames(normalised: np.ndarray) -> Batch:
    """Back to pixels [B, T, H, W, 3], which the objectives take and normalise; not rounded."""
    pixels = (normalised * CLIP_STD + CLIP_MEAN) * 255
    return {"frames": pixels, "frame_mask": np.ones(pixels.shape[:2], bool)}
