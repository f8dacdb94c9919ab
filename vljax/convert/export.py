"""Trained branches back into the original's ``.pth``."""

from pathlib import Path
from typing import Any

from vljax import store
from vljax.convert.layouts import UNITS
from vljax.convert.torch_writer import save_torch
from vljax.convert.towers import to_torch
from vljax.models.sizes import VideoLlamaSize, size_of, video_llama_size

BRANCHES = {
    "vision": ("video Q-Former", "video projection"),
    "audio": ("audio Q-Former", "audio projection"),
}


def export(folder: Path, out: Path, branch: str) -> int:
    """Writes the branch that ``folder`` holds, in its dtypes; returns the number of tensors.

    Raises WeightsError where the folder lacks the branch, or ``out`` is there.
    """
    store.require_new(out)
    prefixes = tuple(prefix for unit in BRANCHES[branch] for prefix in UNITS[unit])
    size = _size(folder)
    params, _ = store.load(folder, None, prefixes)
    if lacking := [p for p in prefixes if p not in params]:
        raise store.WeightsError(
            f"{folder}: lacks {', '.join(lacking)}, which the {branch} branch needs; name the "
            "folder of that branch's weights"
        )
    tensors = to_torch(params, size)
    partial = out.with_name(out.name + ".partial")
    try:
        save_torch(partial, tensors.items())
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)
    return len(tensors)


def _size(folder: Path) -> VideoLlamaSize:
    """Of a model, or of what one stage trained, whose manifest holds the run's config."""
    manifest: dict[str, Any] = store.read_manifest(folder)
    config = manifest.get("config")
    if "model" not in manifest and config:
        return video_llama_size(config["size"], config["llm"])
    return size_of(manifest)
