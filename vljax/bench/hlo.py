"""The collectives of a compiled program, read from its optimised HLO text.

Text, because XLA has no other account of them: ``cost_analysis`` counts a loop's body once, and
its time figures are not to be trusted.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
SLICES = "slices"  # an axis that is no mesh's: between slices, over the data centre's network
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_BITS = {"pred": 8, "c64": 64, "c128": 128}  # all others say theirs in their name
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\([^\n]*\) -> .*)?\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*)$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_COMMENT = re.compile(r"/\*.*?\*/")
_SCALAR = re.compile(r"[su]\d+\[\][^ ]* constant\((\d+)\)")
_CONTROL = re.compile(r"[\s)}\]](?:while|call|conditional)\(")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
_OPCODE = re.compile(r"(?:^|[\s)}\]])([a-z][a-z0-9\-]*)\(")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program, run ``count`` times a step.

    ``axis``: the mesh axes that its groups span, joined by "+"; "slices" for what goes between the
    slices of a TPU. ``bytes``: what one device sends in a step over that axis, all runs together,
    by a ring (a permutation: its payload).
    """

    kind: str
    axis: str
    count: int
    bytes: int


def collectives(text: str, mesh: Mapping[str, int], slices: int = 1) -> list[Collective]:
    """The collectives of the HLO ``text`` of a program on a mesh of {axis: size}, largest first.

    Those of one kind and axis are added up, times the trip counts of their loops. A channel that
    stands in several fusions is one collective: asynchronous fusions write it again wherever
    a piece of it goes on, inside inner loops too. It counts where it is run least often. Outside of
    fusions each is its own, whatever its channel: the CPU's compiler gives many the same. What goes
    between slices has channels of its own, which may have the same numbers.
    ``slices``: how many the mesh spans; the text then speaks of the devices of one.
    """
    found: dict[str, Collective] = {}
    for computation, name, body, times, fused in visits(parse(text)):
        if not _kind(body):
            continue
        channel = re.search(r"channel_id=(\d+)", body) if fused or " send(" in body else None
        space = "send" if " send(" in body else "channel"
        key = f"{space} {channel[1]} {_kind(body)}" if channel else f"{computation} {name}"
        if key not in found or found[key].count > times:
            found[key] = _collective(body, times, mesh, slices)
    return added(c for c in found.values() if c.axis)


def added(found: Iterable[Collective]) -> list[Collective]:
    """Those of one kind and axis as one, largest first."""
    total: dict[tuple[str, str], Collective] = {}
    for one in found:
        so_far = total.get((one.kind, one.axis), Collective(one.kind, one.axis, 0, 0))
        count, size = so_far.count + one.count, so_far.bytes + one.bytes
        total[one.kind, one.axis] = dataclasses.replace(so_far, count=count, bytes=size)
    return sorted(total.values(), key=lambda c: -c.bytes)


def _collective(body: str, times: int, mesh: Mapping[str, int], slices: int) -> Collective:
    kind = _kind(body)
    between = _BETWEEN_SLICES.search(body)
    if between:
        size = max(array_bytes(*match) for match in arrays(body.split(" send(")[0]))
        return Collective(kind, SLICES, times, _ring(kind, size, slices) * times)
    groups = _groups(body, math.prod(mesh.values()) // slices)
    wire = _ring(kind, _result(kind, body), max(len(groups[0]), 1))
    return Collective(kind, _axis(groups, mesh), times, wire * times)


Program = tuple[str, dict[str, list[tuple[str, str]]]]


class Visit(NamedTuple):
    """An instruction where it is run, ``times`` a step; ``fused``: as a part of a kernel."""

    computation: str
    name: str
    body: str
    times: int
    fused: bool


def parse(text: str) -> Program:
    """(the entry's name, {computation: [(instruction, what it is)]}). Raises ValueError."""
    computations: dict[str, list[tuple[str, str]]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            instruction = _INSTRUCTION.match(_COMMENT.sub("", line))
            if instruction:
                current.append((instruction[1], instruction[2]))
    if not entry:
        raise ValueError("HLO: got a text without an ENTRY computation, expected optimised HLO")
    return entry, computations


def visits(program: Program) -> Iterator[Visit]:
    """Every instruction, through calls, fusions and loops; nothing of what a collective calls."""
    entry, computations = program

    def walk(name: str, times: int, fused: bool) -> Iterator[Visit]:
        for instruction, body in computations.get(name, ()):
            yield Visit(name, instruction, body, times, fused)
            if _kind(body):
                continue
            trips = _trip_count(body, computations) if " while(" in body else 1
            inside = fused or not _CONTROL.search(body)
            for called in _called(body):
                yield from walk(called, times * trips, inside)

    return walk(entry, 1, False)


def _called(body: str) -> list[str]:
    branches = [n.strip().lstrip("%") for b in _BRANCHES.findall(body) for n in b.split(",")]
    return _CALLED.findall(body) + branches


def _kind(body: str) -> str:
    """The kind of collective an instruction starts; "" for any other, and for a ``-done``."""
    between = _BETWEEN_SLICES.search(body) if " send(" in body else None
    if between:
        return between[1].lower().replace("_", "-")
    for opcode in _OPCODE.findall(body.split(", metadata=")[0]):
        opcode = opcode.removesuffix("-start")
        if opcode in KINDS:
            return opcode
    return ""


Computations = Mapping[str, list[tuple[str, str]]]


def _trip_count(body: str, computations: Computations) -> int:
    """How often a loop runs: as XLA states it, else from its condition and the step of its counter.

    TPU programs state none. A loop whose condition compares with no constant counts as one round.
    """
    known = re.search(r'"known_trip_count":\s*(\{[^}]*\})', body)
    if known:
        return int(json.loads(known[1])["n"])
    condition, inside = (re.search(rf"{part}=%?([\w.\-]+)", body) for part in ("condition", "body"))
    if not condition or not inside:
        return 1
    limits = _constants(condition[1], computations)
    counter = re.search(r"index=(\d+)", " ".join(b for _, b in computations.get(condition[1], ())))
    step = _step(int(counter[1]), inside[1], computations) if counter else 1
    return max(math.ceil(max(limits, default=1) / step), 1)


def _constants(name: str, computations: Computations) -> list[int]:
    found = []
    for _, body in computations.get(name, ()):
        constant = _SCALAR.match(body)
        found += [int(constant[1])] if constant else []
        for called in _called(body):
            found += _constants(called, computations)
    return found


def _step(counter: int, name: str, computations: Computations) -> int:
    """What a loop's body adds to the ``counter``-th of its values; a loop that was unrolled: 2."""
    instructions = dict(computations.get(name, ()))
    if not instructions:
        return 1
    root = list(instructions.values())[-1]
    operands = re.findall(r"%([\w.\-]+)", root.split(" tuple(")[-1].split("), ")[0])
    added = instructions.get(operands[counter], "") if counter < len(operands) else ""
    while " copy(" in added or " bitcast(" in added:
        added = instructions.get(re.findall(r"\(%([\w.\-]+)", added)[0], "")
    if " add(" not in added:
        return 1
    terms = re.findall(r"%([\w.\-]+)", added.split(" add(")[1].split(")")[0])
    constants = [_SCALAR.match(instructions.get(term, "")) for term in terms]
    return max((int(c[1]) for c in constants if c), default=1) or 1


def _result(kind: str, body: str) -> int:
    """Bytes of what a collective leaves on a device."""
    sizes = [array_bytes(*match) for match in arrays(body.split(f" {kind}")[0])]
    if f" {kind}-start(" in body and kind != "all-reduce" and len(sizes) > 1:
        # (operands, results, contexts...): of as many arrays as operands, the largest
        sizes = sorted(sizes, reverse=True)[: max(len(_operands(body, kind)), 1)]
    return sum(sizes)


def _ring(kind: str, size: int, group: int) -> int:
    """Bytes that each of a ring's devices sends, where a result of ``size`` is left on each."""
    if kind == "all-reduce":
        return 2 * size * (group - 1) // group
    if kind == "reduce-scatter":
        return size * (group - 1)
    if kind in ("collective-permute", "collective-broadcast"):
        return size
    return size * (group - 1) // group


def _operands(body: str, kind: str) -> list[str]:
    inside = body.split(f" {kind}-start(", 1)[1].split(")", 1)[0]
    return re.findall(r"%[\w.\-]+", inside)


def arrays(text: str) -> list[tuple[str, str]]:
    """(dtype, dimensions) of the arrays that are named."""
    return _ARRAY.findall(text)


def opcode(body: str) -> str:
    """What an instruction does: "dot", "fusion", "all-gather-start"."""
    found = _OPCODE.search(body)
    return found[1] if found else ""


def array_bytes(dtype: str, dims: str) -> int:
    bits = _BITS.get(dtype) or int(re.search(r"\d+", dtype)[0])  # type: ignore[index]
    return math.prod(int(d) for d in dims.split(",") if d) * bits // 8


def _groups(body: str, devices: int) -> np.ndarray:
    """Logical device ids [groups, members], of replica groups in any of XLA's spellings."""
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", body)
    if pairs:
        return _listed(pairs[1])
    written = re.search(r"replica_groups=(.*?)(?:, (?!device_ids=)[a-z_]+=|$)", body)
    if written is None or written[1] in ("{}", ""):
        return np.arange(devices)[None]
    spelling = written[1]
    iota = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", spelling)
    if iota:
        return _iota(*iota.groups())
    named = re.match(
        r"(?:mesh|@\w+|\w+)\[(.*?)\](?:, device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\))?\s*\{(.*?)\}",
        spelling,
    )
    if named:
        return _of_mesh(*named.groups())
    return _listed(spelling)


def _listed(spelling: str) -> np.ndarray:
    groups = [[int(i) for i in g.split(",") if i] for g in re.findall(r"\{([\d,]+)\}", spelling)]
    return np.array(groups)


def _iota(shape: str, dims: str, transpose: str | None) -> np.ndarray:
    ids = np.arange(math.prod(_ints(dims))).reshape(_ints(dims))
    return (ids.transpose(_ints(transpose)) if transpose else ids).reshape(_ints(shape))


def _of_mesh(axes: str, dims: str | None, transpose: str | None, chosen: str) -> np.ndarray:
    """``mesh['axis_0'=4,'axis_1'=4] {'axis_1'}``: groups along the chosen axes.

    Device ids count up, or lie as the iota does that may follow the axes.
    """
    sizes = dict(re.findall(r"'?([\w]+)'?=(\d+)", axes))
    wanted = re.findall(r"'?([a-zA-Z_]\w*)'?", chosen)
    names = list(sizes)
    shape = ",".join(sizes.values())
    ids = _iota(shape, dims, transpose) if dims else _iota(shape, shape, None)
    order = [i for i, n in enumerate(names) if n not in wanted]
    order += [names.index(n) for n in wanted]
    members = math.prod(int(sizes[n]) for n in wanted)
    return ids.transpose(order).reshape(-1, members)


def _ints(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def _axis(groups: Iterable[Iterable[int]], mesh: Mapping[str, int]) -> str:
    """The mesh axes along which the members of a group differ; "" for groups of one."""
    differing = set()
    for group in groups:
        where = np.array(np.unravel_index(np.array(list(group)), tuple(mesh.values())))
        differing |= {n for n, row in zip(mesh, where, strict=True) if len(set(row)) > 1}
    return "+".join(n for n in mesh if n in differing)
