"""``vljax train --config=FILE[:ARG] [--config.FIELD=VALUE ...]``: runs one config, or a chain."""

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vljax import store
from vljax.cli import processes
from vljax.cli.configs import load_config
from vljax.models import precision
from vljax.models.sizes import VideoLlamaSize, size_of, video_llama_size
from vljax.models.video_llama import abstract_parameters
from vljax.sharding.mesh import make_mesh
from vljax.sharding.placement import Placement
from vljax.sharding.processes import first_alone, is_first
from vljax.sharding.strategy import strategy
from vljax.train import partition
from vljax.train.checkpoint import difference
from vljax.train.loop import HostBatch, Run, comparable, fit
from vljax.train.objectives import make_objective
from vljax.train.optimizer import OptimizerConfig
from vljax.train.step import Problem


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="vljax train",
        description=__doc__,
        epilog="every field of the config is a flag: --config.steps=100 --config.workdir=DIR",
    )
    parser.add_argument("--config", metavar="FILE[:ARG]", help="a file with get_config(ARG)")
    parser.add_argument("--print-parameters", action="store_true", help="print a table, then stop")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    processes.add_flags(parser)
    parser.add_argument(
        "--profile",
        metavar="FROM:TO",
        nargs="?",
        const="3:6",
        help="trace these steps, counted from where the command begins (3:6), to WORKDIR/profile",
    )
    args, rest = parser.parse_known_args(argv)
    if not args.config:
        parser.error("name a config: --config=configs/tiny.py:stage=all")
    config = load_config(args.config, rest)
    processes.join(args)
    with processes.failing_at_once():
        if args.print_parameters:
            print_parameters(config, args.json)
        elif "stages" in config:
            train_all(config, steps_range(args.profile))
        else:
            train_one(config, steps_range(args.profile))


def steps_range(told: str | None) -> tuple[int, int] | None:
    """ "3:6" -> (3, 6). Raises ValueError for what is not two numbers."""
    if told is None:
        return None
    first, _, last = told.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise ValueError(f"--profile: got {told!r}, expected FROM:TO, such as 3:6")
    return int(first), int(last)


def train_one(config: ConfigDict, profile: tuple[int, int] | None = None) -> Path:
    """Trains a config in its workdir; the tiny world's files are made if they are not there."""
    prepare_workdir(config)
    run = dataclasses.replace(make_run(config), profile=profile)
    encoders = encoder_hashes(config, run.start)
    sources = make_sources(config, run.problem.size, encoders)

    def batches(start: int) -> Iterator[tuple[str, HostBatch]]:
        from vljax.data.pipeline import batches as pipeline
        from vljax.data.quarantine import Quarantine

        host = Placement(run.strategy, make_mesh(run.strategy)).readers()
        return pipeline(
            sources,
            config.seed,
            config.steps,
            start,
            config.decoding.workers,
            host=host,
            mixed=config.mixed,
            seconds=config.decoding.seconds,
            quarantine=Quarantine(run.workdir, jax.process_index()),
        )

    manifest = {"config": json.loads(config.to_json_best_effort())}
    return fit(run, batches, manifest | ({"encoders": encoders} if encoders else {}))


def prepare_workdir(config: ConfigDict) -> None:
    """Makes a run's folder, and the tiny world beside it if the config wants one."""
    if not config.workdir:
        raise ValueError("--config.workdir: got nothing, expected a folder for this run")
    Path(config.workdir).mkdir(parents=True, exist_ok=True)  # paths beside it go through it
    if "world" in config:
        first_alone("world", lambda: ensure_world(config))


def train_all(config: ConfigDict, profile: tuple[int, int] | None = None) -> None:
    """Each stage in a folder of its own, those that are done already skipped; then one model."""
    if not config.workdir:
        raise ValueError("--config.workdir: got nothing, expected a folder for all stages")
    root = Path(config.workdir)
    for name, stage in config.stages.items():
        stage.workdir, stage.seed = str(root / name), config.seed
        stage.sharding = config.sharding
        if (root / name / "weights" / "manifest.json").is_file():
            require_same(stage)
            if is_first():
                print(f"{name}: done already, in {root / name}", file=sys.stderr)
            continue
        train_one(stage, profile)
    first_alone("export", lambda: print(export(config, root)))


def require_same(stage: ConfigDict) -> None:
    """Raises WeightsError if the stage's folder holds the weights of another config."""
    workdir = Path(stage.workdir)
    done = store.read_manifest(workdir / "weights")["config"]
    before = comparable(done, Path(done["workdir"]))
    now = comparable(json.loads(stage.to_json_best_effort()), workdir)
    if before != now:
        where, old, new = difference("config", before, now)
        raise store.WeightsError(
            f"{workdir}: was trained with {where}={old}, got {new}; name a new workdir, or delete "
            "this one"
        )


def export(config: ConfigDict, root: Path) -> Path:
    """All stages' weights as one model with its tokenizer, in half precision: root/NAME."""
    last = list(config.stages.values())[-1]
    size = video_llama_size(last.size, last.llm)
    trees, manifests = zip(*(store.load(root / n / "weights") for n in config.stages), strict=True)
    params = store.pick(store.merge(*trees), nn.unbox(abstract_parameters(size)), str(root))
    folder = root / config.name
    consumed = {m["run"]: m["consumed"] for m in manifests}
    manifest = {
        "size": last.size,
        "llm": last.llm,
        "template": last.template,
        "command": "vljax train --config=configs/tiny.py:stage=all "
        f"--config.workdir=DIR --config.seed={config.seed}",
        "seed": config.seed,
        "consumed": consumed,
    }
    store.save(folder, params, manifest, jnp.float16)
    shutil.copyfile(last.tokenizer, folder / "tokenizer.model")
    return folder


def ensure_world(config: ConfigDict) -> None:
    folder = Path(config.world.dir)
    if (folder / "world.json").is_file():
        return
    from vljax.data.world.files import make_world
    from vljax.progress import Progress

    progress = Progress("clips of the world", config.world.clips)
    make_world(folder, config.world.clips, config.seed, lambda done, total: progress.show(done))


def features_folder(config: ConfigDict, source: ConfigDict) -> str:
    """Where what the frozen towers made of a source's media is read from; "" reads the media."""
    if "features" not in source:  # it has no files
        return ""
    return source.features or config.features


def encoder_hashes(config: ConfigDict, start: Sequence[str]) -> dict[str, str]:
    """By output, which encoder must have made the features that the config names, if it does."""
    if not any(features_folder(config, s) for s in config.sources.values()):
        return {}
    from vljax.train.features import Encoder

    problem = live_problem(config)
    if not problem.objective.encodes:
        raise ValueError(
            f"features: got a folder for objective {config.objective.name}, which reads no frozen "
            "tower; leave --config.features empty"
        )
    return dict(Encoder.load(problem, start, problem.objective.encodes).hashes)


def make_problem(config: ConfigDict) -> Problem:
    """A config's problem; without the towers whose outputs all of its sources' features hold."""
    problem = live_problem(config)
    folders = [features_folder(config, s) for s in config.sources.values()]
    if not folders or not all(folders):
        return problem
    return dataclasses.replace(problem, objective=problem.objective.from_features())


def live_problem(config: ConfigDict) -> Problem:
    options = config.objective.to_dict()
    return Problem(
        size=video_llama_size(config.size, config.llm),
        objective=make_objective(options.pop("name"), **options),
        trainable=tuple(config.trainable),
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
        attention=config.attention,
        unroll=config.unroll,
        accumulate=config.accumulate,
        frame_chunk=config.frame_chunk,
        formats=precision.formats(config.quantise, config.quantise_vit),
    )


def with_decoder_of(size: VideoLlamaSize, folders: Sequence[str]) -> VideoLlamaSize:
    """``size``, its decoder as the converted one of ``folders`` states it, if one does.

    What goes by one name may have a row more (Vicuna's [PAD]) or another eps (Vicuna 1.5).
    Raises WeightsError for a decoder of another width or depth.
    """
    for folder in folders:
        if not (Path(folder) / "manifest.json").is_file():
            continue  # told when its arrays are missed
        manifest = store.read_manifest(folder)
        if "model" not in manifest or "llama" not in manifest.get("parts", ()):
            continue
        decoder = size_of(manifest).llama
        got, wanted = (decoder.width, decoder.depth), (size.llama.width, size.llama.depth)
        if got != wanted:
            raise store.WeightsError(
                f"{folder}: its LLM has width and depth {got}, but size={size.name} has {wanted}; "
                "name the other size, or other weights"
            )
        return dataclasses.replace(size, llama=decoder)
    return size


def make_run(config: ConfigDict) -> Run:
    from vljax.data.pipeline import TextSpec

    workdir = Path(config.workdir)
    start = tuple(str(workdir / folder) for folder in config.start)
    problem = make_problem(config)
    return Run(
        name=config.name,
        problem=dataclasses.replace(problem, size=with_decoder_of(problem.size, start)),
        optimizer=OptimizerConfig(**config.optimizer),
        strategy=strategy(config.sharding),
        steps=config.steps,
        workdir=workdir,
        start=start,
        begin_as=tuple(tuple(pair) for pair in config.begin_as),
        seed=config.seed,
        save_every=config.save_every,
        log_every=config.log_every,
        watchdog_seconds=config.watchdog_seconds,
        batch_sizes=tuple((name, s.batch_size) for name, s in config.sources.items()),
        lengths=TextSpec.lengths,
    )


def make_sources(
    config: ConfigDict, size: VideoLlamaSize, encoders: Mapping[str, str] | None = None
) -> list[Any]:
    """The config's sources, their annotation files read, and with ``encoders`` their features."""
    made = [make_source(name, s, config, size) for name, s in config.sources.items()]
    if not encoders:
        return made
    return [
        with_features(s, features_folder(config, config.sources[s.name]), encoders) for s in made
    ]


def with_features(source: Any, folder: str, encoders: Mapping[str, str]) -> Any:
    """A source that reads ``folder`` in place of media, if there is one."""
    from vljax.data.views import find_features

    if not folder:
        return source
    skip = source.on_bad == "skip"
    found = find_features(Path(folder), encoders, source.name, source.records, source.frames, skip)
    return dataclasses.replace(source, features=found)


def make_source(name: str, s: ConfigDict, config: ConfigDict, size: VideoLlamaSize) -> Any:
    from vljax.data.pipeline import FrameSpec, MediaSource, TextSpec
    from vljax.data.text import TEMPLATES

    if s.family == "world":
        from vljax.data.world.sources import world_source

        return world_source(s.name, s.batch_size, config.tokenizer, size.audio)
    return MediaSource(
        name=name,
        weight=s.weight,
        batch_size=s.batch_size,
        records=read_records(s),
        frames=FrameSpec(s.frames, s.size, s.policy, s.augment),
        text=TextSpec(
            tokenizer=config.tokenizer,
            vocab=size.llama.vocab,
            template=config.template,
            media=s.media_tokens,
            limit=s.limit,
            end=s.end or TEMPLATES[config.template].end,
            prompts=s.prompts,
            masking=s.masking,
        ),
        on_bad=s.on_bad,
        max_bad=s.max_bad,
    )


def read_records(s: ConfigDict) -> Sequence[Any]:
    """As they lie on disk; or, of a source that names ``records``, as they were prepared."""
    if s.records:
        from vljax.data.tfds_builders import StoredRecords

        return StoredRecords(s.records, s.family, s.options.to_dict())
    from vljax.data.sources import read

    return read(s.family, s.annotations, s.media, **s.options)


def print_parameters(config: ConfigDict, as_json: bool) -> None:
    """Module, parameters, bytes, frozen or trainable: of abstract arrays, nothing is allocated."""
    configs = dict(config.stages.items()) if "stages" in config else {config.name: config}
    tables = {name: parameter_table(c) for name, c in configs.items()}
    if as_json:
        data = {name: table_json(rows) for name, rows in tables.items()}
        print(json.dumps(data if "stages" in config else data[config.name]))
        return
    for name, rows in tables.items():
        print(f"{name}\n{partition.format_table(rows)}")


def parameter_table(config: ConfigDict) -> list[partition.Row]:
    """Trainables in float32, what is frozen as it is held: in the compute dtype, or quantised."""
    problem = make_problem(config)
    return partition.table(*partition.split(nn.unbox(problem.held()), problem.trainable))


def table_json(rows: Sequence[partition.Row]) -> dict[str, Any]:
    totals = {
        kind: sum(r.parameters for r in rows if r.trainable == flag)
        for kind, flag in (("trainable", True), ("frozen", False))
    }
    return {"rows": [r._asdict() for r in rows], **totals}
