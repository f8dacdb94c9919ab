"""The programs that answering runs, lowered for devices that need not be here.

They are ``vljax.generate``'s own functions; here alone a plan knows of them.
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vljax.bench.compile import Program, held_bytes
from vljax.generate import decode
from vljax.generate.engine import ONLY_TRAINING, SIGHT, SOUND
from vljax.models import precision
from vljax.models.precision import Formats
from vljax.models.sizes import VideoLlamaSize
from vljax.models.video_llama import VideoLlama, abstract_parameters
from vljax.nn.layers import constraining
from vljax.nn.stack import CPU_OPTIONS
from vljax.sharding.placement import Placement
from vljax.store import Tree, flatten, is_under, unflatten
from vljax.train import flops

LLM = ("llama",)
SIGHTS = tuple(dict.fromkeys(part.partition("/")[0] for part in SIGHT))  # ln_vision, too
LOOKUP = "llama/tokens/embedding"  # of which a token reads one row, unless it is the head as well
CACHE_AXES = (None, "batch", None, "act_heads", None)


@dataclasses.dataclass(frozen=True)
class Model:
    """A model as it is held to answer: which senses it has, and in what its weights are."""

    size: VideoLlamaSize
    dtype: Any = jnp.bfloat16
    formats: Formats = ()
    sees: bool = True
    hears: bool = False

    def weights(self, placement: Placement) -> Tree:
        """Its abstract arrays, where a strategy puts them."""
        boxed = abstract_parameters(self.size)
        dtypes = dict.fromkeys(flatten(nn.unbox(boxed)), self.dtype)
        boxed = precision.held(boxed, self.formats, dtypes)
        where = flatten(placement.parameters(boxed))
        arrays = {name: x for name, x in flatten(nn.unbox(boxed)).items() if self._has(name)}
        return unflatten({name: _placed(x, where[name]) for name, x in arrays.items()})

    def _has(self, name: str) -> bool:
        parts = LLM + (SIGHTS if self.sees else ()) + (SOUND if self.hears else ())
        return is_under(name, parts) and not is_under(name, ONLY_TRAINING)


@dataclasses.dataclass(frozen=True)
class Load:
    """``batch`` prompts of ``context`` tokens with a clip of ``frames`` each, answered at once."""

    batch: int = 1
    context: int = 512
    new_tokens: int = 64
    frames: int = 8


@dataclasses.dataclass(frozen=True)
class Answering(Program):
    """A program of those that answer; ``flops`` are of all devices."""

    flops: int


def programs(model: Model, weights: Tree, placement: Placement, load: Load) -> dict[str, Answering]:
    """See, hear (as far as the model does), prefill and decode, which is one token of each row."""
    made = {}
    module = VideoLlama(model.size, model.dtype)
    for name, (encode, parts, media) in _encoders(model, load).items():
        inputs = [_rows(x, placement) for x in media]
        made[name] = _lowered(_of(encode, module), placement, weights, parts, inputs)
    soft = [program.stage.out_info for program in made.values()]
    return made | _language(model, module, weights, placement, load, soft)


Encoder = tuple[Callable[..., Any], tuple[str, ...], list[jax.ShapeDtypeStruct]]


def _encoders(model: Model, load: Load) -> dict[str, Encoder]:
    """By name: what encodes, with which parameters, and what it takes."""
    image, sound = model.size.vit.image, model.size.imagebind.sound
    frames = _array(jnp.uint8, load.batch, load.frames, image, image, 3)
    valid = _array(jnp.bool_, load.batch, load.frames)
    clips = load.batch, model.size.max_clips, sound.mel_bins, sound.mel_frames
    found: dict[str, Encoder] = {}
    if model.sees:
        found["see"] = decode.encode_frames, SIGHTS, [frames, valid]
    if model.hears:
        found["hear"] = decode.encode_sound, SOUND, [_array(jnp.float32, *clips)]
    return found


def _language(
    model: Model,
    module: VideoLlama,
    weights: Tree,
    placement: Placement,
    load: Load,
    soft: Sequence[Any],
) -> dict[str, Answering]:
    B, L = load.batch, load.context
    media = _array(model.dtype, B, sum(x.shape[1] for x in soft), model.size.llama.width)
    if media.shape[1] > L:
        raise ValueError(
            f"context: got {L} tokens, expected at least the {media.shape[1]} that the media take"
        )
    tokens, mask, media = (
        _rows(x, placement) for x in (_array(jnp.int32, B, L), _array(jnp.bool_, B, L), media)
    )
    token = _rows(_array(jnp.int32, B), placement)
    written = _placed(_array(jnp.int32), placement.replicated)

    def prefill(params: Tree, tokens: Any, mask: Any, media: Any) -> Any:
        return decode.prefill(module, params, tokens, mask, media, load.new_tokens)

    def extend(params: Tree, token: Any, mask: Any, written: Any, cache: Any) -> Any:
        return decode.extend(module, params, token, mask, written, cache)

    empty = jax.eval_shape(prefill, weights, tokens, mask, media)[1]
    where = jax.tree.map(lambda x: cache_sharding(x, placement), empty)
    cache = jax.tree.map(_placed, empty, where)
    read, said = [tokens, mask, media], [token, mask, written]
    out = (None, where)
    return {
        "prefill": _lowered(prefill, placement, weights, LLM, read, out),
        "decode": _lowered(extend, placement, weights, LLM, said, out, cache),
    }


def cache_sharding(x: Any, placement: Placement) -> jax.sharding.NamedSharding:
    """Of an array of the cache: rows and heads as the strategy splits activations."""
    axes = CACHE_AXES if x.ndim == len(CACHE_AXES) else (None,) * x.ndim
    return placement.sharding(axes, x.shape)


def read_a_token(model: Model, weights: Tree, program: Answering) -> int:
    """Bytes of weights and cache that a device reads for one token of each row, at least.

    All of the cache's slots are read, those too that nothing has been written to.
    """
    looked_up = 0 if model.size.llama.tied else held_bytes(flatten(weights)[LOOKUP])
    return program.parts["weights"] - looked_up + program.parts["cache"]


def _lowered(
    function: Callable[..., Any],
    placement: Placement,
    weights: Tree,
    parts: tuple[str, ...],
    inputs: Sequence[Any],
    out: Any = None,
    cache: Any = (),
) -> Answering:
    """``function`` of the weights, of which it uses ``parts``, the inputs and a cache to donate."""
    on_cpu = placement.mesh.devices.flat[0].platform == "cpu"
    arguments = [weights, *inputs, *([cache] if cache else [])]
    jitted = jax.jit(
        function,
        out_shardings=out,
        donate_argnums=len(arguments) - 1 if cache else (),
        compiler_options=CPU_OPTIONS if on_cpu else None,
    )
    with constraining(placement.constrain):
        traced = jitted.trace(*arguments)
    used = {name: x for name, x in flatten(weights).items() if is_under(name, parts)}
    held = {"weights": used, "cache": cache, "inputs": list(inputs)}
    work = flops.count_jaxpr(traced.jaxpr.jaxpr).total
    sizes = {name: held_bytes(tree) for name, tree in held.items()}
    return Answering(placement.mesh, sizes, traced.lower(), work)


def _of(function: Callable[..., Any], module: VideoLlama) -> Callable[..., Any]:
    """Without its own ``jit``, whose options are for devices that are here."""
    plain = inspect.unwrap(function)

    def encode(params: Tree, *inputs: Any) -> Any:
        return plain(module, params, *inputs)

    return encode


def _array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _rows(x: jax.ShapeDtypeStruct, placement: Placement) -> jax.ShapeDtypeStruct:
    return _placed(x, placement.batch(x))


def _placed(x: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
