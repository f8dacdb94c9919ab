"""The fences of the documentation, what their markers say, and how they are run.

A line before each fence of bash, console or python says what becomes of it; readers don't see it:

    <!-- run: quick -->            on every run of the tests
    <!-- run: slow -->             with ``pytest -m slow``
    <!-- not run here: REASON -->  only the flags of its ``vljax`` commands are looked at

Behind "quick" or "slow" may stand, after commas: "output varies", so that what a console fence
shows is not compared; "exits 1"; "stays", a server until the page's end; "makes the files", which
other pages have if they link to where it stands. A page's fences run in order in one folder, which
looks like a fresh checkout. Installing is left out: it is the environment the tests are in.
"""

import contextlib
import dataclasses
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "launch/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAKER, ANCHOR = ROOT / "docs/tutorial/first-answers.md", "first-answers.md#three-files-to-try"
FILES = ("clip.mp4", "picture.png", "bird.wav")
LANGUAGES = ("bash", "console", "python")
OPTIONS = ("output varies", "exits 1", "stays", "makes the files")
SESSION = Path(__file__).with_name("session.py")
OWN = {"runs", "data", "site", "build", "dist"}  # what a checkout does not come with
PORT = "8000"
INSTALL = re.compile(r"(python3 -m venv \S+ && \. \S+ && )?pip install [^&\n]*(&& )?")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclasses.dataclass(frozen=True)
class Fence:
    """``told``: the marker's words, or None without one."""

    page: Path
    line: int
    language: str
    text: str
    told: str | None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def words(self) -> list[str]:
        return [w.strip() for w in (self.told or "").removeprefix("run:").split(",")]

    @property
    def runs(self) -> str:
        """ "quick", "slow" or ""."""
        return self.words[0] if (self.told or "").startswith("run:") else ""


def fences(page: Path) -> list[Fence]:
    """Those in a language that can be run."""
    found, before, opened = [], "", None
    inside: list[str] = []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if opened is None and line.startswith("```"):
            opened, inside = (number, line.strip("`").strip(), before), []
        elif opened is not None and line.startswith("```"):
            start, language, above = opened
            marker = re.fullmatch(r"<!-- ((?:run|not run here): .+) -->", above)
            if language in LANGUAGES:
                told = marker[1] if marker else None
                found.append(Fence(page, start, language, "\n".join(inside), told))
            opened = None
        elif opened is not None:
            inside.append(line)
        before = line
    return found


def commands(text: str) -> list[str]:
    """The lines of a bash fence, or those behind the prompts of a console fence."""
    lines = [line.removeprefix("$ ") for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.split() and not line.startswith("#")]


def steps(fence: Fence) -> list[tuple[str, str | None]]:
    """What bash is given, and what it should say, if that is shown."""
    if fence.language == "bash":
        return [(INSTALL.sub("", fence.text), None)]
    found: list[tuple[str, str | None]] = []
    for block in re.split(r"^\$ ", fence.text, flags=re.MULTILINE)[1:]:
        command, _, shown = block.partition("\n")
        found.append((INSTALL.sub("", command), shown))
    return found


def same(shown: str, got: str) -> bool:
    """Words as they are; of numbers 5 percent, or one of the last digit shown, does not matter."""
    one, other = shown.split(), got.split()
    return len(one) == len(other) and all(map(_same_word, one, other))


def _same_word(shown: str, got: str) -> bool:
    if NUMBER.sub("#", shown) != NUMBER.sub("#", got):
        return False
    for a, b in zip(NUMBER.findall(shown), NUMBER.findall(got), strict=True):
        digits = len(a.partition(".")[2]) if "e" not in a else 0
        least = 1.01 * 10**-digits if digits else 0.0
        if abs(float(a) - float(b)) > max(0.05 * abs(float(a)) if digits or "e" in a else 0, least):
            return False
    return True


def checkout(folder: Path) -> Path:
    """A folder like a fresh checkout; what is written there stays out of the real one."""
    folder.mkdir()
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name not in OWN:
            (folder / path.name).symlink_to(path)
    return folder


def environment(cache: Path) -> dict[str, str]:
    """A shell in the activated environment; compiled programs are shared by all pages."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_", "PYTEST_"))}
    return plain | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "HF_HUB_OFFLINE": "1",
    }


class Reader:
    """Who does what a page says, from its beginning, in one folder."""

    def __init__(self, folder: Path, env: Mapping[str, str]):
        self.folder, self.env = folder, env
        self.port = str(_free_port())
        self.staying: list[subprocess.Popen[bytes]] = []

    def follow(self, fence: Fence) -> None:
        """Runs a fence; raises AssertionError for another exit code or output than is told."""
        code = 1 if "exits 1" in fence.words else 0
        if fence.language == "python":
            script = self.folder / "fence.py"
            script.write_text(self._ported(fence.text))
            self._run(fence, [sys.executable, str(SESSION), str(script)], code)
            return
        if "stays" in fence.words:
            self._stay(fence)
            return
        told = steps(fence)
        for number, (command, shown) in enumerate(told, 1):
            # The last command is the one that fails, if one does.
            expected = code if number == len(told) else 0
            shell = ["bash", "-euo", "pipefail", "-c", self._ported(command)]
            said = self._run(fence, shell, expected)
            if shown is not None and "output varies" not in fence.words:
                assert same(shown, said), f"{fence.place}: {command}\nshown:\n{shown}\ngot:\n{said}"

    def _run(self, fence: Fence, command: list[str], code: int) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=900
        )
        told = f"{fence.place}: exit code {done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}"
        assert done.returncode == code, told
        return done.stdout

    def _stay(self, fence: Fence) -> None:
        [(command, _)] = steps(fence)
        command = re.sub(r"vljax serve", f"vljax serve --port {self.port}", command)
        log = self.folder / "stays.log"
        with log.open("wb") as out:
            run = subprocess.Popen(
                ["bash", "-c", command],
                cwd=self.folder,
                env=self.env,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.staying.append(run)
        for _ in range(600):
            assert run.poll() is None, f"{fence.place}: ended\n{log.read_text()}"
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", int(self.port))),
            ):
                return
            time.sleep(0.2)
        raise AssertionError(f"{fence.place}: nobody listens\n{log.read_text()}")

    def _ported(self, text: str) -> str:
        return text.replace(f":{PORT}", f":{self.port}")

    def leave(self) -> None:
        for run in self.staying:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGTERM)
            run.wait(60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def vljax_calls(fence: Fence) -> Iterator[list[str]]:
    """The arguments of each ``vljax ...`` in it."""
    for command in commands(fence.text):
        words = [*shlex.split(command, comments=True), "&&"]
        while words:
            end = next(i for i, w in enumerate(words) if w in ("&&", "||", "|", ";", ">"))
            if words[0] == "vljax":
                yield words[1:end]
            words = words[end + 1 :]
