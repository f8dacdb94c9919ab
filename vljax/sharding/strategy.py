"""The vocabulary of logical axes and the table of strategies. A new strategy is one entry."""

import dataclasses

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
ACTIVATION_AXES = ("batch", "act_embed", "act_mlp", "act_heads", "act_vocab")
AXES = PARAMETER_AXES + ACTIVATION_AXES

Rules = tuple[tuple[str, str | tuple[str, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A mesh and the logical axes that are split over it; what has no rule is replicated.

    ``mesh``: (axis, size) pairs, where -1 takes what is left of the devices.
    """

    name: str
    mesh: tuple[tuple[str, int], ...]
    rules: Rules


_BATCH = ("batch", ("data", "fsdp"))
_FSDP: Rules = (("embed", "fsdp"),)
_TENSOR: Rules = (
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("act_heads", "tensor"),
    ("act_mlp", "tensor"),
    ("act_vocab", "tensor"),
)

STRATEGIES = {
    s.name: s
    for s in (
        Strategy("dp", (("data", -1),), (("batch", "data"),)),
        Strategy("fsdp", (("data", 1), ("fsdp", -1)), (_BATCH, *_FSDP)),
        Strategy("tp", (("data", 1), ("tensor", -1)), (("batch", "data"), *_TENSOR)),
        Strategy(
            "fsdp_tp",
            (("data", 1), ("fsdp", -1), ("tensor", 2)),
            (_BATCH, *_FSDP, *_TENSOR),
        ),
        Strategy("dp_tp", (("data", -1), ("tensor", 2)), (("batch", "data"), *_TENSOR)),
    )
}


def strategy(name: str) -> Strategy:
    """The named strategy. Raises ValueError with the names there are."""
    if name not in STRATEGIES:
        raise ValueError(f"sharding: got {name!r}, expected one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]
