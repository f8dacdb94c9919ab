"""Views of records: what of a file is encoded, and where to find what was made of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vljax.data.audio import AudioSpec, mel_clips, read_audio
from vljax.data.clips import FrameSpec, load_frames
from vljax.data.examples import MediaFile, Record
from vljax.data.features import (
    PADDING,
    Features,
    FeaturesError,
    Rows,
    Stamp,
    Store,
    file_stamp,
    media_hash,
)
from vljax.progress import Progress


@dataclasses.dataclass(frozen=True)
class Item:
    """Something to encode: how one file is looked at or listened to; no file: a black frame."""

    record: Record | None
    spec: FrameSpec | AudioSpec

    @property
    def view(self) -> str:
        """Its name in a store: all that decides which pixels or samples are taken."""
        if isinstance(self.spec, AudioSpec):
            s = self.spec
            mel = f"{s.mel_bins} x {s.mel_frames} mel at {s.rate} Hz"
            return f"{s.clips} sounds of {float(s.clip_seconds)} s, {mel}"
        if self.record is None or self.record.kind == "image":
            return f"image, {self.spec.size} px"
        return f"{self.spec.count} frames, {self.spec.policy}, {self.spec.size} px"

    @property
    def path(self) -> MediaFile | None:
        return None if self.record is None else self.record.path

    def known(self, store: Store) -> bool:
        """Whether the store has it, as far as can be told without reading the file."""
        media = PADDING if self.record is None else store.noted(self.record.path)
        return media is not None and (media, self.view) in store.rows


@dataclasses.dataclass(frozen=True)
class Loaded:
    """An item as towers take it: frames [T, size, size, 3] or mel [S, bins, frames]."""

    media: str
    stamp: Stamp
    array: np.ndarray
    message: str = ""


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """What is known of an item that cannot be read: of its bytes, if they are there, and why."""

    media: str | None
    stamp: Stamp
    reason: str


def identify(path: MediaFile) -> tuple[str, Stamp]:
    return media_hash(path), file_stamp(path)


def load(item: Item) -> Loaded:
    """Raises MediaError. Where there is no sound, the array has length 0."""
    spec, record = item.spec, item.record
    if record is None:
        assert isinstance(spec, FrameSpec)
        return Loaded(PADDING, (0, 0), np.zeros((1, spec.size, spec.size, 3), np.uint8))
    if isinstance(spec, FrameSpec):
        array, message = load_frames(record, spec, np.random.default_rng(0))
    else:
        track, message = read_audio(record.path), ""
        mel = None if track is None else mel_clips(*track, spec)
        none = np.zeros((0, spec.mel_bins, spec.mel_frames), np.float32)
        array = none if mel is None else mel
    return Loaded(media_hash(record.path), file_stamp(record.path), array, message)


def require_exact(specs: Mapping[str, FrameSpec]) -> None:
    """Raises FeaturesError unless each source shows a file in one way only; it names the flags."""
    flags = []
    for name, spec in specs.items():
        flags += [f"--config.sources.{name}.augment=False"] * spec.augment
        flags += [f"--config.sources.{name}.policy=uniform"] * (spec.policy != "uniform")
    if flags:
        raise FeaturesError(
            "features: got sources with random crops or random frames, expected ones that show a "
            f"file in one way only; encode and train with {' '.join(flags)}"
        )


def frame_items(sources: Sequence[tuple[Sequence[Record], FrameSpec]]) -> list[Item]:
    """Every file once in each way that it is looked at, and the black frame of each size."""
    items = {("", str(spec.size)): Item(None, spec) for _, spec in sources}
    for records, spec in sources:
        for record in records:
            item = Item(record, spec)
            items.setdefault((str(record.path), item.view), item)
    return list(items.values())


def sound_items(sources: Sequence[tuple[Sequence[Record], FrameSpec]], spec: AudioSpec) -> list:
    """Every file that is not a still image, once."""
    clips = {r.path: r for records, _ in sources for r in records if r.kind != "image"}
    return [Item(record, spec) for record in clips.values()]


def find_features(
    folder: Path,
    encoders: Mapping[str, str],
    source: str,
    records: Sequence[Record],
    spec: FrameSpec,
    skip: bool = False,
) -> Features:
    """All of a source's features, by output, each made by the encoder of that hash.

    Raises FeaturesError when the store was made by another encoder, and when any record's file is
    missing from it, was changed, or was looked at in another way. With ``skip`` a file that could
    not be read, or is not there, is no error.
    """
    require_exact({source: spec})
    stores = {name: Store(folder / name) for name in encoders}
    rows, padding = {}, {}
    unreadable: dict[int, str] = {}
    for name, store in stores.items():
        store.require(encoders[name])
        rows[name], reasons = _find_all(store, source, records, spec, skip)
        unreadable |= reasons
        black = store.rows.get((PADDING, Item(None, spec).view))
        if black is None:
            raise FeaturesError(
                f"{store.folder}: lacks the black frame; run vljax encode to its end"
            )
        padding[name] = np.array(store.read(black)[0])
    return Features(stores, rows, padding, unreadable)


def _find_all(
    store: Store, source: str, records: Sequence[Record], spec: FrameSpec, skip: bool
) -> tuple[list[Rows], dict[int, str]]:
    """Where each record's rows lie, and with ``skip`` the reasons of those that have none."""
    views = [Item(record, spec).view for record in records]
    found: list[Rows | None] = []
    reasons: dict[int, str] = {}
    progress = Progress(f"{source}: files checked", len(records) + 1)  # no line if it is quick
    for i, (record, view) in enumerate(zip(records, views, strict=True)):
        rows = store.find(record.path, view)
        if rows is None and skip and (reason := store.unreadable(record.path, view)):
            rows, reasons[i] = Rows("", 0, 0, ""), reason
        found.append(rows)
        progress.show(i + 1)
    missing = [i for i, rows in enumerate(found) if rows is None]
    if missing:
        first = records[missing[0]].path
        raise FeaturesError(
            f"source {source}: {store.folder} lacks {len(missing)} of {len(records)} records' "
            f"media, the first {first}: {store.why_not(first, views[missing[0]])}; run vljax "
            "encode with this config to add what is missing"
        )
    return [rows for rows in found if rows is not None], reasons
