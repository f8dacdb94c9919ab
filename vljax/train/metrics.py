"""What remains of a run to look at: metrics.jsonl, TensorBoard's files, a picture of the loss."""

import collections
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from vljax.store import write_whole

# What depends on the clock; all else in a row follows from the config, killed and resumed or not.
TIMING = ("seconds", "clips_per_s", "tokens_per_s_per_device", "mfu", "eta_s")


def without_timing(row: dict[str, Any]) -> dict[str, Any]:
    """What two runs of one config have in common, however fast they were."""
    return {name: value for name, value in row.items() if name not in TIMING}


class MetricsLog:
    """Appends rows to ``workdir/metrics.jsonl``; rows after ``step`` are dropped on resuming."""

    def __init__(self, workdir: Path, step: int = 0):
        self.path = workdir / "metrics.jsonl"
        rows = [r for r in read_metrics(workdir) if r["step"] <= step]
        write_whole(self.path, "".join(json.dumps(r) + "\n" for r in rows))

    def write(self, row: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


class TensorBoard:
    """Event files in ``workdir/tensorboard``, if tensorboardX is there; a sentence if it is not."""

    def __init__(self, workdir: Path, step: int = 0):
        self._writer: Any = None
        if not _installed("tensorboardX", "TensorBoard files"):
            return
        from tensorboardX import SummaryWriter

        folder = str(workdir / "tensorboard")
        self._writer = SummaryWriter(folder, purge_step=step + 1 if step else None)

    def write(self, row: dict[str, Any]) -> None:
        if self._writer is None:
            return
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The rows there are; a last one that was cut short is left out."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    if lines and not lines[-1].endswith("}"):
        lines.pop()
    return [json.loads(line) for line in lines]


def plot_loss(workdir: Path) -> None:
    """Draws ``workdir/loss.png`` from metrics.jsonl, if matplotlib is there."""
    if not _installed("matplotlib", "loss.png"):
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_metrics(workdir)
    series = collections.defaultdict(list)
    for row in rows:
        for name, value in row.items():
            series[name].append(value)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(series["step"], series["loss"])
    axes.set(xlabel="step", ylabel="loss", title=workdir.name, yscale="log")
    axes.grid(alpha=0.3)
    figure.savefig(workdir / "loss.png", dpi=110)
    plt.close(figure)


def _installed(package: str, what: str) -> bool:
    """Whether a package is there; what it would have written is not worth a run."""
    if importlib.util.find_spec(package) is not None:
        return True
    print(f"no {what}: pip install {package} makes them", file=sys.stderr)
    return False
