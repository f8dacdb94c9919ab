"""Rules that carry a parameter between torch-named tensors and our tree, and what they cover.

A rule is data and knows its sources, so a checkpoint of any size can be streamed: one parameter is
built at a time, of a stacked one a layer at a time. ``towers`` holds the tables of rules.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Get = Callable[[str], np.ndarray]


class How(NamedTuple):
    """A change of layout and its exact inverse."""

    forward: Callable[[np.ndarray], np.ndarray]
    backward: Callable[[np.ndarray], np.ndarray]


HOW: dict[str, How] = {
    "same": How(lambda x: x, lambda x: x),
    # Linear: torch [out, in], ours [in, out].
    "transpose": How(lambda x: x.transpose(1, 0), lambda x: x.transpose(1, 0)),
    # Conv2d: torch OIHW, ours HWIO.
    "conv2d": How(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
    # Conv3d: torch OITHW, ours THWIO.
    "conv3d": How(lambda x: x.transpose(2, 3, 4, 1, 0), lambda x: x.transpose(4, 3, 0, 1, 2)),
    # torch [1, N, D], ours [N, D].
    "rows": How(lambda x: x.squeeze(0), lambda x: x[None]),
    # torch [1, 1, D], ours [D].
    "vector": How(lambda x: x.squeeze((0, 1)), lambda x: x[None, None]),
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one of our parameters is made.

    Attributes:
      name: ours, with slashes.
      sources: torch names; one, or if ``stacked`` one for each index of the leading "layers" axis.
      how: a key of ``HOW``, applied to each source.
      part: (i, n) for the i-th of n equal blocks of rows of a fused source, such as q|k|v.
      stacked: whether the parameter has a leading "layers" axis.
    """

    name: str
    sources: tuple[str, ...]
    how: str = "same"
    part: tuple[int, int] = (0, 1)
    stacked: bool = False

    def piece(self, get: Get, index: int = 0) -> np.ndarray:
        """The parameter, or of a stacked one layer ``index``; may be a view."""
        x = np.asarray(get(self.sources[index]))
        i, n = self.part
        try:
            return HOW[self.how].forward(np.split(x, n)[i] if n > 1 else x)
        except ValueError as error:
            raise ValueError(
                f"{self.sources[index]}: got shape {x.shape}, which '{self.how}', part {i} of {n},"
                f" for {self.name} does not fit; is this the checkpoint of another model?"
            ) from error

    def build(self, get: Get) -> np.ndarray:
        """The whole parameter, in the dtype of its sources, read one source at a time."""
        first = self.piece(get)
        if not self.stacked:
            return np.ascontiguousarray(first)
        out = np.empty((len(self.sources), *first.shape), first.dtype)
        out[0] = first
        for index in range(1, len(self.sources)):
            x = self.piece(get, index)
            if (x.shape, x.dtype) != (first.shape, first.dtype):  # else it would be broadcast, cast
                raise ValueError(
                    f"{self.sources[index]}: got {x.shape} {x.dtype}, expected {first.shape}"
                    f" {first.dtype} as in {self.sources[0]}; layers of a stack must agree"
                )
            out[index] = x
        return out

    def unbuild(self, value: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Inverse of ``build``: torch names and tensors (of a fused source, this rule's part)."""
        pieces = np.asarray(value) if self.stacked else [value]
        if len(pieces) != len(self.sources):
            raise ValueError(
                f"{self.name}: got {len(pieces)} layers, expected {len(self.sources)};"
                " is the size another model's?"
            )
        for source, x in zip(self.sources, pieces, strict=True):
            yield source, HOW[self.how].backward(np.asarray(x))


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Two-way coverage in torch names. The first four share out the given names between them.

    Attributes:
      loaded: read by rules that could be built.
      dropped: known to have no counterpart, such as buffers and text parts.
      unexpected: known to no rule.
      stranded: known, but a rule that reads them lacks another source.
      missing: not given, but read by some rule.
    """

    loaded: tuple[str, ...]
    dropped: tuple[str, ...]
    unexpected: tuple[str, ...]
    stranded: tuple[str, ...]
    missing: tuple[str, ...]

    def require_complete(self) -> None:
        """Raises ValueError unless every name was used or known, and every source was there."""
        problems = [
            f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            for what in ("missing", "unexpected")
            if (names := getattr(self, what))
        ]
        if problems:
            raise ValueError(
                "tensors: " + "; ".join(problems) + "; check the size and the list of files"
            )


def cover(names: Collection[str], rules: Sequence[Rule], droppable: Sequence[str]) -> Coverage:
    """Reads names alone. ``droppable``: regexes, searched in names that no rule knows."""
    names = dict.fromkeys(names)
    known = dict.fromkeys(source for rule in rules for source in rule.sources)
    stranded = {
        source
        for rule in rules
        if not all(s in names for s in rule.sources)
        for source in rule.sources
    }
    others = [n for n in names if n not in known]
    dropped = {n for n in others if any(re.search(pattern, n) for pattern in droppable)}
    return Coverage(
        loaded=tuple(n for n in names if n in known and n not in stranded),
        dropped=tuple(n for n in others if n in dropped),
        unexpected=tuple(n for n in others if n not in dropped),
        stranded=tuple(n for n in names if n in stranded),
        missing=tuple(n for n in known if n not in names),
    )


def stream(
    tensors: Mapping[str, np.ndarray], rules: Sequence[Rule]
) -> Iterator[tuple[str, np.ndarray]]:
    """(our slash name, array) of every rule whose sources are all there, one at a time.

    ``tensors`` may be lazy: a name is looked up when its parameter is built.
    """
    for rule in rules:
        if all(source in tensors for source in rule.sources):
            yield rule.name, rule.build(tensors.__getitem__)


def unstream(params: Mapping[str, np.ndarray], rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """Inverse of ``stream``: from slash names and arrays to torch-named tensors.

    Takes part of a tree too. Raises ValueError for a name without a rule, and for a fused tensor
    of which only some parts are there.
    """
    by_name = {rule.name: rule for rule in rules}
    if unknown := sorted(set(params) - set(by_name)):
        raise ValueError(
            f"params: got {unknown[0]} (of {len(unknown)}), for which there is no rule"
        )
    parts: dict[str, dict[int, np.ndarray]] = collections.defaultdict(dict)
    count: dict[str, int] = {}
    for rule in rules:
        if rule.name in params:
            for source, x in rule.unbuild(params[rule.name]):
                parts[source][rule.part[0]] = x
                count[source] = rule.part[1]
    for source, found in parts.items():
        if len(found) != count[source]:
            raise ValueError(
                f"{source}: got parts {sorted(found)} of {count[source]};"
                " a fused tensor needs all of its query, key and value"
            )
    return {
        source: np.concatenate([found[i] for i in sorted(found)])
        if len(found) > 1
        else np.ascontiguousarray(found[0])
        for source, found in parts.items()
    }
