"""Kills a run again and again, and compares what it leaves with what an undisturbed one does.

python launch/local/chaos.py FOLDER [--kills 20] [--seed 0] [--processes N] -- COMMAND ... {workdir}

COMMAND is run with FOLDER/whole and with FOLDER/killed in place of {workdir}; with N over 1, N
times at once, with --coordinator, --processes and --process. Kills (SIGKILL, to one process; the
others follow, as the launcher sees to) come at random moments of three kinds in turn: any time,
between two steps, and while a checkpoint is being written; the last one while the weights are.
Exits with 1, and tells, where rows of metrics.jsonl (but for times and rates) or arrays of the
weights differ in a bit.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vljax import store
from vljax.train.metrics import without_timing

SOON = 0.05  # seconds
Moment = Callable[[], bool]


def start(command: Sequence[str], processes: int, log: Path) -> list[subprocess.Popen]:
    """One process of the command, or as many as asked for, in groups of their own."""
    each = [list(command)]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
        flags = [place, f"--processes={processes}"]
        each = [[*command, *flags, f"--process={i}"] for i in range(processes)]
    with log.open("ab") as out:
        return [
            subprocess.Popen(c, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
            for c in each
        ]


def end(started: Sequence[subprocess.Popen]) -> None:
    """SIGKILL to all, and to what they started."""
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def finish(started: Sequence[subprocess.Popen], until: Moment) -> list[int] | None:
    """The exit codes; None if ``until`` came first. When one process fails, all are ended."""
    try:
        while not until():
            codes = [p.poll() for p in started]
            if None not in codes:
                return codes
            if any(codes):
                end(started)
            time.sleep(0.002)
        return None
    except BaseException:
        end(started)
        raise


def never() -> bool:
    return False


def after(seconds: float, happened: Moment = lambda: True) -> Moment:
    """So long after something has happened."""
    since: list[float] = []

    def come() -> bool:
        if not since and happened():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] >= seconds

    return come


def either(one: Moment, other: Moment) -> Moment:
    return lambda: one() or other()


def new_rows(workdir: Path, count: int) -> Moment:
    path = workdir / "metrics.jsonl"
    before = path.stat().st_size if path.exists() else 0
    wanted = before + 100 * count  # about so many bytes each
    return lambda: path.exists() and path.stat().st_size >= wanted


def saving(workdir: Path, nth: int) -> Moment:
    """The nth checkpoint from now on is being written."""
    seen: set[Path] = set(workdir.glob("checkpoints/*"))

    def come() -> bool:
        seen.update(workdir.glob("checkpoints/*tmp*"))
        met = {p for p in seen if "tmp" in p.name}
        return len(met) >= nth

    return come


def moments(workdir: Path, first: float, chance: random.Random) -> Iterator[tuple[str, Moment]]:
    for kind in itertools.cycle(("any time", "between steps", "while saving")):
        soon = chance.uniform(0, SOON)
        if kind == "any time":
            yield kind, either(after(chance.uniform(0, 1.1 * first)), new_rows(workdir, 5))
        elif kind == "between steps":
            yield kind, after(soon, new_rows(workdir, chance.randint(1, 3)))
        else:
            yield kind, after(soon, saving(workdir, chance.randint(1, 2)))


def undisturbed(command: Sequence[str], processes: int, workdir: Path) -> float:
    """Runs it to its end; how many seconds its first row took. Raises RuntimeError."""
    began, log = time.monotonic(), workdir.with_suffix(".log")
    started = start(command, processes, log)
    codes = finish(started, new_rows(workdir, 1))
    first = time.monotonic() - began
    codes = codes or finish(started, never)
    if any(codes or ()):
        raise RuntimeError(f"{workdir}: failed with {codes}; {log} ends: {log.read_text()[-2000:]}")
    return first


def stop(
    command: Sequence[str], processes: int, workdir: Path, number: int, moment: Moment
) -> list[int] | None:
    """The exit codes after the signal ``number`` to the last process at a moment."""
    started = start(command, processes, workdir.with_suffix(".log"))
    if finish(started, moment) is None:
        started[-1].send_signal(number)
    return [p.wait(300) for p in started]


def kill_until_done(
    command: Sequence[str],
    processes: int,
    workdir: Path,
    kills: int,
    first: float,
    chance: random.Random,
) -> list[tuple[str, int, bool]]:
    """Of each kill: what it was aimed at, the rows there were, and whether it hit a write.

    Then the run is let go on to its end.

    ``first``: about how many seconds the first row takes. Raises RuntimeError where the run ended
    before all kills, or failed by itself.
    """
    log = workdir.with_suffix(".log")
    done = []
    met = itertools.islice(moments(workdir, first, chance), kills - 1)
    last = "while the weights are written", lambda: any(workdir.glob("weights/*"))
    for kind, moment in (*met, last):
        started = start(command, processes, log)
        codes = finish(started, moment)
        if codes is not None:
            raise RuntimeError(f"{workdir}: ended with {codes} after {len(done)} kills; see {log}")
        chance.choice(started).kill()
        end(started)
        half = any(workdir.glob("*/*tmp*"))
        done.append((kind, len(rows(workdir)), half))
        hit = ", which it cut short" if half else ""
        print(f"kill {len(done)}, {kind}{hit}, at {done[-1][1]} rows", file=sys.stderr)
    codes = finish(start(command, processes, log), never)
    if any(codes or ()):
        raise RuntimeError(f"{workdir}: failed with {codes}; see {log}")
    return done


def rows(workdir: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl tells but for times; a line that was cut short is left out."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    read = [json.loads(line) for line in lines if line.endswith("}")]
    return [without_timing(row) for row in read]


def differences(one: Path, other: Path) -> list[str]:
    """What differs in a bit between two finished runs."""
    found = []
    if rows(one) != rows(other):
        pairs = itertools.zip_longest(rows(one), rows(other))
        a, b = next((a, b) for a, b in pairs if a != b)
        found.append(f"metrics.jsonl: {a} and {b}")
    arrays, others = (store.flatten(store.load(w / "weights", None)[0]) for w in (one, other))
    if set(arrays) != set(others):
        return [*found, f"weights: {sorted(set(arrays) ^ set(others))[0]} is in one of them only"]
    unlike = [n for n in arrays if not np.array_equal(arrays[n], others[n])]
    return found + [f"weights: {name} differs" for name in unlike]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("command", nargs="+", help="{workdir} stands for the run's folder")
    args = parser.parse_args(argv)
    whole, killed = args.folder / "whole", args.folder / "killed"
    args.folder.mkdir(parents=True, exist_ok=True)
    commands = {w: [c.replace("{workdir}", str(w)) for c in args.command] for w in (whole, killed)}
    first = undisturbed(commands[whole], args.processes, whole)
    chance = random.Random(args.seed)
    kill_until_done(commands[killed], args.processes, killed, args.kills, first, chance)
    found = differences(whole, killed)
    print("\n".join(found) or f"the same, after {args.kills} kills: {len(rows(whole))} rows")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
