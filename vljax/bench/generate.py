"""Answering, beside Hugging Face's ``generate``: the same weights and prompts, in turns.

Both choose greedily and never stop early. A turn is short and contenders alternate, so that what
disturbs the machine disturbs all of them; ratios are taken within a round, then their median.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vljax.data.tokenizer import LLAMA
from vljax.generate import decode, loading
from vljax.generate.engine import load_engine
from vljax.generate.sampling import Sampling
from vljax.models.sizes import LlamaSize, VideoLlamaSize, video_llama_size
from vljax.models.video_llama import VideoLlama
from vljax.sharding.chips import chip_of
from vljax.store import Tree, unflatten

PAUSE = 0.1  # seconds after a turn, in which its threads stop waiting for more


@dataclasses.dataclass(frozen=True)
class Turn:
    """Seconds to the first token, and from there to the last; ids [B, new]."""

    prefill: float
    decode: float
    ids: np.ndarray


class Contender(Protocol):
    """``ours``: or PyTorch's."""

    ours: bool
    dtype: str

    def turn(self, tokens: np.ndarray, new: int) -> Turn:
        """Continues prompts [B, L] by ``new`` tokens."""
        ...


class Ours:
    ours = True

    def __init__(self, size: VideoLlamaSize, params: Tree, dtype: str):
        self.dtype, self.params = dtype, params
        self.model = VideoLlama(size, loading.compute_dtype(dtype), apart=True)

    def turn(self, tokens: np.ndarray, new: int) -> Turn:
        rest = Sampling(max_new_tokens=new), (), LLAMA._replace(eos=-1)
        mask, key = np.ones(tokens.shape, bool), jax.random.key(0)
        began = time.perf_counter()
        step, _ = decode.begin(self.model, self.params, tokens, mask, None, key, *rest)
        step.ids.block_until_ready()
        first = time.perf_counter()
        step = decode.go_on(self.model, self.params, step, new, *rest)
        ids = np.asarray(step.ids)
        return Turn(first - began, time.perf_counter() - first, ids)


def of_folder(folder: str, dtypes: Sequence[str]) -> list[Ours]:
    """A folder's language model, once in each dtype."""
    engines = [load_engine(folder, dtype, tell=lambda _: None) for dtype in dtypes]
    return [
        Ours(e.size, {"llama": e.params["llama"]}, dtype)
        for e, dtype in zip(engines, dtypes, strict=True)
    ]


def random_model(name: str, dtype: str) -> Ours:
    """A language model of the named size with small random weights."""
    size = video_llama_size(name)
    counter = iter(range(10**6))

    def draw(name: str, x: jax.ShapeDtypeStruct) -> jax.Array:
        if name.endswith("scale"):
            return jnp.ones(x.shape, dtype)
        key = jax.random.key(next(counter), impl="unsafe_rbg")
        return 0.03 * jax.random.uniform(key, x.shape, dtype, -1, 1)

    held = loading.held(size, dtype, (), None, lambda name: name.startswith("llama/"))
    drawn = loading.joined({name: draw(name, x) for name, x in held.items()})
    return Ours(size, unflatten(drawn), dtype)


@dataclasses.dataclass(frozen=True)
class Rates:
    """What the device reads in bytes/s and computes in FLOP/s; ``stated`` or else measured."""

    read: float
    compute: float
    stated: bool

    def floor(self, size: LlamaSize, dtype: str, batch: int) -> float:
        """Seconds that a step of decoding takes at least: its weights read, its products made."""
        read = weights_read(size) * jnp.dtype(dtype).itemsize / self.read
        return max(read, 2 * batch * weights_read(size) / self.compute)


def weights_read(size: LlamaSize) -> int:
    """How many weights every token meets: all but the table that it is looked up in."""
    head_dim = size.width // size.heads
    attention = 2 * size.width * head_dim * (size.heads + size.kv_heads)
    return size.depth * (attention + 3 * size.width * size.mlp) + size.width * size.vocab


def rates() -> Rates:
    """A known chip's own, by its maker; else the best of a few products in float32."""
    chip = chip_of(jax.devices()[0].device_kind)
    if chip:
        return Rates(chip.core.hbm, chip.core.flops, True)
    weights = [jnp.full((4096, 4096), i, jnp.float32) for i in range(8)]  # no cache holds them

    @jax.jit
    def products(x: jax.Array, weights: list[jax.Array]) -> list[jax.Array]:
        return [w @ x for w in weights]

    def best(x: jax.Array, weights: list[jax.Array]) -> float:
        return min(_seconds(lambda: products(x, weights)) for _ in range(6))

    read = sum(w.nbytes for w in weights) / best(jnp.ones(4096), weights)
    square = jnp.ones((2048, 2048))
    return Rates(read, 2 * 2048**3 / best(square, [square]), False)


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


@dataclasses.dataclass(frozen=True)
class Result:
    """One contender's turns at one batch size."""

    batch: int
    ours: bool
    dtype: str
    turns: tuple[Turn, ...]

    @property
    def prefill(self) -> float:
        return statistics.median(t.prefill for t in self.turns)

    @property
    def decode(self) -> float:
        return statistics.median(t.decode for t in self.turns)

    @property
    def name(self) -> str:
        return f"{'vljax' if self.ours else 'PyTorch'} {self.dtype}"


def measure(
    contenders: Sequence[Contender],
    size: LlamaSize,
    batches: Sequence[int],
    prompt: int,
    new: int,
    rounds: int,
    show: Callable[[int, int], None],
) -> list[Result]:
    """``rounds`` turns of everyone at every batch size, after one that is not counted."""
    rng, found, total = np.random.default_rng(0), [], len(batches) * (rounds + 1)
    for n, batch in enumerate(batches):
        tokens = rng.integers(3, size.vocab, (batch, prompt), np.int32)
        turns: list[list[Turn]] = [[] for _ in contenders]
        for turn in range(rounds + 1):
            for contender, done in zip(contenders, turns, strict=True):
                done.append(contender.turn(tokens, new))
                time.sleep(PAUSE)
            show(n * (rounds + 1) + turn + 1, total)
        found += [
            Result(batch, c.ours, c.dtype, tuple(t[1:]))
            for c, t in zip(contenders, turns, strict=True)
        ]
    return found


def ratio(results: Sequence[Result], part: str) -> float:
    """How much faster our best is than theirs, at one batch size; ``part``: prefill or decode."""

    def best(ours: bool) -> Result:
        return min((r for r in results if r.ours == ours), key=lambda r: getattr(r, part))

    pairs = zip(best(True).turns, best(False).turns, strict=True)
    return statistics.median(getattr(b, part) / getattr(a, part) for a, b in pairs)


def agreement(results: Sequence[Result]) -> float | None:
    """The share of tokens that ours and theirs have in common in float32, at one batch size."""
    said = {r.ours: r.turns[0].ids for r in results if r.dtype == "float32"}
    return float((said[True] == said[False]).mean()) if len(said) == 2 else None


HEAD = ("", "batch", "prefill tokens/s", "decode tokens/s", "ms a step", "of its floor", "MFU")


def rows(
    results: Sequence[Result], size: LlamaSize, prompt: int, new: int, rates: Rates
) -> list[dict[str, Any]]:
    """One a result. ``of_floor``: the least a step could take over what it takes.

    ``mfu``: what prefill computes, its last tokens' head aside, over the device's rate.
    """
    body = weights_read(size) - size.width * size.vocab

    def row(r: Result) -> dict[str, Any]:
        step = r.decode / (new - 1)
        return {
            "name": r.name,
            "batch": r.batch,
            "prefill_tokens_per_second": r.batch * prompt / r.prefill,
            "decode_tokens_per_second": r.batch / step,
            "step_ms": 1e3 * step,
            "of_floor": rates.floor(size, r.dtype, r.batch) / step,
            "mfu": 2 * r.batch * prompt * body / rates.compute / r.prefill,
        }

    return [row(r) for r in results]


def table(results: Sequence[Result], size: LlamaSize, prompt: int, new: int, rates: Rates) -> str:
    """Everything in lines, ratios last."""
    lines = [HEAD]
    for row in rows(results, size, prompt, new, rates):
        name, batch, prefill, decoded, step, floor, mfu = row.values()
        told = f"{prefill:,.0f}", f"{decoded:,.1f}", f"{step:.2f}", f"{floor:.0%}", f"{mfu:.0%}"
        lines.append((name, str(batch), *told))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]) for r in lines]
    how = "stated" if rates.stated else "measured"
    text.append(f"{how}: reads {rates.read / 1e9:,.0f} GB/s, {rates.compute / 1e9:,.0f} GFLOP/s")
    for batch in dict.fromkeys(r.batch for r in results):
        here = [r for r in results if r.batch == batch]
        if len({r.ours for r in here}) == 2:
            same = agreement(here)
            tokens = "" if same is None else f"; {same:.0%} of the tokens are the same in float32"
            text.append(
                f"batch {batch}, to PyTorch's better: decode {ratio(here, 'decode'):.2f}x, "
                f"prefill {ratio(here, 'prefill'):.2f}x{tokens}"
            )
    return "\n".join(text)
