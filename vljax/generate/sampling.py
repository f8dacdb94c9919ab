"""How the next token is chosen."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy. Filters in this order: temperature, top-k, top-p.

    Raises ValueError for values out of range.
    """

    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 0.9
    max_new_tokens: int = 300

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature: got {self.temperature}, expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: got {self.top_p}, expected more than 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k: got {self.top_k}, expected 0 (off) or more")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: got {self.max_new_tokens}, expected 1 or more")


def choose(logits: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """logits [B, V] -> ids [B]."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    return jax.random.categorical(key, filtered(logits, sampling))


def filtered(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits [B, V] with everything but the nucleus at minus infinity."""
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p < 1:
        ordered = jnp.sort(logits, axis=-1)[:, ::-1]
        mass = jnp.cumsum(jax.nn.softmax(ordered), axis=-1)
        # A token stays if what stands before it holds less than top_p: the first always does.
        before = mass - jax.nn.softmax(ordered)
        least = jnp.where(before < sampling.top_p, ordered, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits
