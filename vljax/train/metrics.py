"""What remains of a run to look at: metrics.jsonl and a picture of the loss."""

import collections
import json
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends rows to ``workdir/metrics.jsonl``; rows after ``step`` are dropped on resuming."""

    def __init__(self, workdir: Path, step: int = 0):
        self.path = workdir / "metrics.jsonl"
        rows = [r for r in read_metrics(workdir) if r["step"] <= step]
        self.path.write_text("".join(json.dumps(r) + "\n" for r in rows))

    def write(self, row: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The rows there are; a last one that was cut short is left out."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    if lines and not lines[-1].endswith("}"):
        lines.pop()
    return [json.loads(line) for line in lines]


def plot_loss(workdir: Path) -> None:
    """Draws ``workdir/loss.png`` from metrics.jsonl."""
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
