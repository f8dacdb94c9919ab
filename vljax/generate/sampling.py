"""How the next token is chosen."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy. In this order: repetition penalty, temperature, top-k, top-p.

    With more than one of ``beams``, beam search, or beam sampling at a temperature above 0;
    ``length_penalty`` is for these.

    Raises ValueError for values out of range.
    """

    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 0.9
    max_new_tokens: int = 300
    repetition_penalty: float = 1.0  # 1 is none
    beams: int = 1
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature: got {self.temperature}, expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: got {self.top_p}, expected more than 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k: got {self.top_k}, expected 0 (off) or more")
        if self.repetition_penalty <= 0:
            raise ValueError(
                f"repetition_penalty: got {self.repetition_penalty}, expected more than 0"
            )
        if self.beams < 1:
            raise ValueError(f"beams: got {self.beams}, expected 1 or more")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: got {self.max_new_tokens}, expected 1 or more")


def choose(logits: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """logits [B, V] -> ids [B]."""
    if sampling.temperature == 0:
        return likeliest(logits)
    return jax.random.categorical(key, filtered(logits, sampling))


def likeliest(logits: jax.Array) -> jax.Array:
    """Logits [..., V] -> ids [...], of equals the first: argmax, as two plain reductions.

    XLA:CPU takes a tenth of a millisecond a row for one of pairs.
    """
    V = logits.shape[-1]
    best = logits == logits.max(-1, keepdims=True)
    return jnp.where(best, jnp.arange(V), V - 1).min(-1)


def filtered(logits: jax.Array, sampling: Sampling, least: int = 1) -> jax.Array:
    """Logits [B, V] with everything but the nucleus, ``least`` tokens of it, at minus infinity."""
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        lowest = jax.lax.top_k(logits, max(sampling.top_k, least))[0][:, -1:]
        logits = jnp.where(logits < lowest, -jnp.inf, logits)
    if sampling.top_p < 1:
        ordered = jnp.sort(logits, axis=-1)[:, ::-1]
        mass = jnp.cumsum(jax.nn.softmax(ordered), axis=-1)
        # A token stays if what stands before it holds less than top_p: the first always does.
        stays = mass - jax.nn.softmax(ordered) < sampling.top_p
        stays |= jnp.arange(logits.shape[-1]) < least
        lowest = jnp.where(stays, ordered, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < lowest, -jnp.inf, logits)
    return logits


def already_said(ids: jax.Array, written: jax.Array, vocab: int, bos: int | jax.Array) -> jax.Array:
    """bool [B, V]: the first ``written`` of a row's generated ids [B, N], and bos.

    bos, because the original's answers begin with one that the model never saw; the prompt is not
    among them, because it is given as embeddings.
    """
    rows = jnp.arange(ids.shape[0])[:, None]
    there = jnp.broadcast_to(jnp.arange(ids.shape[1]) < written, ids.shape)
    said = jnp.zeros((ids.shape[0], vocab), bool).at[rows, ids].max(there)
    return said.at[:, bos].set(True)


def penalised(scores: jax.Array, said: jax.Array, penalty: float | jax.Array) -> jax.Array:
    """Scores [B, V], those of ``said`` ids made ``penalty`` times less likely (CTRL, section 4.1).

    Positive ones are divided, negative ones multiplied: Hugging Face's rule, for logits and for
    log-probabilities alike.
    """
    return jnp.where(said, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)
