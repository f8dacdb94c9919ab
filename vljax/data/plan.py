"""Which records batch k holds: a pure function of the seed, k and the sources' sizes and weights.

It knows neither hosts nor workers, and needs no batch before k: a restore is a start index.
"""

import dataclasses
import functools

import numpy as np

Picks = list[tuple[int, int]]  # (source, record) of each row


@dataclasses.dataclass(frozen=True)
class Plan:
    """``mixed``: rows are drawn from the sources by weight; otherwise batches are, whole."""

    seed: int
    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    batch_sizes: tuple[int, ...]
    mixed: bool = False

    def __post_init__(self) -> None:
        if self.mixed and len(set(self.batch_sizes)) > 1:
            raise ValueError(
                f"batch_size: got {', '.join(map(str, self.batch_sizes))}, expected one size for "
                "all sources of mixed batches"
            )

    def sources(self, steps: int) -> np.ndarray:
        """The source of each of the first ``steps`` batches."""
        share = np.array(self.weights) / sum(self.weights)
        return np.random.default_rng((self.seed, 1)).choice(len(share), steps, p=share)

    def indices(self, source: int, nth: int) -> np.ndarray:
        """The records of a source's n-th batch: a new permutation a pass, the last part dropped."""
        size, batch = self.sizes[source], self.batch_sizes[source]
        per_pass = size // batch
        if not per_pass:
            raise ValueError(f"source {source}: got {size} records, expected at least {batch}")
        passes, position = divmod(nth, per_pass)
        order = _permutation(self.seed, source, passes, size)
        return order[position * batch : (position + 1) * batch]

    def rows(self, steps: int) -> "Rows":
        """The rows of the first ``steps`` batches."""
        width = self.batch_sizes[0] if self.mixed else 1
        chosen = self.sources(steps * width)
        nth = np.zeros(len(chosen), int)  # how many of its source came before
        for i in range(len(self.sizes)):
            nth[chosen == i] = np.arange((chosen == i).sum())
        return Rows(self, chosen.reshape(steps, width), nth.reshape(steps, width))


@dataclasses.dataclass(frozen=True)
class Rows:
    """What ``Plan.rows`` has drawn: the sources [steps, 1 or B], and which draw of each it is."""

    plan: Plan
    chosen: np.ndarray
    nth: np.ndarray

    def picks(self, step: int) -> Picks:
        """The (source, record) of each row of a batch."""
        drawn = list(zip(self.chosen[step].tolist(), self.nth[step].tolist(), strict=True))
        if not self.plan.mixed:
            [(source, nth)] = drawn
            return [(source, i) for i in self.plan.indices(source, nth).tolist()]
        return [(source, self._record(source, nth)) for source, nth in drawn]

    def _record(self, source: int, nth: int) -> int:
        passes, position = divmod(nth, self.plan.sizes[source])
        order = _permutation(self.plan.seed, source, passes, self.plan.sizes[source])
        return int(order[position])


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, source: int, passes: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, 2, source, passes)).permutation(size)


def own_rows(batch_size: int, host: tuple[int, int], source: str) -> slice:
    """The rows of a global batch that host (index, count) loads: one block each, in order."""
    index, count = host
    if not 0 <= index < count:
        raise ValueError(f"host: got index {index} of {count}, expected 0 to {count - 1}")
    if batch_size % count:
        raise ValueError(
            f"batch_size: got {batch_size} of source {source}, expected a multiple of the {count} "
            "processes that load it"
        )
    share = batch_size // count
    return slice(index * share, (index + 1) * share)
