"""What one device computes in a step, read from optimised HLO: replicated work counts where it is.

A count in the jaxpr says what is computed at all. Divided by the devices it is too little wherever
a strategy leaves an activation whole, so that each device computes all of it.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from vljax.bench.hlo import array_bytes, arrays, opcode, parse, visits

_IN_NAME_ONLY = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call"),
    *("conditional", "after-all", "partition-id", "replica-id"),
}
_LABELS = re.compile(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)")
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one device in a step: FLOPs of matrix products and convolutions, a multiply-add as two;
    bytes that its kernels write; how many kernels it runs."""

    flops: int
    written: int
    kernels: int


def work(text: str) -> Work:
    """Counts the HLO ``text``, a loop's body as often as it runs; of a branch, all its sides.

    What the back end does in calls of its own counts where it is a product of matrices or a
    convolution of cuBLAS or cuDNN; fused attention does not. Raises ValueError for other texts.
    """
    entry, computations = parse(text)
    shapes: dict[str, dict[str, Shape]] = {}
    flops = written = kernels = 0
    for one in visits((entry, computations)):
        kind = opcode(one.body)
        if kind in ("dot", "convolution", "custom-call"):
            if one.computation not in shapes:
                shapes[one.computation] = _shapes(computations[one.computation])
            flops += one.times * _flops(kind, one.body, shapes[one.computation])
        if not one.fused and kind not in _IN_NAME_ONLY and not kind.endswith("-done"):
            result = one.body.split(f" {kind}(")[0]
            written += one.times * sum(array_bytes(*found) for found in arrays(result))
            kernels += one.times
    return Work(flops, written, kernels)


def _shapes(instructions: list[tuple[str, str]]) -> dict[str, Shape]:
    """Of every instruction, its (first) array's."""
    return {name: _ints(found[0][1]) for name, body in instructions if (found := arrays(body))}


def _flops(kind: str, body: str, shapes: Mapping[str, Shape]) -> int:
    before, inside = body.split(f" {kind}(", 1)
    result = _ints(arrays(before)[0][1]) if arrays(before) else ()
    names = re.findall(r"%([\w.\-]+)", inside.split(")", 1)[0])
    operands = [shapes.get(name, ()) for name in names]
    told = re.search(r'custom_call_target="([^"]*)"', inside)
    target = told[1] if told else kind
    if target == "dot" or re.search("gemm|matmul", target):
        return 2 * math.prod(result) * math.prod(operands[0][i] for i in _contracted(inside))
    if target in ("convolution", "__cudnn$convForward"):
        return 2 * _multiply_adds(inside, operands[0], operands[1], result)
    return 0


def _contracted(inside: str) -> list[int]:
    """Which dimensions of the first operand are summed over, in XLA's spelling or cuBLAS's."""
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", inside)
    found = found or re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', inside)
    return list(_ints(found[1].replace('"', ""))) if found else []


def _multiply_adds(inside: str, image: Shape, kernel: Shape, result: Shape) -> int:
    """Of a convolution: those that meet an element, neither padding nor a hole of dilation.

    TPUs write products of matrices as convolutions too; a batch is then a dimension of space whose
    windows meet one element each.
    """
    labels = _LABELS.search(inside)
    assert labels is not None, "HLO states them always"
    of_image, of_kernel, of_result = labels.groups()
    count = result[of_result.index("b")] * result[of_result.index("f")]
    count *= kernel[of_kernel.index("i")]
    stated = re.search(r"window=\{([^}]*)\}", inside)
    fields = dict(f.split("=") for f in stated[1].split()) if stated else {}
    for i, dimension in enumerate(sorted(c for c in of_image if c.isdigit())):
        window = {name: value.split("x")[i] for name, value in fields.items()}
        sizes = image[of_image.index(dimension)], result[of_result.index(dimension)]
        count *= _meetings(*sizes, kernel[of_kernel.index(dimension)], window)
    return count


def _meetings(image: int, result: int, kernel: int, window: Mapping[str, str]) -> int:
    """How often an element of the kernel meets one of the image, along one dimension."""
    stride, holes, spread = (int(window.get(n, 1)) for n in ("stride", "lhs_dilate", "rhs_dilate"))
    low = int(window.get("pad", "0_0").split("_")[0])
    at = np.arange(result)[:, None] * stride + np.arange(kernel) * spread - low
    return int(((at >= 0) & (at < image * holes) & (at % holes == 0)).sum())


def _ints(text: str) -> Shape:
    return tuple(int(n) for n in text.split(",") if n.strip())
