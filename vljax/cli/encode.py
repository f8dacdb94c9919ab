"""``vljax encode --config=FILE[:ARG] --out DIR``: what the frozen towers make of all media, once.

Training then reads it with ``--config.features=DIR`` and decodes nothing. Given again, the command
adds what is missing: after a stop, of new records, of another config's sources.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vljax.data.video import MediaError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from vljax.data.pipeline import MediaSource


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="vljax encode",
        description=__doc__,
        epilog="every field of the config is a flag, as in vljax train",
    )
    parser.add_argument("--config", metavar="FILE[:ARG]", help="one stage, as it will be trained")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a folder, new or of this encoder")
    parser.add_argument("--sound", action="store_true", help="ImageBind's features of sounds, too")
    parser.add_argument("--batch", type=int, default=64, help="frames encoded at once")
    parser.add_argument("--shard-mb", type=float, default=256, help="what a kill may cost, at most")
    parser.add_argument(
        "--process", metavar="I/N", help="this host's part of the files; JAX's own by default"
    )
    args, rest = parser.parse_known_args(argv)
    if not args.config or not args.out:
        parser.error("name a config and a folder: --config=configs/vision_pretrain.py --out=DIR")
    for name, least in (("batch", 1), ("shard_mb", 0)):
        if getattr(args, name) < least:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag}: got {getattr(args, name)}, expected at least {least}")
    from vljax.cli.configs import load_config

    config = load_config(args.config, rest)
    if "stages" in config:
        stages = ", ".join(config.stages)
        raise ValueError(f"--config={args.config}: got all stages, expected one of {stages}")
    process = process_of(args.process)
    bad, sources = encode_config(config, args, process)
    report_unreadable(bad, sources, args.out / f"unreadable-{process[0]:04}.json")
    print(args.out)


def process_of(flag: str | None) -> tuple[int, int]:
    """ "1/4" -> (1, 4); without a flag JAX's process index and count."""
    if flag is None:
        import jax

        return jax.process_index(), jax.process_count()
    match = re.fullmatch(r"(\d+)/(\d+)", flag)
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(f"--process: got {flag}, expected I/N such as 0/4, with I from 0 to N - 1")
    return int(match[1]), int(match[2])


def encode_config(
    config: "ConfigDict", args: argparse.Namespace, process: tuple[int, int]
) -> tuple[dict[str, str], "list[MediaSource]"]:
    """Encodes a process's part of a config's media: reasons by unreadable path, and the sources."""
    from vljax.cli.train import live_problem, make_run, make_sources, prepare_workdir
    from vljax.data.features import Store, Writer
    from vljax.data.pipeline import MediaSource
    from vljax.data.views import frame_items, require_exact, sound_items
    from vljax.train.features import OUTPUTS, Encoder, encode

    problem = live_problem(config)
    if not problem.objective.encodes:
        raise ValueError(
            f"objective: got {config.objective.name}, expected one that reads frozen towers: "
            "vision or audio"
        )
    prepare_workdir(config)
    made = make_sources(config, problem.size)
    generated = [s.name for s in made if not isinstance(s, MediaSource)]
    if generated:
        raise ValueError(f"source {generated[0]}: got no files, expected media to encode")
    require_exact({s.name: s.frames for s in made})
    sources = [(s.records, s.frames) for s in made]
    outputs = [*problem.objective.encodes, *["sound_features"] * args.sound]
    encoder = Encoder.load(problem, make_run(config).start, outputs)
    limit = int(args.shard_mb * 2**20)
    writers = {
        name: Writer(Store(args.out / name), encoder.hashes[name], process[0], limit)
        for name in outputs
    }
    seen = frame_items(sources)
    heard = sound_items(sources, problem.size.audio) if args.sound else []
    bad = []
    for items, hears in ((seen, False), (heard, True)):
        chosen = {name: w for name, w in writers.items() if OUTPUTS[name].hears == hears}
        part = items[process[0] :: process[1]]
        bad += encode(part, chosen, encoder, args.batch, **config.decoding)
    return {str(item.path): reason for item, reason in bad}, made


def report_unreadable(bad: Mapping[str, str], sources: "Sequence[MediaSource]", path: Path) -> None:
    """Writes them to ``path``; raises MediaError if they are more than their sources may skip."""
    path.unlink(missing_ok=True)
    if not bad:
        return
    rows = [{"path": name, "reason": reason} for name, reason in bad.items()]
    path.write_text(json.dumps(rows, indent=1) + "\n")
    told = f"{len(bad)} files can't be read and have no features, the first: {rows[0]['reason']}"
    for s in sources:
        lost = len({str(r.path) for r in s.records} & bad.keys())
        if lost and s.on_bad == "raise":
            raise MediaError(
                f"{told}; see {path}, mend them, leave them out of the annotations, or set on_bad="
                f"skip for source {s.name}"
            )
        if lost > s.max_bad * len(s.records):
            raise MediaError(
                f"{told}; see {path}: source {s.name} has {lost} in {len(s.records)} records, "
                f"expected at most {s.max_bad:.2%}; mend them or raise max_bad"
            )
    print(f"{told}; training skips them, see {path}", file=sys.stderr)
