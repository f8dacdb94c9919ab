"""A server under load: clients on this machine that ask about clips, against one alone."""

import base64
import contextlib
import dataclasses
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

QUESTION = "What happens?"
CLIPS = 96  # more than the engine keeps encoded: asked about in turns, each is encoded anew
START = 600.0  # seconds that a server may take to start


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request. ``failure``: why it got no answer; "" if it did. In seconds."""

    clip: int
    seconds: float
    answer: str = ""
    failure: str = ""


@dataclasses.dataclass(frozen=True)
class Load:
    """What so many clients measured, who asked one question after the other for ``seconds``.

    Attributes:
      differing: answers that were others than those that a client alone had got.
      batches: mean number of questions that a token was written for at a time, by the server.
    """

    name: str
    clients: int
    seconds: float
    asked: tuple[Asked, ...]
    differing: int = 0
    batches: float = 1.0

    @property
    def answered(self) -> list[float]:
        return sorted(a.seconds for a in self.asked if not a.failure)

    @property
    def rate(self) -> float:
        return len(self.answered) / self.seconds

    def quantile(self, share: float) -> float:
        """Nearest rank."""
        times = self.answered
        return times[min(len(times) - 1, int(share * len(times)))] if times else float("nan")

    def row(self) -> dict[str, Any]:
        failures = [a.failure for a in self.asked if a.failure]
        return {
            "load": self.name,
            "clients": self.clients,
            "seconds": round(self.seconds, 1),
            "requests": len(self.asked),
            "lost": len(failures),
            "why": sorted(set(failures)),
            "differing": self.differing,
            "per_second": round(self.rate, 2),
            "p50_ms": round(1000 * self.quantile(0.5), 1),
            "p99_ms": round(1000 * self.quantile(0.99), 1),
            "together": round(self.batches, 1),
        }


def measure(
    model: str,
    clients: int,
    seconds: float,
    alone: float,
    batch: int,
    tell: Callable[[str], None],
) -> list[Load]:
    """One client alone, then all of them; then all on a server that answers one at a time."""
    tell(f"making {CLIPS} clips")
    clips = make(CLIPS)
    loads = []
    with serving(model, batch, tell) as port:
        tell(f"one client for {alone:g} s")
        loads.append(load("one client", port, clips, 1, alone))
        known = {a.clip: a.answer for a in loads[0].asked if not a.failure}
        tell(f"{clients} clients for {seconds:g} s")
        loads.append(load(f"{clients} clients", port, clips, clients, seconds, known))
    with serving(model, 1, tell) as port:
        tell(f"{clients} clients for {alone:g} s, answered one at a time")
        name = f"{clients} clients, --batch 1"
        loads.append(load(name, port, clips, clients, alone, known))
    return loads


def make(count: int) -> list[bytes]:
    """Clips of tiny's world."""
    from vljax.data.world.files import clip_path, write_scenes
    from vljax.data.world.scenes import random_scene

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as made:
        write_scenes(Path(made), [random_scene(rng) for _ in range(count)])
        return [clip_path(Path(made), i).read_bytes() for i in range(count)]


@contextlib.contextmanager
def serving(model: str, batch: int, tell: Callable[[str], None]) -> Iterator[int]:
    """A server as a process of its own -> its port. Raises RuntimeError where it does not start."""
    command = [sys.executable, "-m", "vljax.cli.main", "serve", "--model", model, "--port", "0"]
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [*command, "--batch", str(batch)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    timer = threading.Timer(START, process.kill)
    timer.start()
    try:
        assert process.stderr is not None
        port = 0
        for line in process.stderr:
            if found := re.match(r"http://[^ ]+:(\d+) answers", line):
                port = int(found[1])
                break
            tell(line.rstrip())
        timer.cancel()
        if not port:
            raise RuntimeError(f"the server ended with status {process.wait()}: see above")
        # Its later messages must not fill the pipe.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield port
    finally:
        timer.cancel()
        process.terminate()
        process.wait()


def load(
    name: str,
    port: int,
    clips: Sequence[bytes],
    clients: int,
    seconds: float,
    known: dict[int, str] | None = None,
) -> Load:
    """``clients`` threads ask about clips in turns; what has been asked is waited for."""
    turns, lock = iter(range(10**9)), threading.Lock()
    asked: list[Asked] = []
    before = batches(port)
    began = time.monotonic()

    def work() -> None:
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while time.monotonic() < began + seconds:
            with lock:
                turn = next(turns)
            asked.append(ask(line, turn % len(clips), turn, clips))
        line.close()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    after = batches(port)
    steps = after[1] - before[1]
    together = (after[0] - before[0]) / steps if steps else 0.0
    known = known or {}
    differing = sum(not a.failure and known.get(a.clip, a.answer) != a.answer for a in asked)
    return Load(name, clients, took, tuple(asked), differing, together)


def ask(line: http.client.HTTPConnection, clip: int, turn: int, clips: Sequence[bytes]) -> Asked:
    # Its end, an empty box of an mp4, is of this turn: so the server has not decoded it before.
    data = clips[clip] + (16).to_bytes(4, "big") + b"free" + turn.to_bytes(8, "big")
    url = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
    content = [
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "text", "text": QUESTION},
    ]
    body = json.dumps({"messages": [{"role": "user", "content": content}]})
    began = time.monotonic()
    try:
        headers = {"Content-Type": "application/json"}
        line.request("POST", "/v1/chat/completions", body, headers)
        response = line.getresponse()
        found = json.loads(response.read())
        seconds = time.monotonic() - began
        if response.status != 200:
            return Asked(clip, seconds, failure=f"{response.status} {found['error']['message']}")
        return Asked(clip, seconds, found["choices"][0]["message"]["content"])
    except (OSError, http.client.HTTPException, ValueError) as error:
        line.close()
        return Asked(clip, time.monotonic() - began, failure=f"{type(error).__name__}: {error}")


def batches(port: int) -> tuple[float, float]:
    """Tokens that were written, and the steps that it took."""
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    line.request("GET", "/metrics")
    text = line.getresponse().read().decode()
    line.close()
    sums = (re.search(rf"^vljax_batch_size_{n} (\S+)$", text, re.M) for n in ("sum", "count"))
    total, count = (float(found[1]) if found else 0.0 for found in sums)
    return total, count


def table(loads: Sequence[Load]) -> str:
    """Markdown, with the ratio that batching is for below it."""
    head = (
        "| | requests | lost | requests/s | p50 | p99 | together |\n|---|---|---|---|---|---|---|\n"
    )
    rows = [load.row() for load in loads]
    lines = [
        f"| {r['load']} | {r['requests']} | {r['lost']} | {r['per_second']:.1f} | "
        f"{r['p50_ms']:.0f} ms | {r['p99_ms']:.0f} ms | {r['together']:.1f} |"
        for r in rows
    ]
    first, many, single = loads
    ratio = many.rate / first.rate if first.rate else float("nan")
    unbatched = many.rate / single.rate if single.rate else float("nan")
    told = [
        f"{many.clients} clients get {ratio:.2f} times the answers of one alone, and "
        f"{unbatched:.2f} times those of {many.clients} that are answered one at a time",
        *(f"lost: {why}" for r in rows for why in r["why"]),
    ]
    differing = sum(load.differing for load in loads)
    if differing:
        told.append(f"{differing} answers differ from those that a client alone got")
    return head + "\n".join([*lines, "", *told])
