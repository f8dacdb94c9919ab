"""Configs: one experiment a page. What every experiment has, and how an argument string is read."""

from typing import Any

from ml_collections import ConfigDict

VISION = (r"frame_position/", r"video_qformer/", r"video_proj/")
AUDIO = (r"audio_position/", r"audio_qformer/", r"audio_proj/")


def parse_arg(arg: str | None, **defaults: str | int | float) -> ConfigDict:
    """ "size=13b,sharding=fsdp" -> a ConfigDict of ``defaults`` with those replaced.

    Raises ValueError for a knob that is not among the defaults, or a value of another type.
    """
    values: dict[str, Any] = dict(defaults)
    for part in (arg or "").split(","):
        if not part:
            continue
        name, _, value = part.partition("=")
        if name not in defaults:
            raise ValueError(
                f"config argument: got {name!r}, expected one of {', '.join(defaults)}"
            )
        kind = type(defaults[name])
        try:
            values[name] = kind(value)
        except ValueError as error:
            raise ValueError(
                f"config argument {name}: got {value!r}, expected {kind.__name__}"
            ) from error
    return ConfigDict(values)


def default(size: str, llm: str, sharding: str) -> ConfigDict:
    """What every run has; the original's values. ``workdir`` must be given by the user.

    A ``size`` of "" is the decoder's own, such as 7b of vicuna.
    ``start`` names folders of weights, relative to ``workdir``. ``features``: a folder that ``vljax
    encode`` filled, to be read in place of media; a source may have one of its own.
    """
    tiny = size == "tiny"
    config = ConfigDict(
        {
            "name": "",
            "size": size,
            "llm": llm,
            "sharding": sharding,
            "seed": 42,
            "dtype": "float32" if tiny else "bfloat16",
            "remat": "none" if tiny else "full",
            "attention": "xla",
            "unroll": False,
            "accumulate": 1,
            "frame_chunk": 0,
            "quantise": "",
            "quantise_vit": "",
            "workdir": "",
            "start": (),
            "begin_as": (),
            "steps": 0,
            "save_every": 1000,
            "log_every": 10,
            "watchdog_seconds": 1800.0,
            "objective": {"name": ""},
            "trainable": (),
            "optimizer": {
                "peak_lr": 1e-4,
                "min_lr": 8e-5,
                "warmup_lr": 1e-6,
                "warmup_steps": 0,
                "steps_per_epoch": 0,
                "b2": 0.999,
                "weight_decay": 0.05,
                "clip": 0.0,
            },
            "tokenizer": "",
            "template": llm,
            "features": "",
            "sources": {},
            "mixed": False,
            "decoding": {"workers": 2, "seconds": 60.0},
        }
    )
    return config


def masking(llm: str) -> str:
    """How conversations are labelled: as the paper's code does, where it knows the decoder."""
    return "original" if llm in ("vicuna", "llama2") else "clean"


def source(
    family: str, annotations: Any, media: Any, weight: float, batch_size: int, **fields: Any
) -> ConfigDict:
    """A source of records; fields as in ``data.pipeline.MediaSource`` and its specs.

    An ``end`` of "" is the template's own. ``records`` is a folder that ``vljax data prepare`` made
    of the annotations and media, to be read instead of them.
    """
    values = {
        "family": family,
        "annotations": annotations,
        "media": media,
        "weight": weight,
        "batch_size": batch_size,
        "media_tokens": 32,
        "limit": 32,
        "end": "\n",
        "prompts": False,
        "masking": "original",
        "frames": 8,
        "size": 224,
        "policy": "uniform",
        "augment": True,
        "on_bad": "raise",
        "max_bad": 0.01,
        "options": {},
        "records": "",
        "features": "",
    }
    unknown = set(fields) - set(values)
    if unknown:
        raise ValueError(f"source: got {min(unknown)!r}, expected one of {', '.join(values)}")
    return ConfigDict(values | fields)
