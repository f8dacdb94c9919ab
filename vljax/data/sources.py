"""One reader a family of annotation files, read as they are; each yields ``Record``s."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from vljax.data.captions import clean_caption
from vljax.data.examples import AnnotationError, Record
from vljax.data.video import CLIP_SUFFIXES, IMAGE_SUFFIXES, is_image

COCO = "COCO_train2014_"  # LLaVA's annotations leave this prefix of the file names out


def read_webvid(annotations: Path, media: Path, clean: bool = True) -> list[Record]:
    """Caption tables as WebVid's: columns videoid, name, page_dir; media/page_dir/videoid.mp4.

    ``annotations`` is a .csv or .tsv file, or a folder of them. Captions are cleaned as the
    original does unless ``clean`` is False.
    """
    files = [annotations]
    if annotations.is_dir():
        files = sorted(p for p in annotations.iterdir() if p.suffix in (".csv", ".tsv"))
    if not files:
        raise AnnotationError(f"{annotations}: got no .csv or .tsv file, expected at least one")
    records = []
    for path in files:
        with open_text(path) as file:
            table = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            missing = {"videoid", "name", "page_dir"} - set(table.fieldnames or ())
            if missing:
                raise AnnotationError(f"{path}: lacks the column {min(missing)}; add it")
            for row in table:
                name = row["name"].strip()
                records.append(
                    Record(
                        id=row["videoid"],
                        path=media / row["page_dir"] / f"{row['videoid']}.mp4",
                        kind="video",
                        caption=clean_caption(name) if clean else name,
                    )
                )
    return records


def read_filter_cap(annotations: Path, media: Path) -> list[Record]:
    """CC595k's and MiniGPT-4's filter_cap.json: media/{image_id}.jpg, captions as they are."""
    rows = read_json(annotations)
    rows = rows.get("annotations") if isinstance(rows, dict) else None
    return [
        Record(
            id=str(row["image_id"]),
            path=media / f"{row['image_id']}.jpg",
            kind="image",
            caption=row["caption"],
        )
        for row in rows_with(annotations, rows, ("image_id", "caption"))
    ]


def read_llava(
    annotations: Path,
    media: Path,
    prefix: str = COCO,
    tags: tuple[str, str] = ("<Image>", "</Image>"),
) -> list[Record]:
    """LLaVA instruct JSON: [{id, image or video, conversations: [{from, value}]}].

    ``prefix`` stands before every image's file name; ``tags`` around the media in the text.
    """
    records: list[Record] = []
    for row in rows_with(annotations, read_json(annotations), ("conversations",)):
        video = row.get("video")
        if video is None and "image" not in row:
            raise AnnotationError(f"{annotations}: a record has neither image nor video; add one")
        turns = tuple((t["from"], t["value"]) for t in row["conversations"])
        records.append(
            Record(
                id=str(row.get("id", len(records))),
                path=media / (video if video is not None else prefix + row["image"]),
                kind="image" if video is None else "video",
                turns=turns,
                tags=(tags[0], tags[1]),
            )
        )
    return records


def read_videochat(annotations: Path, media: Path) -> list[Record]:
    """VideoChat instruct JSON: [{video, QA: [{q, a}]}]; the clip precedes the first question."""
    records = []
    for row in rows_with(annotations, read_json(annotations), ("video", "QA")):
        turns = [t for qa in row["QA"] for t in (("human", qa["q"]), ("gpt", qa["a"]))]
        turns[0] = ("human", "<image> " + turns[0][1])
        records.append(
            Record(
                id=row["video"],
                path=media / row["video"],
                kind="video",
                turns=tuple(turns),
                tags=("<Video>", "</Video>"),
                frame_message=True,
            )
        )
    return records


def read_folder(annotations: Path, media: Path, clean: bool = False) -> list[Record]:
    """A plain folder of clips and images, searched through, and their captions.

    ``annotations`` is a folder (the same, as a rule) with a ``.txt`` named as each file; or a table
    of the columns file_name and text: .csv, .tsv, or .jsonl with an object a line.
    """
    found = _media_files(media)
    if annotations.is_dir():
        captions = _captions_beside(annotations, media, found)
    else:
        rows = rows_with(annotations, read_table(annotations), ("file_name", "text"))
        captions = {row["file_name"]: row["text"] for row in rows}
        for name in captions:
            if not (media / name).is_file():
                raise AnnotationError(f"{annotations}: names {name}, which {media} has not; add it")
    records = []
    for path in found:
        name = path.relative_to(media).as_posix()
        if name not in captions:
            raise AnnotationError(f"{annotations}: has no caption of {name}; add it")
        text = captions[name].strip()
        kind: Literal["image", "video"] = "image" if is_image(path) else "video"
        records.append(Record(name, path, kind, clean_caption(text) if clean else text))
    return records


def _media_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise AnnotationError(f"{folder}: not there; name the folder of clips and images")
    suffixes = {*IMAGE_SUFFIXES, *CLIP_SUFFIXES}
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.is_file())


def _captions_beside(folder: Path, media: Path, found: Sequence[Path]) -> dict[str, str]:
    """The text of the .txt of each file that has one. Raises AnnotationError for one of none."""
    used, captions = set(), {}
    for path in found:
        beside = folder / path.relative_to(media).with_suffix(".txt")
        if beside.is_file():
            used.add(beside)
            captions[path.relative_to(media).as_posix()] = beside.read_text(encoding="utf-8-sig")
    left = sorted(set(folder.rglob("*.txt")) - used)
    if left:
        raise AnnotationError(f"{left[0]}: has no clip or image of that name; add or delete one")
    return captions


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a .csv or .tsv file, or of a .jsonl file with an object a line."""
    with open_text(path) as file:
        if path.suffix != ".jsonl":
            return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
        try:
            return [json.loads(line) for line in file if line.strip()]
        except json.JSONDecodeError as error:
            raise AnnotationError(f"{path}: is not JSON a line ({error}); mend it") from error


READERS: dict[str, Callable[..., list[Record]]] = {
    "webvid": read_webvid,
    "filter_cap": read_filter_cap,
    "llava": read_llava,
    "videochat": read_videochat,
    "folder": read_folder,
}


def read(family: str, annotations: str | Path, media: str | Path, **options: Any) -> list[Record]:
    """The records of an annotation file. Raises AnnotationError, also when there are none."""
    if family not in READERS:
        raise AnnotationError(f"family: got {family!r}, expected one of {', '.join(READERS)}")
    try:
        records = READERS[family](Path(annotations), Path(media), **options)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise AnnotationError(
            f"{annotations}: a record is not as {family} has them ({error!r}); mend it"
        ) from error
    if not records:
        raise AnnotationError(f"{annotations}: got no records, expected at least one")
    return records


def open_text(path: Path) -> Any:
    """An annotation file, opened. Raises AnnotationError where there is none."""
    if not path.is_file():
        raise AnnotationError(f"{path}: not there; name the annotation file of the data set")
    return path.open(newline="", encoding="utf-8-sig")


def read_json(path: Path) -> Any:
    """Raises AnnotationError for what is none."""
    with open_text(path) as file:
        try:
            return json.load(file)
        except json.JSONDecodeError as error:
            raise AnnotationError(f"{path}: is not JSON ({error}); fetch it anew") from error


def rows_with(path: Path, rows: Any, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The records, each of which has these keys. Raises AnnotationError where one has not."""
    if not isinstance(rows, list):
        raise AnnotationError(f"{path}: got {type(rows).__name__}, expected a list of records")
    for i, row in enumerate(rows):
        for key in keys:
            if not isinstance(row, dict) or key not in row:
                raise AnnotationError(f"{path}: record {i} lacks {key!r}; add it")
    return rows
