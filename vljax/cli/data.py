"""``vljax data check|preview|prepare``: a data set before it is trained on.

It is named by the config that trains on it (--config, with the fields' flags), or as it lies on
disk (--family, --annotations, --media); check and preview read prepared --records, too.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def main(argv: Sequence[str]) -> int:
    args, overrides = parse(argv)
    return {"check": check, "preview": preview, "prepare": prepare}[args.verb](args, overrides)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="vljax data", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    checking = verbs.add_parser("check", help="read every file and text; exits 1 on what breaks")
    showing = verbs.add_parser("preview", help="draw a contact sheet of a few examples")
    preparing = verbs.add_parser("prepare", help="write media and texts as TFDS records")
    for verb in (checking, showing, preparing):
        _add_data(verb)
    for verb in (checking, showing):
        _add_text(verb)
        verb.add_argument("--records", metavar="DIR", help="what prepare wrote, instead of files")
        verb.add_argument("--seed", type=int, default=0, help="of what is drawn at random")
    checking.add_argument("--sample", type=int, metavar="N", help="look at N records of a source")
    checking.add_argument("--workers", type=int, default=os.cpu_count() or 2)
    checking.add_argument("--seconds", type=float, default=60.0, help="most time a file may take")
    checking.add_argument("--json", action="store_true")
    showing.add_argument("--out", type=Path, required=True, help="a new .png file")
    showing.add_argument("--n", type=int, default=4, help="examples of each source")
    preparing.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    preparing.add_argument("--format", default="array_record", choices=("array_record", "tfrecord"))
    preparing.add_argument("--shards", type=int, help="files; else as many as hold 1 GiB each")
    preparing.add_argument("--beam-runner", metavar="R", help="DirectRunner, DataflowRunner, ...")
    preparing.add_argument(
        "--beam-option", action="append", default=[], help="a flag of the runner: --project=NAME"
    )
    preparing.add_argument(
        "--allow-missing", action="store_true", help="store files that are not there as unreadable"
    )
    args, rest = parser.parse_known_args(argv)
    strange = [a for a in rest if not a.startswith("--config.")]
    if strange:
        parser.error(f"got {strange[0]!r}, which is no flag of {args.verb}")
    if bool(args.config) == bool(args.family or getattr(args, "records", None)):
        parser.error("name either --config, or --family with --annotations and --media")
    for name in ("sample", "n", "workers", "shards"):
        if (value := getattr(args, name, None)) is not None and value < 1:
            parser.error(f"--{name}: got {value}, expected at least 1")
    return args, rest


def _add_data(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--config", metavar="FILE[:ARG]", help="a config whose sources are meant")
    verb.add_argument("--source", help="one of the config's sources; else all of them")
    verb.add_argument("--family", help="webvid, filter_cap, llava, videochat or folder")
    verb.add_argument("--annotations", default="", help="the family's annotation file, or folder")
    verb.add_argument("--media", default="", help="the folder of its clips or images")
    verb.add_argument(
        "--options", type=json.loads, default={}, help='of its reader, as {"clean": false}'
    )


def _add_text(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--tokenizer", help="tokenizer.model or .json; texts are looked at with it")
    verb.add_argument("--template", default="vicuna", help="prompt template")
    verb.add_argument("--limit", type=int, default=512, help="most tokens of a text")
    verb.add_argument("--media-tokens", type=int, default=32, help="vectors of a clip")
    verb.add_argument("--masking", default="clean", choices=("clean", "original"))


def check(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from vljax.data.check import check, format_report

    reports = []
    for subject in subjects(args, overrides):
        progress = counter(f"{subject.name}: records")
        report = check(subject, args.sample, args.seed, args.workers, args.seconds, progress)
        reports.append(report)
        if not args.json:
            print(format_report(report), flush=True)
    ok = all(report.ok for report in reports)
    if args.json:
        sources = [dataclasses.asdict(r) | {"ok": r.ok} for r in reports]
        print(json.dumps({"ok": ok, "sources": sources}))
    return 0 if ok else 1


def preview(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    import random

    from vljax.data.preview import draw, show

    if args.out.exists():
        raise ValueError(f"{args.out}: is there already; name a new file")
    shown = []
    for subject in subjects(args, overrides):
        count = len(subject.records)
        chosen = random.Random(args.seed).sample(range(count), min(args.n, count))
        for i in sorted(chosen):
            shown.append(show(subject, i, args.seed))
    draw(shown, args.out)
    print(args.out)
    return 0


def prepare(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from vljax.data.tfds_builders import Origin, prepare

    if args.config:
        named = config_sources(args, overrides)
        jobs = {
            name: Origin(
                s.family, str(s.annotations), str(s.media), s.options.to_dict(), args.allow_missing
            )
            for name, s, _ in named
        }
    else:
        jobs = {
            "": Origin(args.family, args.annotations, args.media, args.options, args.allow_missing)
        }
    for name, origin in jobs.items():
        folder = prepare(
            origin,
            args.out / name,
            args.format,
            args.beam_runner,
            args.beam_option,
            args.shards,
            counter("records"),
        )
        print(folder)
    return 0


def counter(name: str) -> Callable[[int, int], None]:
    """A progress line that learns its total with the first call."""
    from vljax.progress import Progress

    line: list[Progress] = []

    def show(done: int, total: int) -> None:
        if not line:
            line.append(Progress(name, total))
        line[0].show(done)

    return show


def subjects(args: argparse.Namespace, overrides: Sequence[str]) -> list[Any]:
    """What the flags name, as subjects of a check."""
    from vljax.data.check import Subject
    from vljax.data.pipeline import TextSpec

    if args.config:
        return [config_subject(args, *named) for named in config_sources(args, overrides)]
    spec = None
    if args.tokenizer:
        spec = TextSpec(
            args.tokenizer, args.template, args.media_tokens, args.limit, masking=args.masking
        )
    return [Subject(args.family or args.records, family_records(args), text=spec)]


def family_records(args: argparse.Namespace) -> Sequence[Any]:
    if args.records:
        from vljax.data.tfds_builders import StoredRecords

        return StoredRecords(args.records, args.family, args.options or None)
    from vljax.data.sources import read

    return read(args.family, args.annotations, args.media, **args.options)


def config_sources(
    args: argparse.Namespace, overrides: Sequence[str]
) -> list[tuple[str, Any, Any]]:
    """(name, source, config) of every source with files; those of all stages of a chain."""
    from vljax.cli.configs import load_config

    config = load_config(args.config, overrides)
    stages = dict(config.stages.items()) if "stages" in config else {"": config}
    found = []
    for stage, one in stages.items():
        if stage:
            one.workdir = os.path.join(config.workdir, stage)
        one = one.copy_and_resolve_references()
        one.tokenizer = os.path.normpath(one.tokenizer) if one.tokenizer else ""
        for name, s in one.sources.items():
            if s.family != "world" and args.source in (None, name):
                # A chain's paths lead through folders that training has not made yet.
                s.annotations, s.media = os.path.normpath(s.annotations), os.path.normpath(s.media)
                found.append((f"{stage}/{name}" if stage else name, s, one))
    if not found:
        what = f"a source {args.source}" if args.source else "a source that reads files"
        raise ValueError(f"{args.config}: has not {what}; name another config or source")
    return found


def config_subject(args: argparse.Namespace, name: str, s: Any, config: Any) -> Any:
    from vljax.cli.train import make_source
    from vljax.data.check import Subject
    from vljax.models.sizes import video_llama_size

    size = video_llama_size(config.size, config.llm)
    config.tokenizer = args.tokenizer or config.tokenizer
    source = make_source(name, s, config, size)
    if not config.tokenizer:
        print(f"{name}: texts are not looked at: name a --tokenizer", file=sys.stderr)
    return Subject(
        name=name,
        records=source.records,
        frames=source.frames,
        text=source.text if config.tokenizer else None,
        batch_size=source.batch_size,
        max_bad=source.max_bad if source.on_bad == "skip" else 0.0,
        sound=source.sound or size.audio,
    )
