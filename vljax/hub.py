"""Weights from a hub that speaks Hugging Face's protocol, through ``huggingface_hub``.

Where that hub is, how to sign in and where files are kept are its own affairs: HF_ENDPOINT,
HF_TOKEN, HF_HOME. A download that breaks off is taken up where it broke; whole files are kept.
"""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from vljax.store import WeightsError

# user/repository, and perhaps a file or folder in it and @ a branch, tag or commit.
HUB_NAME = r"\w[\w.-]*/\w[\w.-]*(/[\w./-]+)?(@[\w./-]+)?"
WANTED = (".json", ".model", ".safetensors", ".bin", ".pth", ".pt", ".gguf")
UNWANTED = r"(consolidated|training_args|optimizer|scheduler|rng_state).*"


def fetch(name: str, tell: Callable[[str], None]) -> Path:
    """The folder, or the file, that a hub has by this name; without the hub, what was kept of it.

    Raises WeightsError.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    except ImportError as error:
        raise WeightsError(
            f"{name}: there is no such file or folder; if it is a hub's, pip install "
            "huggingface_hub"
        ) from error
    where, _, revision = name.partition("@")
    repository, inside = "/".join(where.split("/")[:2]), "/".join(where.split("/")[2:])
    try:
        files = huggingface_hub.HfApi().list_repo_files(repository, revision=revision or None)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise WeightsError(
            f"{name}: there is no such file or folder, and the hub has none that you may read; "
            "check the name, or sign in with hf auth login"
        ) from error
    except Exception as error:  # its errors are those of whichever HTTP library it uses
        return _kept(name, repository, inside, revision, error)
    chosen = choose(name, files, inside)
    tell(f"{name}: {len(chosen)} files of the hub's {repository}")
    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=chosen
        )
    except Exception as error:
        raise WeightsError(
            f"{name}: the download broke off ({_first_line(error)}); do it again, whole files are "
            "kept"
        ) from error
    return Path(folder, inside)


def _kept(name: str, repository: str, inside: str, revision: str, error: Exception) -> Path:
    import huggingface_hub

    try:  # of all files it would say that they are incomplete, of those that are not wanted, too
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision or None, local_files_only=True, allow_patterns=["*.json"]
        )
    except Exception:
        raise WeightsError(
            f"{name}: there is no such file or folder, and the hub can't be asked "
            f"({_first_line(error)}); check the name, or the network"
        ) from error
    if not os.path.exists(os.path.join(folder, inside)):
        raise WeightsError(f"{name}: was not fetched before, and the hub can't be asked now")
    return Path(folder, inside)


def choose(name: str, files: Iterable[str], inside: str = "") -> list[str]:
    """Those of a repository's files that make a model, of each only one format.

    ``inside``: a file or folder that is wanted alone. Raises WeightsError where there are none, or
    several GGUF files, of which each is a whole model.
    """
    files = [f for f in files if not inside or f == inside or f.startswith(inside + "/")]
    paths = [PurePosixPath(f) for f in files]
    ours = {p.parent for p in paths if p.name == "manifest.json"}
    safe = {p.parent for p in paths if p.suffix == ".safetensors" and p.name.startswith("model")}
    chosen = [
        str(p)
        for p in paths
        if ours & set(p.parents)
        or (
            p.suffix in WANTED
            and not re.fullmatch(UNWANTED, p.name)
            and not (p.parent in safe and p.name.startswith("pytorch_model"))
        )
    ]
    weights = [f for f in chosen if PurePosixPath(f).suffix in WANTED[2:]]
    if not (weights or ours):
        raise WeightsError(f"{name}: holds no weights among {len(files)} files; check the name")
    whole = [f for f in weights if f.endswith(".gguf")]
    if len(whole) > 1:
        raise WeightsError(
            f"{name}: holds {len(whole)} GGUF files, each a model; name one, such as "
            f"{'/'.join(name.partition('@')[0].split('/')[:2])}/{whole[0]}"
        )
    return chosen


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
