"""Rows of a comparison: one for each array, with its largest errors and a verdict."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far off an array may be: of its largest magnitude, or in its own unit, or not at all."""

    value: float
    kind: Literal["relative", "absolute", "exact"]

    def __str__(self) -> str:
        return "exact" if self.kind == "exact" else f"{self.value:.0e} {self.kind[:3]}"


CLOSE = Tolerance(1e-4, "relative")  # activations, logits, losses, in float32
NORM = Tolerance(1e-3, "relative")  # gradient norms
MEL = Tolerance(5e-3, "absolute")  # near-silent bins amplify rounding
PIXEL = Tolerance(1e-5, "relative")  # normalised pixels; one grey is a thousand times as much
EXACT = Tolerance(0.0, "exact")  # ids, labels, masks, indices, texts


@dataclasses.dataclass(frozen=True)
class Row:
    """One array's verdict. Errors are infinite where shapes or texts differ; ``note`` says why."""

    file: str
    name: str
    shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    tolerance: Tolerance
    ok: bool
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """An infinite error, which JSON has no word for, is null."""
        errors = {
            name: value if np.isfinite(value) else None
            for name, value in (("max_abs", self.max_abs), ("max_rel", self.max_rel))
        }
        head = {"file": self.file, "name": self.name}
        return head | errors | {"tolerance": self.tolerance.value, "ok": self.ok}


class Skipped(NamedTuple):
    """An array that was not compared, and why."""

    file: str
    name: str
    why: str


@dataclasses.dataclass
class Report:
    """All rows of a set, and what has none."""

    rows: list[Row]
    not_compared: list[Skipped]

    @property
    def ok(self) -> bool:
        """Whether something was compared, and all of it is close enough."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    def as_json(self) -> str:
        rows = [row.as_json() for row in self.rows]
        skipped = [entry._asdict() for entry in self.not_compared]
        return json.dumps({"ok": self.ok, "rows": rows, "not_compared": skipped}, indent=1)


class Check:
    """Compares what our code makes with one file's arrays by name; ``finish`` tells of the rest.

    ``wants`` maps names to arrays, numbers, texts or lists. What is offered under a name that the
    file does not have is passed over: sets differ in what they hold.
    """

    def __init__(self, file: str, wants: Mapping[str, Any]):
        self.file, self.wants = file, wants
        self.rows: dict[str, Row] = {}
        self._why: dict[str, str] = {}

    def __call__(self, name: str, got: Any, tolerance: Tolerance = CLOSE) -> None:
        if name in self.wants:
            self.rows[name] = compare(self.file, name, got, self.wants[name], tolerance)

    def __getitem__(self, name: str) -> Any:
        """The golden value, to be computed with; unless compared as well, it is an input."""
        self._why.setdefault(name, "an input")
        return self.wants[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self.wants else default

    def __contains__(self, name: str) -> bool:
        return name in self.wants

    def skip(self, name: str, why: str) -> None:
        if name in self.wants:
            self._why[name] = why

    def cases(self, array: str) -> list[str]:
        """The prefixes under which there is ``array``."""
        found = [n for n in self.wants if n.rsplit("/", 1)[-1] == array]
        return [name.removesuffix(array) for name in found]

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Makes of any error a failed row, so that one array does not hide all others."""
        try:
            yield
        except Exception as error:
            note = f"{type(error).__name__}: {error}"
            inf = float("inf")
            self.rows[f"{what} (error)"] = Row(
                self.file, f"{what} (error)", (), inf, inf, EXACT, False, note
            )

    def finish(self) -> tuple[list[Row], list[Skipped]]:
        skipped = [
            Skipped(self.file, name, self._why.get(name, "unknown"))
            for name in self.wants
            if name not in self.rows
        ]
        return list(self.rows.values()), skipped


def compare(file: str, name: str, got: Any, want: Any, tolerance: Tolerance) -> Row:
    """The row of one array."""
    if not _numeric(want):
        error = 0.0 if got == want else float("inf")
        note = "" if got == want else f"got {_short(got)}, expected {_short(want)}"
        return Row(file, name, np.shape(want), error, error, EXACT, not error, note)
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        note, inf = f"got shape {got.shape}, expected {want.shape}", float("inf")
        return Row(file, name, want.shape, inf, inf, tolerance, False, note)
    error = absolute_error(got, want)
    relative = error / max(_largest(want), 1e-30) if error else 0.0
    found = relative if tolerance.kind == "relative" else error
    return Row(file, name, want.shape, error, relative, tolerance, found <= tolerance.value)


def absolute_error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest absolute difference; inf where one of them is not finite."""
    if want.size == 0:
        return 0.0
    error = float(np.abs(np.asarray(got, np.float64) - np.asarray(want, np.float64)).max())
    return error if np.isfinite(error) else float("inf")


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest absolute difference over the largest magnitude of ``want``; inf where not finite.

    Raises ValueError for different shapes: nothing is broadcast.
    """
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        raise ValueError(f"shapes differ: got {got.shape}, expected {want.shape}")
    return absolute_error(got, want) / max(_largest(want), 1e-30)


def flatten_json(value: Any, path: str = "") -> dict[str, Any]:
    """Nested JSON -> {"a/0/b": leaf}; a list of numbers or of texts is one leaf."""
    if isinstance(value, dict):
        pairs = [(str(key), x) for key, x in value.items()]
    elif isinstance(value, list) and any(isinstance(x, dict | list) for x in value):
        pairs = [(str(i), x) for i, x in enumerate(value)]
    else:
        return {path: value}
    nested = [flatten_json(x, f"{path}/{key}" if path else key) for key, x in pairs]
    return {name: leaf for part in nested for name, leaf in part.items()}


Compare = Callable[[Any, Check], None]


def _numeric(value: Any) -> bool:
    return not isinstance(value, str | bool | type(None)) and np.asarray(value).dtype.kind in "biuf"


def _largest(x: np.ndarray) -> float:
    return float(np.abs(np.asarray(x, np.float64)).max()) if x.size else 0.0


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
