"""``jax.jit`` for programs that scan over stacked weights."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

from vljax.nn.stack import CPU_OPTIONS

R = TypeVar("R")


def jit(static_argnames: str | Sequence[str]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """``jax.jit``, which asks for the backend at the first call only."""

    def decorate(fun: Callable[..., R]) -> Callable[..., R]:
        @functools.cache
        def compiled() -> Callable[..., R]:
            options = CPU_OPTIONS if jax.default_backend() == "cpu" else None
            return jax.jit(fun, static_argnames=static_argnames, compiler_options=options)

        @functools.wraps(fun)
        def call(*args: Any, **kwargs: Any) -> R:
            return compiled()(*args, **kwargs)

        return call

    return decorate
