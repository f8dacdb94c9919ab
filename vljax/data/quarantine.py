"""What becomes of records whose media cannot be read: an error, or a row that teaches nothing.

Nothing ever stands in for such a record. Its row keeps its text, with one black frame and no label,
so every other row of the batch is what it would have been, on any number of hosts.
"""

import collections
import dataclasses
import datetime
import json
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vljax.data.audio import AudioSpec
from vljax.data.clips import FrameSpec, Media, load_media
from vljax.data.decode_worker import DecoderDied, Decoders
from vljax.data.examples import Record
from vljax.data.video import MediaError

log = logging.getLogger(__name__)
# What a file can do to a decoder; anything else is a mistake of the program's, and is raised.
BAD = (ValueError, OSError, MemoryError, DecoderDied)
FIRST = 1000  # records from which on the ceiling is a share of those met


class Asking(Protocol):
    """What of a source says how its records are read."""

    @property
    def name(self) -> str: ...
    @property
    def records(self) -> Sequence[Record]: ...
    @property
    def frames(self) -> FrameSpec: ...
    @property
    def sound(self) -> AudioSpec | None: ...
    @property
    def on_bad(self) -> str: ...
    @property
    def max_bad(self) -> float: ...


Wanted = tuple[Asking, Record, np.random.Generator]


@dataclasses.dataclass
class Quarantine:
    """The files that could not be read, each with its reason.

    With a ``folder`` they are written to ``quarantine.jsonl`` there (path, id, source, reason,
    when), one file a host, and those of earlier starts of the run are not tried again: the batches
    of a run that goes on are the same. Delete a line to have its file tried again.
    """

    folder: Path | None = None
    host: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._met: collections.Counter[str] = collections.Counter()
        self._skipped: dict[str, set[str]] = collections.defaultdict(set)
        self.reasons: dict[str, str] = {}
        for path in sorted(self.folder.glob("quarantine*.jsonl")) if self.folder else []:
            for line in path.read_text().splitlines():
                if line.endswith("}"):  # a last one may be cut short
                    row = json.loads(line)
                    self.reasons[row["path"]] = row["reason"]

    def add(self, source: str, record: Record, reason: str) -> None:
        """Notes a file and says so; one that is known already only once."""
        with self._lock:
            if str(record.path) in self.reasons:
                return
            self.reasons[str(record.path)] = reason
            log.warning("%s: record %s is skipped: %s", source, record.id, reason)
            if self.folder is None:
                return
            row = {"path": str(record.path), "id": record.id, "source": source, "reason": reason}
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            name = f"quarantine.{self.host}.jsonl" if self.host else "quarantine.jsonl"
            with (self.folder / name).open("a") as file:
                file.write(json.dumps(row | {"when": now}) + "\n")

    def count(self, source: Asking, record: Record, skipped: bool) -> None:
        """Counts a record met; raises MediaError where too many of a source were skipped.

        The ceiling is ``max_bad`` of the records met by this process, at least of the first 1000
        and at most of all; a record met again counts once.
        """
        with self._lock:
            self._met[source.name] += 1
            if not skipped:
                return
            self._skipped[source.name].add(str(record.path))
            bad, met = len(self._skipped[source.name]), self._met[source.name]
        base = min(max(met, FIRST), len(source.records))
        if bad > source.max_bad * base:
            where = f"{self.folder}/quarantine*.jsonl" if self.folder else "the messages above"
            raise MediaError(
                f"source {source.name}: got {bad} unreadable records, expected at most "
                f"{source.max_bad:.2%} of {base}; see {where} for the reasons, mend the files or "
                "raise max_bad"
            )


class Reader:
    """Reads media in worker processes (in this one without), and keeps what cannot be read."""

    def __init__(self, decoders: Decoders | None = None, quarantine: Quarantine | None = None):
        self._decoders, self._quarantine = decoders, quarantine or Quarantine()

    def __call__(self, wanted: Sequence[Wanted]) -> list[Media | None]:
        """The media of each, None where its source skips what cannot be read, and it cannot.

        Raises MediaError where its source does not, or where a source's ceiling is exceeded.
        """
        tried = self._tried(wanted)
        outcomes = iter(self._read([w for w, try_it in zip(wanted, tried, strict=True) if try_it]))
        return [
            self._settle(source, record, next(outcomes) if try_it else None)
            for (source, record, _), try_it in zip(wanted, tried, strict=True)
        ]

    def settle(
        self, wanted: Sequence[Wanted], outcomes: Sequence[Media | Exception]
    ) -> list[Media | None]:
        """As a call, of what is known of each record's media beforehand, or of the error."""
        return [
            self._settle(source, record, outcome if try_it else None)
            for (source, record, _), outcome, try_it in zip(
                wanted, outcomes, self._tried(wanted), strict=True
            )
        ]

    def _tried(self, wanted: Sequence[Wanted]) -> list[bool]:
        """Not what was skipped by an earlier start of the run."""
        known = self._quarantine.reasons
        return [s.on_bad == "raise" or str(r.path) not in known for s, r, _ in wanted]

    def _read(self, wanted: Sequence[Wanted]) -> list[Media | Exception]:
        jobs = [(record, source.frames, rng, source.sound) for source, record, rng in wanted]
        if self._decoders is None:
            return [_attempt(load_media, *job) for job in jobs]
        futures = [self._decoders.submit(load_media, *job) for job in jobs]
        return [_attempt(future.result) for future in futures]

    def _settle(
        self, source: Asking, record: Record, outcome: Media | Exception | None
    ) -> Media | None:
        if isinstance(outcome, Exception):
            if source.on_bad == "raise":
                raise MediaError(
                    f"record {record.id} of {source.name} ({record.path}) cannot be read: "
                    f"{reason(outcome)}; or leave such records out with on_bad=skip"
                ) from outcome
            self._quarantine.add(source.name, record, reason(outcome))
            outcome = None
        self._quarantine.count(source, record, skipped=outcome is None)
        return outcome


def _attempt(function: Callable[..., Media], *args: Any) -> Media | Exception:
    try:
        return function(*args)
    except BAD as error:
        return error


def reason(error: Exception) -> str:
    """One line that says what is wrong with a file."""
    told = " ".join(str(error).split())
    if isinstance(error, MediaError | DecoderDied):
        return told
    return f"{type(error).__name__}: {told}"
