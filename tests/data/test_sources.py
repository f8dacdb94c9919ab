"""Readers of annotation files, each from a tiny literal file, and what they say of bad ones."""

import json
from pathlib import Path

import pytest

from vljax.data.examples import AnnotationError, Record
from vljax.data.sources import read

MEDIA = Path("media")


@pytest.fixture
def write_json(tmp_path):
    def write(data) -> Path:
        path = tmp_path / "notes.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return path

    return write


@pytest.mark.parametrize(("suffix", "comma"), [(".csv", ","), (".tsv", "\t")])
def test_webvid(tmp_path, suffix, comma):
    path = tmp_path / f"notes{suffix}"
    rows = [("page_dir", "name", "videoid", "more"), ("00001", " A Dog - Runs! ", "007", "x")]
    path.write_text("".join(comma.join(r) + "\n" for r in rows))
    assert read("webvid", path, MEDIA) == [
        Record("007", MEDIA / "00001" / "007.mp4", "video", caption="a dog - runs")
    ]
    assert read("webvid", path, MEDIA, clean=False)[0].caption == "A Dog - Runs!"


def test_webvid_s_quoted_captions(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text('videoid,name,page_dir\n1,"red, then green",p\n')
    assert read("webvid", path, MEDIA, clean=False)[0].caption == "red, then green"


def test_webvid_reads_a_folder_in_order(tmp_path):
    (tmp_path / "b.tsv").write_text("videoid\tname\tpage_dir\n2\ttwo\tp\n")
    (tmp_path / "a.csv").write_text("videoid,name,page_dir\n1,one,p\n")
    (tmp_path / "notes.txt").write_text("nothing of ours")
    assert [r.caption for r in read("webvid", tmp_path, MEDIA)] == ["one", "two"]


def test_filter_cap(write_json):
    path = write_json({"annotations": [{"image_id": "0007", "caption": "A Dog - Runs!"}]})
    assert read("filter_cap", path, MEDIA) == [
        Record("0007", MEDIA / "0007.jpg", "image", caption="A Dog - Runs!")
    ]


TALK = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a dog."}]
TURNS = (("human", "<image>\nwhat?"), ("gpt", "a dog."))


def test_llava(write_json):
    path = write_json([{"id": 7, "image": "1.jpg", "conversations": TALK}])
    assert read("llava", path, MEDIA) == [
        Record("7", MEDIA / "COCO_train2014_1.jpg", "image", turns=TURNS)
    ]
    assert read("llava", path, MEDIA, prefix="")[0].path == MEDIA / "1.jpg"
    assert read("llava", path, MEDIA, tags=["", ""])[0].tags == ("", "")


def test_llava_s_format_with_clips(write_json):
    path = write_json([{"video": "p/1.mp4", "conversations": TALK}])
    assert read("llava", path, MEDIA) == [Record("0", MEDIA / "p/1.mp4", "video", turns=TURNS)]


def test_videochat(write_json):
    qa = [{"q": "what?", "a": "a dog."}, {"q": "who?", "a": "it.", "more": 1}]
    path = write_json([{"video": "p/1.mp4", "QA": qa}])
    turns = (("human", "<image> what?"), ("gpt", "a dog."), ("human", "who?"), ("gpt", "it."))
    assert read("videochat", path, MEDIA) == [
        Record(
            "p/1.mp4",
            MEDIA / "p/1.mp4",
            "video",
            turns=turns,
            tags=("<Video>", "</Video>"),
            frame_message=True,
        )
    ]


@pytest.mark.parametrize(
    ("family", "data", "sentence"),
    [
        ("filter_cap", "{", r"notes.json: is not JSON \(.*\); fetch it anew"),
        ("filter_cap", [], "notes.json: got NoneType, expected a list of records"),
        ("filter_cap", {"annotations": []}, "notes.json: got no records, expected at least one"),
        (
            "filter_cap",
            {"annotations": [{"image_id": 1, "caption": "a"}, {"image_id": 2}]},
            "notes.json: record 1 lacks 'caption'; add it",
        ),
        ("llava", {}, "notes.json: got dict, expected a list of records"),
        ("llava", [{"id": 1}], "notes.json: record 0 lacks 'conversations'; add it"),
        (
            "llava",
            [{"conversations": TALK}],
            "notes.json: a record has neither image nor video; add one",
        ),
        ("videochat", [{"video": "a"}], "notes.json: record 0 lacks 'QA'; add it"),
        ("videochat", [{"QA": []}], "notes.json: record 0 lacks 'video'; add it"),
        ("webvids", [], "family: got 'webvids', expected one of webvid, filter_cap, llava, video"),
    ],
)
def test_a_bad_file_is_told_in_a_sentence(write_json, family, data, sentence):
    with pytest.raises(AnnotationError, match=sentence):
        read(family, write_json(data), MEDIA)


@pytest.mark.parametrize("family", ["webvid", "filter_cap", "llava", "videochat"])
def test_a_missing_file_is_named(tmp_path, family):
    with pytest.raises(AnnotationError, match=r"nowhere.json: not there; name the annotation file"):
        read(family, tmp_path / "nowhere.json", MEDIA)


def test_webvid_names_a_missing_column(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text("videoid,page_dir\n1,p\n")
    with pytest.raises(AnnotationError, match=r"notes.csv: lacks the column name; add it"):
        read("webvid", path, MEDIA)


def test_webvid_wants_tables_in_a_folder(tmp_path):
    with pytest.raises(AnnotationError, match=r"got no .csv or .tsv file, expected at least one"):
        read("webvid", tmp_path, MEDIA)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.mp4", "a.JPG", "deep/c.webm"):
        (tmp_path / name).touch()
    return tmp_path


def test_folder_with_texts_beside(folder):
    for name, words in (("b", "A Dog!\n"), ("a", " two "), ("deep/c", "three")):
        (folder / f"{name}.txt").write_text(words)
    assert read("folder", folder, folder) == [
        Record("a.JPG", folder / "a.JPG", "image", caption="two"),
        Record("b.mp4", folder / "b.mp4", "video", caption="A Dog!"),
        Record("deep/c.webm", folder / "deep/c.webm", "video", caption="three"),
    ]
    assert read("folder", folder, folder, clean=True)[1].caption == "a dog"


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_folder_with_a_table(folder, tmp_path_factory, suffix):
    path = tmp_path_factory.mktemp("notes") / f"metadata{suffix}"
    rows = {"b.mp4": "red, then green", "a.JPG": "two", "deep/c.webm": "three"}
    if suffix == ".jsonl":
        lines = [json.dumps({"file_name": n, "text": t}) for n, t in rows.items()]
    else:
        comma = "," if suffix == ".csv" else "\t"
        lines = [f'"{n}"{comma}"{t}"' for n, t in (("file_name", "text"), *rows.items())]
    path.write_text("\n".join(lines) + "\n")
    assert {r.id: r.caption for r in read("folder", path, folder)} == rows
    path.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(AnnotationError, match=r"has no caption of deep/c.webm; add it"):
        read("folder", path, folder)
    path.write_text("\n".join([*lines, lines[-1].replace("deep/c", "d")]) + "\n")
    with pytest.raises(AnnotationError, match=r"names d.webm, which .* has not"):
        read("folder", path, folder)


def test_folders_that_lack_something(folder, tmp_path):
    (folder / "a.txt").write_text("one")
    with pytest.raises(AnnotationError, match=r"has no caption of b.mp4; add it"):
        read("folder", folder, folder)
    (folder / "z.txt").write_text("what is this?")
    with pytest.raises(AnnotationError, match=r"z.txt: has no clip or image of that name"):
        read("folder", folder, folder)
    with pytest.raises(AnnotationError, match="none: not there; name the folder"):
        read("folder", folder, tmp_path / "none")
    (tmp_path / "new").mkdir()
    with pytest.raises(AnnotationError, match="got no records"):
        read("folder", tmp_path / "new", tmp_path / "new")
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(AnnotationError, match="is not JSON a line"):
        read("folder", tmp_path / "bad.jsonl", folder)
