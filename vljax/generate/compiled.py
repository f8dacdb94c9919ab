"""``jax.jit`` for programs over a model's weights, on one device or on a mesh."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax

from vljax.nn.layers import constraining
from vljax.nn.stack import CPU_OPTIONS
from vljax.sharding.placement import Placement

R = TypeVar("R")
_placement: contextvars.ContextVar[Placement | None] = contextvars.ContextVar(
    "placement", default=None
)


@contextlib.contextmanager
def placed(placement: Placement | None) -> Iterator[None]:
    """Within this context programs run where ``placement`` says; None is the first device."""
    token = _placement.set(placement)
    try:
        yield
    finally:
        _placement.reset(token)


def jit(
    static_argnames: str | Sequence[str], donate_argnames: str | Sequence[str] = ()
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """``jax.jit``, which asks for the backend at the first call only; one program a placement."""

    def decorate(fun: Callable[..., R]) -> Callable[..., R]:
        @functools.cache
        def compiled(placement: Placement | None) -> Callable[..., R]:
            @functools.wraps(fun)
            def traced(*args: Any, **kwargs: Any) -> R:
                if placement is None:
                    return fun(*args, **kwargs)
                with constraining(placement.constrain):
                    return fun(*args, **kwargs)

            return jax.jit(
                traced,
                static_argnames=static_argnames,
                donate_argnames=donate_argnames,
                compiler_options=CPU_OPTIONS if jax.default_backend() == "cpu" else None,
            )

        @functools.wraps(fun)
        def call(*args: Any, **kwargs: Any) -> R:
            return compiled(_placement.get())(*args, **kwargs)

        return call

    return decorate
