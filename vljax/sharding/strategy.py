"""The vocabulary of logical axes and the table of strategies. A new strategy is one entry."""

import dataclasses
import re

# Axes of parameters.
PARAMETER_AXES = (
    "layers",
    "embed",  # a tower's width
    "llm",  # the language model's width, as a projection's output
    "joint",  # ImageBind's shared space
    "mlp",
    "heads",
    "kv_heads",
    "vocab",
    "rows",  # of a small table: positions, queries
    "norm",
)
# Axes of activations. Their names differ: under FSDP both would ask for one mesh axis.
ACTIVATION_AXES = (
    "batch",
    "frames",  # examples and their frames as one axis, in the encoders
    "act_seq",  # the language model's sequence
    "act_lookup",  # the width of what was looked up in a table, before its sequence is split
    "act_embed",
    "act_mlp",
    "act_heads",
    "act_vocab",
)
AXES = PARAMETER_AXES + ACTIVATION_AXES

REST = -1  # the size of a mesh axis that takes the devices which are left
SLICES = 0  # the size of a mesh axis that has one place for each slice of the machine

Rules = tuple[tuple[str, str | tuple[str, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A mesh and the logical axes that are split over it; what has no rule is replicated.

    ``mesh``: (axis, size) pairs, "data" first: it alone spans slices, which are joined by a network
    that is slower than what joins the devices of one; the other axes stay inside.
    ``slices``: how many there are; 0 is as many as the devices say.
    """

    name: str
    mesh: tuple[tuple[str, int], ...]
    rules: Rules
    slices: int = 0

    @property
    def base(self) -> str:
        """The name in the table, without sizes."""
        return _parts(self.name)[0]


def _rows(*axes: str, frames: tuple[str, ...] = ()) -> Rules:
    """Examples over the axes; the encoders' frames over them and over ``frames``."""
    return ("batch", axes), ("frames", (*axes, *frames))


_FSDP: Rules = (*_rows("data", "fsdp"), ("embed", "fsdp"))
_TENSOR: Rules = (
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("act_heads", "tensor"),
    ("act_mlp", "tensor"),
    ("act_vocab", "tensor"),
)
# Parameters lie over both axes; frames too, since encoders have no sequence worth splitting.
_SEQUENCE: Rules = (
    *_rows("data", "fsdp", frames=("seq",)),
    ("embed", ("fsdp", "seq")),
    ("act_seq", "seq"),
    ("act_lookup", "seq"),  # in one go all devices would gather the rows of all
)

STRATEGIES = {
    s.name: s
    for s in (
        Strategy("dp", (("data", REST),), _rows("data")),
        Strategy("fsdp", (("data", SLICES), ("fsdp", REST)), _FSDP),
        Strategy(
            "tp",
            (("data", SLICES), ("tensor", REST)),
            (*_TENSOR, *_rows("data", frames=("tensor",))),
        ),
        Strategy(
            "fsdp_tp",
            (("data", SLICES), ("fsdp", REST), ("tensor", 2)),
            (("embed", "fsdp"), *_TENSOR, *_rows("data", "fsdp", frames=("tensor",))),
        ),
        Strategy(
            "dp_tp", (("data", REST), ("tensor", 2)), (*_TENSOR, *_rows("data", frames=("tensor",)))
        ),
        Strategy("fsdp_sp", (("data", SLICES), ("fsdp", REST), ("seq", 2)), _SEQUENCE),
    )
}


def strategy(text: str) -> Strategy:
    """The named strategy, with sizes of mesh axes if they follow: "fsdp_tp:tensor=4".

    More than one are joined by colons; "slices=2" cuts devices into slices that do not tell of
    any. Where the axis that would take the rest gets a size, "data" takes it. Raises ValueError
    with the names there are.
    """
    name, *changes = _parts(text)
    if name not in STRATEGIES:
        raise ValueError(f"sharding: got {text!r}, expected one of {', '.join(STRATEGIES)}")
    found = STRATEGIES[name]
    axes = (*dict(found.mesh), "slices")
    sizes: dict[str, int] = {}
    for change in changes:
        axis, _, size = change.partition("=")
        if axis not in axes or axis in sizes or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f"sharding {text}: got {change!r}, expected each of {', '.join(axes)} once at "
                f"most, as in {name}:{found.mesh[-1][0]}=4"
            )
        sizes[axis] = int(size)
    mesh = {axis: sizes.get(axis, size) for axis, size in found.mesh}
    if REST not in mesh.values() and "data" not in sizes:
        mesh["data"] = REST
    return dataclasses.replace(
        found, name=text, mesh=tuple(mesh.items()), slices=sizes.get("slices", 0)
    )


def _parts(text: str) -> list[str]:
    return re.split("[:,]", text)
