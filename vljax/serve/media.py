"""Files that clients send: decoded in processes of their own, and kept decoded for a while."""

import asyncio
import collections
import dataclasses
import hashlib
import secrets
import threading
import time
import unicodedata

import numpy as np

from vljax.data.decode_worker import DecoderDied, Decoders
from vljax.data.video import MediaError
from vljax.generate.media import FRAMES, Media
from vljax.models.sizes import VideoLlamaSize
from vljax.serve.limits import Limits, Refusal, wrong
from vljax.serve.metrics import Metrics
from vljax.serve.reading import Spec, TooLarge, Upload, read_upload


@dataclasses.dataclass(frozen=True)
class Kept:
    """One decoded file under the name that it was given here. ``media`` is what questions use."""

    id: str
    name: str
    bytes: int
    created: int
    upload: Upload

    def as_file(self) -> dict[str, object]:
        """OpenAI's file object, and what the page shows of it."""
        found = self.upload
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created,
            "filename": self.name,
            "purpose": "user_data",
            "status": "processed",
            "media": {
                "kind": found.kind,
                "seconds": round(found.seconds, 2),
                "frames": 0 if found.frames is None else len(found.frames),
                "at": found.at,
                "sounds": 0 if found.mel is None else len(found.mel),
            },
        }


class Files:
    """Decodes files and keeps what came of them, up to ``kept_bytes``, the latest used longest."""

    def __init__(self, size: VideoLlamaSize, limits: Limits, metrics: Metrics):
        self.spec = Spec(
            min(FRAMES, size.max_frames),
            size.vit.image,
            size.audio,
            limits.seconds,
            limits.pixels,
        )
        self.limits, self._metrics = limits, metrics
        self._decoders = Decoders(limits.decoders, limits.decoding, limits.decoder_memory)
        self._room = asyncio.Semaphore(limits.queue)
        self._kept: collections.OrderedDict[str, Kept] = collections.OrderedDict()
        self._lock = threading.Lock()

    def pids(self) -> list[int]:
        return self._decoders.pids()

    def close(self) -> None:
        self._decoders.close()

    async def add(self, name: str, data: bytes, id: str = "") -> Kept:
        """Decodes a file and keeps it. Raises Refusal with a sentence where that can't be done."""
        name = clean(name)
        if len(data) > self.limits.file_bytes:
            raise Refusal(
                413,
                f"{name} has {len(data):,} bytes, expected at most {self.limits.file_bytes:,}: "
                "send a smaller file",
                "file_too_large",
            )
        if self._room.locked():
            raise Refusal(
                429, "too many files are being decoded: try again in a second", "decoders_busy"
            )
        self._metrics.file_bytes.inc(len(data))
        async with self._room:
            with self._metrics.decoding.time():
                upload = await self._decode(name, data)
        made = Kept(id or _fresh_id(), name, len(data), int(time.time()), upload)
        self._keep(made)
        return made

    async def inline(self, name: str, data: bytes) -> Kept:
        """As ``add``; what was sent in a request before is not decoded again."""
        digest = hashlib.sha256(data).hexdigest()
        found = self._find(digest)
        return found if found else await self.add(name, data, digest)

    async def _decode(self, name: str, data: bytes) -> Upload:
        try:
            job = self._decoders.submit(read_upload, name, data, self.spec)
            return await asyncio.wrap_future(job)
        except TooLarge as error:
            raise Refusal(413, str(error), "file_too_large") from error
        except MediaError as error:
            raise Refusal(422, str(error), "unreadable_file") from error
        except (DecoderDied, ValueError, OSError, MemoryError) as error:
            told = " ".join(str(error).split()) or type(error).__name__
            raise Refusal(422, f"{name} cannot be decoded: {told}", "unreadable_file") from error

    def get(self, id: str) -> Kept:
        found = self._find(id) if id.startswith("file-") else None
        if found is None:
            raise Refusal(
                404, f"file {id[:80]!r} is not here (any more): upload it again", "file_not_found"
            )
        return found

    def remove(self, id: str) -> None:
        self.get(id)
        with self._lock:
            self._kept.pop(id, None)

    def _find(self, id: str) -> Kept | None:
        with self._lock:
            if id in self._kept:
                self._kept.move_to_end(id)
            return self._kept.get(id)

    def _keep(self, made: Kept) -> None:
        with self._lock:
            self._kept[made.id] = made
            total = sum(k.upload.nbytes for k in self._kept.values())
            while total > self.limits.kept_bytes and len(self._kept) > 1:
                total -= self._kept.popitem(last=False)[1].upload.nbytes


def _fresh_id() -> str:
    return f"file-{secrets.token_urlsafe(18)}"


def clean(name: str) -> str:
    """A client's file name for messages: its last part, printable, short; no path is made of it."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    shown = "".join(c for c in last if unicodedata.category(c)[0] != "C")[:80].strip()
    return shown if shown.strip(".") else "the file"


def together(parts: list[tuple[str, Kept]], look: bool, listen: bool) -> Media | None:
    """What questions about these parts are given: one picture at most, one sound at most.

    ``parts`` are (type of the part, file); a file's own sound counts, unless it is not listened to.
    """
    frames: np.ndarray | None = None
    mel: np.ndarray | None = None
    message = ""
    for kind, kept in parts:
        upload = kept.upload
        _require_kind(kind, kept)
        if look and upload.frames is not None and kind != "input_audio":
            if frames is not None:
                raise wrong("messages: got two pictures or clips, expected one a conversation")
            frames, message = upload.frames, upload.message
        if listen and upload.mel is not None:
            if mel is not None:
                raise wrong(
                    "messages: got two sounds (a clip's own counts), expected one a conversation"
                )
            mel = upload.mel
    if not parts:
        return None
    if frames is None and mel is None:
        raise wrong(
            "messages: nothing is left of the media: leave `look` and `listen` on, or send a file "
            "that has what is to be looked at or listened to"
        )
    return Media(frames, mel, message)


EXPECTED = {"image_url": ("image",), "video_url": ("video",)}


def _require_kind(kind: str, kept: Kept) -> None:
    found = kept.upload.kind
    if found not in EXPECTED.get(kind, (found,)):
        article = "an" if found[0] in "aeiou" else "a"
        raise wrong(f"{kind}: got {article} {found}, {kept.name}: send it as {_PART[found]}", kind)
    if kind == "input_audio" and kept.upload.mel is None:
        raise wrong(f"input_audio: {kept.name} has no sound of at least 25 ms: use another", kind)


_PART = {"image": "image_url", "video": "video_url", "audio": "input_audio"}
