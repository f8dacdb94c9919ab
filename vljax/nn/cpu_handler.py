"""Machine code of ``nn.cpu_product``, by Numba, behind XLA's C interface for foreign functions.

That interface's structs (``xla/ffi/api/c_api.h``) are read as what they are: words of 64 bits.
Importing this compiles it.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

ZERO = np.float32(0)
WORDS = types.CPointer(types.int64)


def _pointer(to: Any) -> Any:
    """A function of an address, to what lies there."""
    pointer = types.CPointer(to)

    @intrinsic
    def cast(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(pointer))

        return pointer(types.int64), generate

    return cast


words, integers, floats, halves = map(
    _pointer, (types.int64, types.int32, types.float32, types.uint16)
)


def _wide(typing: Any, half: Any) -> Any:
    """float32 of a bfloat16's bits, which are its upper ones."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.shl(builder.zext(args[0], word), ir.Constant(word, 16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.uint16), generate


wide: Any = intrinsic(_wide)


@njit(fastmath=True)
def one(x: Any, w: Any, y: Any, b: int, n: int) -> None:
    total = ZERO
    for k in range(w.shape[1]):
        total += x[b, k] * wide(w[n, k])
    y[b, n] = total


@njit(fastmath=True)
def eight(x: Any, w: Any, y: Any, b: int, n: int) -> None:
    """Of four rows and two columns: as many sums as registers hold beside what they are of."""
    x0, x1, x2, x3, w0, w1 = x[b], x[b + 1], x[b + 2], x[b + 3], w[n], w[n + 1]
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = ZERO
    for k in range(w.shape[1]):
        u, v = wide(w0[k]), wide(w1[k])
        a0, a1, a2, a3 = a0 + x0[k] * u, a1 + x1[k] * u, a2 + x2[k] * u, a3 + x3[k] * u
        b0, b1, b2, b3 = b0 + x0[k] * v, b1 + x1[k] * v, b2 + x2[k] * v, b3 + x3[k] * v
    y[b, n], y[b + 1, n], y[b + 2, n], y[b + 3, n] = a0, a1, a2, a3
    y[b, n + 1], y[b + 1, n + 1], y[b + 2, n + 1], y[b + 3, n + 1] = b0, b1, b2, b3


@njit
def multiply(x: Any, w: Any, y: Any) -> None:
    """x [B, in], w [out, in]: their product is written to y [B, out]."""
    rows, columns = y.shape
    fours = rows - rows % 4
    for n in range(0, columns - 1, 2):
        for b in range(0, fours, 4):
            eight(x, w, y, b, n)
        for b in range(fours, rows):
            one(x, w, y, b, n)
            one(x, w, y, b, n + 1)
    if columns % 2:
        for b in range(rows):
            one(x, w, y, b, columns - 1)


@cfunc(types.int64(WORDS))
def handler(frame: Any) -> int:
    """An ``XLA_FFI_Handler``: rows, all columns, the first to do -> as many as the result has."""
    if frame[1]:  # XLA asks for which version of its interface this is: for its own
        words(words(frame[1])[3])[3] = words(frame[2])[4]
        return 0
    arguments, results = words(frame[9]), words(frame[14])
    x, w, start = words(arguments[0]), words(arguments[1]), words(arguments[2])
    y = words(results[0])
    rows, inputs, columns = words(x[5])[0], words(x[5])[1], words(y[5])[1]
    first = integers(start[3])[0]
    whole = carray(halves(w[3]), (words(w[5])[0], inputs))
    multiply(
        carray(floats(x[3]), (rows, inputs)),
        whole[first : first + columns],
        carray(floats(y[3]), (rows, columns)),
    )
    return 0
