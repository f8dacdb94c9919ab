"""``--config=FILE:ARG --config.FIELD=VALUE``: from the command line to a ConfigDict."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from vljax.models.sizes import own_size

PACKAGED = Path(__file__).parents[1] / "configs"  # in a wheel; a checkout has its own beside vljax


def load_config(config: str, overrides: Sequence[str]) -> ConfigDict:
    """Reads FILE[:ARG] and applies ``--config.FIELD=VALUE``; raises ValueError for a bad one.

    ``configs/NAME.py`` is the package's own where the working folder has none.
    """
    name, colon, arg = config.partition(":")
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    try:
        left = values(["vljax", f"--config={find(name)}{colon}{arg}", *overrides])[1:]
    except (flags.Error, AttributeError, TypeError, KeyError) as error:
        told = str(error).strip().splitlines()[-1].removeprefix("ValueError: ")  # of a traceback
        raise ValueError(f"--config={config}: {told}") from error
    if left:
        raise ValueError(f"got {left[0]!r}, expected --config.FIELD=VALUE")
    read: Any = values[holder.name].value
    for stage in read.stages.values() if "stages" in read else [read]:
        stage.size = stage.size or own_size(stage.llm)
    return read


def find(name: str) -> Path:
    """The config's file. Raises ValueError where there is none."""
    path = Path(name)
    packaged = PACKAGED / path.name
    if path.is_file():
        return path
    if path.parent == Path("configs") and packaged.is_file():
        return packaged
    raise ValueError(f"--config: got {path}, expected a config file such as configs/tiny.py")
