"""Where a model's weights come from: this package, a folder, published files, a hub."""

import fcntl
import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vljax import __version__
from vljax.generate import chat
from vljax.store import WeightsError

if TYPE_CHECKING:
    from vljax.generate.chat import Model

log = logging.getLogger(__name__)
Name = str | Path
Tell = Callable[[str], None]
WEIGHTS = (".pth", ".pt", ".bin", ".safetensors", ".gguf")
# Of a language model's own folder, which is converted as one; and what trainers leave behind.
NOT_ALONE = (
    r"(pytorch_)?model([-.].*)?|(consolidated|optimizer|scheduler|rng_state|training_args).*"
)


def load(
    name: Name | Sequence[Name] = "tiny",
    dtype: Any = None,
    *,
    llm: str = "vicuna",
    quantise: str = "",
    quantise_vit: str = "",
    sharding: str = "",
    tell: Tell = log.info,
) -> "Model":
    """Loads the model that goes by ``name``; see ``obtain``.

    Args:
      dtype: to hold the weights and compute in; by default, what their folder says.
      llm: whose the language model among published files is: vicuna, llama2 or smollm2_135m.
      quantise: "int8" or "int4", to hold the language model in; quantise_vit: "int8", the ViT.
      sharding: a strategy over all devices, as in training ("fsdp_tp"); else the first device.
      tell: is told beforehand, in a line each, what is fetched and converted, what the weights
        take and whether they fit.

    Raises WeightsError where there are none, or not such that belong together.
    """
    folder = obtain(name, llm, tell)
    held = {"quantise": quantise, "quantise_vit": quantise_vit, "sharding": sharding}
    model = chat.load(folder, dtype, **held, tell=tell)
    model.name = ", ".join(map(str, listed(name)))
    return model


def listed(name: Name | Sequence[Name]) -> list[Name]:
    return [name] if isinstance(name, str | Path) else list(name)


def obtain(name: Name | Sequence[Name], llm: str = "vicuna", tell: Tell = log.info) -> Path:
    """The folder of weights that goes by ``name``, fetched and converted if need be.

    ``name`` is "tiny", a folder that ``vljax train`` or ``vljax convert`` wrote, a published file
    or a folder of such, or a hub's "user/repository", with "@revision" or "/path" within it if one
    likes; or several of the last kinds, which make a model together. What was converted is kept in
    ``~/.cache/vljax/converted``. Raises WeightsError.
    """
    names = listed(name)
    if names == ["tiny"]:
        return chat.TINY_WEIGHTS
    if not names:
        raise WeightsError("model: got an empty list, expected names of weights")
    paths = [locate(each, tell) for each in names]
    files = [] if _is_ours(paths[0]) else [file for path in paths for file in published(path)]
    if files:
        return converted(files, llm, tell)
    if len(paths) > 1:
        raise WeightsError(
            f"{paths[0]}: is no published file or folder of them, expected only such in a list; "
            "name a converted folder alone"
        )
    return paths[0]  # what is wrong with it is for who reads it to say


def locate(name: Name, tell: Tell) -> Path:
    """A file or folder here, or a hub's."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    from vljax.hub import HUB_NAME, fetch

    if not re.fullmatch(HUB_NAME, str(name)):
        raise WeightsError(f"{name}: there is no such file or folder; check the path")
    return fetch(str(name), tell)


def _is_ours(path: Path) -> bool:
    return (path / "manifest.json").is_file()


def published(path: Path) -> list[Path]:
    """What of a folder, and of the folders in it, ``vljax convert`` takes; a file is itself."""
    if path.is_file():
        return [path]
    inside = [f for f in path.iterdir() if f.is_dir() and not f.name.startswith(".")]
    return [file for folder in (path, *sorted(inside)) for file in _of_folder(folder)]


def _of_folder(folder: Path) -> list[Path]:
    from vljax.convert.readers import INDEXES, WHOLES

    if _is_ours(folder):
        return []
    whole = [folder] if any((folder / name).is_file() for name in (*INDEXES, *WHOLES)) else []
    files = [f for f in folder.iterdir() if f.suffix in WEIGHTS and f.is_file()]
    return whole + sorted(f for f in files if not re.fullmatch(NOT_ALONE, f.stem))


def converted(files: Sequence[Path], llm: str, tell: Tell) -> Path:
    """Their folder in the cache; made there the first time, by one process."""
    out = Path.home() / ".cache" / "vljax" / "converted" / fingerprint(files, llm)
    if _is_ours(out):
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(out.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go of when the process ends, however it does
        if not _is_ours(out):
            tell(f"converting, this once: {', '.join(f.name for f in files)} -> {out}")
            _convert(files, out, llm, tell)
    return out


def fingerprint(files: Sequence[Path], llm: str) -> str:
    """Of names, sizes and times: contents of this size are not read twice."""
    each = sorted(f for path in files for f in (path.iterdir() if path.is_dir() else [path]))
    facts = [
        (f.name, f.resolve().name, stat.st_size, stat.st_mtime_ns)
        for f in each
        if f.is_file() and (stat := f.stat())
    ]
    return hashlib.sha256(json.dumps([__version__, llm, facts]).encode()).hexdigest()[:20]


def _convert(files: Sequence[Path], out: Path, llm: str, tell: Tell) -> None:
    """As ``vljax convert`` does."""
    from vljax.convert.convert import convert
    from vljax.convert.doctor import examine
    from vljax.convert.plan import Options, make_plan, report, require_complete
    from vljax.progress import Megabytes

    options = Options(llm=llm)
    errors = []
    for finding in examine(files, llm, progress=Megabytes()):
        tell(f"{finding.severity}: {finding.message}")
        errors += [finding.message] if finding.severity == "error" else []
    if errors:
        more = f" ({len(errors) - 1} more: see vljax doctor)" if len(errors) > 1 else ""
        raise WeightsError(errors[0] + more)
    plan = make_plan(files, options)
    tell(report(plan))
    require_complete(plan)
    convert(plan, out, options)
