#!/usr/bin/env python3
"""Fills in a template beside this file and hands it to kubectl; with --dry-run prints it instead.

  launch/gke/manifest.py jobset_tpu NAME --image IMAGE --claim CLAIM --chip v5e --topology 4x4 \
      --config configs/tiny.py:stage=all --workdir /data/runs/tiny [flags of vljax train]
  launch/gke/manifest.py jobset_gpu NAME --image IMAGE --claim CLAIM --chip h100 --hosts 2 ...

Applying what is there already changes nothing. A JobSet that was deleted goes on from its last
checkpoint when it is applied again.
"""

import argparse
import json
import math
import shlex
import string
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TPUS = {  # chip: its name on GKE, chips a host
    "v4": ("tpu-v4-podslice", 4),
    "v5e": ("tpu-v5-lite-podslice", 4),
    "v5p": ("tpu-v5p-slice", 4),
    "v6e": ("tpu-v6e-slice", 4),
}
GPUS = {"a100": ("nvidia-tesla-a100", 8), "h100": ("nvidia-h100-80gb", 8)}


def main() -> int:
    args, flags = parse(sys.argv[1:])
    text = render(args, flags)
    if args.dry_run:
        print(text, end="")
        return 0
    return subprocess.run(["kubectl", "apply", "--filename=-"], input=text, text=True).returncode


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("template", choices=sorted(p.stem for p in HERE.glob("job*.yaml")))
    parser.add_argument("name", help="of the JobSet or Job")
    parser.add_argument("--image", required=True, help="made with launch/gke/Dockerfile")
    parser.add_argument("--config", required=True, help="FILE[:ARG], as in the image")
    parser.add_argument("--workdir", required=True, help="a folder below /data")
    parser.add_argument("--claim", required=True, help="persistent volume claim all pods mount")
    parser.add_argument("--chip", required=True, choices=sorted(TPUS | GPUS))
    parser.add_argument("--topology", help="of a TPU slice: 4x4")
    parser.add_argument("--slices", type=int, default=1, help="TPU slices")
    parser.add_argument("--hosts", type=int, default=1, help="machines with GPUs")
    parser.add_argument("--chips", type=int, help="a machine; all of them by default")
    parser.add_argument("--restarts", type=int, default=3, help="after failures, not preemptions")
    parser.add_argument("--grace", type=int, default=120, help="seconds to save a step in")
    parser.add_argument("--dry-run", action="store_true", help="print the manifest, do nothing")
    args, flags = parser.parse_known_args(argv)
    if not args.workdir.startswith("/data/"):
        parser.error(f"--workdir: got {args.workdir}, expected a folder below /data, the volume")
    if (args.template == "jobset_tpu") != (args.chip in TPUS):
        parser.error(f"--chip: got {args.chip}, which is not one of {args.template}")
    if args.chip in TPUS and not args.topology:
        parser.error("--topology: got nothing, expected a slice's, such as 4x4")
    for flag in flags:
        if not flag.startswith("--"):
            parser.error(f"got {flag}, expected flags of vljax train as --FLAG=VALUE")
    return args, flags


def render(args: argparse.Namespace, flags: list[str]) -> str:
    accelerator, chips = (TPUS | GPUS)[args.chip]
    hosts = args.hosts
    if args.chip in TPUS:
        hosts, chips = slice_of(args.topology, chips)
    chips = args.chips or chips
    train = [f"--config={args.config}", f"--config.workdir={args.workdir}", "--distributed", *flags]
    values = {
        **{name: getattr(args, name) for name in ("name", "image", "claim", "slices", "topology")},
        "command": json.dumps(
            f"source launch/env/{args.chip}.sh && exec {shlex.join(['vljax', 'train', *train])}"
        ),
        "hosts": hosts,
        "chips": chips,
        "accelerator": accelerator,
        "restarts": args.restarts,
        "failures": args.restarts * hosts,
        "grace": args.grace,
    }
    template = (HERE / "access.yaml").read_text() + (HERE / f"{args.template}.yaml").read_text()
    return string.Template(template).substitute(values)


def slice_of(topology: str, chips_a_host: int) -> tuple[int, int]:
    """Hosts, and chips on each, of a slice such as 4x4; up to a host's chips it is one host.

    Raises SystemExit with a sentence.
    """
    sides = topology.split("x")
    if not all(side.isdecimal() and int(side) for side in sides) or len(sides) not in (2, 3):
        sys.exit(f"--topology: got {topology}, expected such as 4x4 or 2x2x2")
    chips = math.prod(int(side) for side in sides)
    if chips <= chips_a_host:
        return 1, chips
    if chips % chips_a_host:
        sys.exit(f"--topology: got {chips} chips, expected a multiple of {chips_a_host}")
    return chips // chips_a_host, chips_a_host


if __name__ == "__main__":
    sys.exit(main())
