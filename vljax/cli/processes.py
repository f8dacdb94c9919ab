"""The flags of a run of several processes, and what an error in one of them does to it."""

import argparse

import jax

from vljax.sharding import processes


def add_flags(parser: argparse.ArgumentParser) -> None:
    """``--distributed`` and what states the processes where no scheduler does."""
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes that SLURM, TPU pods, GKE or Open MPI started",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 is met")
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, metavar="I", help="which this is, from 0")
    group.add_argument(
        "--distributed-timeout",
        type=int,
        metavar="SECONDS",
        default=1800,
        help="how long the others may take to come (default: %(default)s)",
    )
    group.add_argument(
        "--cpu-devices", type=int, metavar="N", help="devices of this process, all on the CPU"
    )


def join(args: argparse.Namespace) -> None:
    """Does as the flags say. Raises ValueError for some without the others."""
    if args.cpu_devices is not None:
        if args.cpu_devices < 1:
            raise ValueError(f"--cpu-devices: got {args.cpu_devices}, expected 1 or more")
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", args.cpu_devices)
    stated = (args.coordinator, args.processes, args.process)
    if stated == (None, None, None):
        if args.distributed:
            processes.join(timeout=args.distributed_timeout)
        return
    if None in stated:
        raise ValueError(
            "--coordinator, --processes, --process: got some of them, expected all three, or "
            "--distributed alone"
        )
    if not 0 <= args.process < args.processes:
        raise ValueError(
            f"--process: got {args.process}, expected 0 to {args.processes - 1} of --processes "
            f"{args.processes}"
        )
    processes.join(*stated, timeout=args.distributed_timeout)
