"""Test sets in the files that people have: what is asked, and what is named as wrong."""

import json
from pathlib import Path

import pytest

from vljax.data.examples import AnnotationError
from vljax.evaluate.sets import (
    Asking,
    Folder,
    Item,
    common_answers,
    read_candidates,
    read_captions,
    read_choices,
    read_qa,
)
from vljax.generate.rows import BadRow


def write(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@pytest.fixture
def media(tmp_path) -> Folder:
    root = tmp_path / "media"
    for name in ("a.mp4", "a.webm", "v_B1-x.mkv", "deep/c.avi", "deep/a.mp4", "d.e.mov", "x.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return Folder(root)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a", "a.mp4"),  # before webm, and before what lies deeper
        ("a.webm", "a.webm"),
        ("a.avi", "a.mp4"),  # another suffix than the annotations have
        ("B1-x", "v_B1-x.mkv"),
        ("v_B1-x", "v_B1-x.mkv"),
        ("c", "deep/c.avi"),
        ("deep/a", "deep/a.mp4"),
        ("d.e", "d.e.mov"),
        ("x", "x"),  # no clip: the name that is told
    ],
)
def test_files_are_found_by_name(media, name, found):
    assert media.find(name) == media.root / found


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(AnnotationError, match="name the folder of the clips"):
        Folder(tmp_path / "none")


def test_questions_and_answers(tmp_path, media):
    asked = [
        {"question": "what is it", "video_name": "a", "question_id": "a_1"},
        {"question": "how many", "video_name": "B1-x", "question_id": 2},
        {"question": "who", "video_name": "a", "question_id": "lost"},
        {"question": "where", "video_name": "a", "question_id": "blank"},
        {"question": "why", "video_name": "a", "question_id": "a_1"},
    ]
    right = [
        {"answer": "dog", "question_id": "a_1", "type": 3},
        {"answer": 2, "question_id": 2},
        {"answer": " ", "question_id": "blank"},
        {"answer": "nobody asks", "question_id": "over"},
    ]
    paths = write(tmp_path / "q.json", asked), write(tmp_path / "test_a.json", right)
    found = read_qa(*paths, media, Asking(wording="{question}?", senses=(True, False)))
    dog, two, *bad = found.rows
    assert isinstance(dog, Item) and isinstance(two, Item)
    assert (dog.row.question, dog.asked, dog.answers, dog.kind) == (
        "what is it",
        "what is it?",
        ("dog",),
        "3",
    )
    assert (dog.row.look, dog.row.listen) == (media.root / "a.mp4", None)
    assert (two.row.id, two.answers, two.video, two.kind) == (2, ("2",), "B1-x", "")
    assert bad == [
        BadRow("lost", "'lost' has no answer in test_a.json"),
        BadRow("blank", "'blank' has no answer in test_a.json"),
        BadRow("record 4", "question_id 'a_1' is another question's, too"),
    ]
    assert found.unasked == ["over"]


def test_a_question_that_is_a_number(tmp_path, media):
    asked = [{"question": 7, "video_name": "a", "question_id": 1}]
    paths = (
        write(tmp_path / "q.json", asked),
        write(tmp_path / "a.json", [{"answer": 7} | asked[0]]),
    )
    (item,) = read_qa(*paths, media, Asking()).rows
    assert (item.asked, item.row.question) == ("7", "7")


def test_an_answer_that_is_there_twice(tmp_path, media):
    right = [{"answer": "dog", "question_id": 1}, {"answer": "cat", "question_id": 1}]
    paths = write(tmp_path / "q.json", []), write(tmp_path / "a.json", right)
    with pytest.raises(AnnotationError, match="record 1: question_id 1 is there twice"):
        read_qa(*paths, media, Asking())


CHOICE = {"video": "a", "question": "what", "candidates": ["dog", "cat"], "answer": "cat"}


def test_choices(tmp_path, media):
    cut = CHOICE | {"start": 1.5, "end": 4}
    one = write(tmp_path / "action.json", [CHOICE, cut, CHOICE | {"end": 2}])
    found = read_choices([one], media, Asking(options=True))
    assert [x.row.id for x in found.rows] == [0, 1, 2]
    assert [x.row.span for x in found.rows] == [None, (1.5, 4.0), (0.0, 2.0)]
    assert found.rows[0].asked == "what\n(A) dog\n(B) cat\nAnswer with one of these."
    assert found.rows[0].answers == ("cat",)
    two = write(tmp_path / "object.json", [CHOICE])
    several = read_choices([one, two], media, Asking()).rows
    assert [(x.row.id, x.kind) for x in several][2:] == [
        ("action/2", "action"),
        ("object/0", "object"),
    ]
    assert several[0].asked == "what"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": "cow"}, "answer: got 'cow', expected one of"),
        ({"candidates": ["cat"]}, "candidates: got"),
        ({"candidates": 5}, "candidates: got 5"),
        ({"candidates": "cat"}, "candidates: got 'cat'"),
        ({"candidates": ["cat", "cat"]}, "no two alike"),
        ({"start": 3, "end": 2}, "start and end: got 3 and 2"),
        ({"start": 0, "end": 0}, "start and end: got 0 and 0"),
        ({"start": "soon"}, "start and end: got 'soon' and None"),
        ({"question": ""}, "has no question"),
    ],
)
def test_choices_that_are_none(tmp_path, media, change, said):
    path = write(tmp_path / "list.json", [CHOICE, CHOICE | change])
    good, bad = read_choices([path], media, Asking()).rows
    assert isinstance(good, Item) and isinstance(bad, BadRow)
    assert bad.error.startswith("list.json, record 1: ") and said in bad.error


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", 'file_name,text\na.mp4,"a dog, running"\ndeep/c.avi,\na.mp4,a cat\n'),
        ("c.tsv", "file_name\ttext\na.mp4\ta dog, running\ndeep/c.avi\t\na.mp4\ta cat\n"),
        (
            "c.jsonl",
            '{"file_name": "a.mp4", "text": ["a dog, running", "a cat"]}\n'
            '{"file_name": "deep/c.avi", "text": ""}\n',
        ),
    ],
)
def test_captions(tmp_path, media, name, text):
    good, bad = read_captions(write(tmp_path / name, text), media, "What?", Asking()).rows
    assert isinstance(good, Item)
    assert good.answers == ("a dog, running", "a cat")
    assert (good.row.look, good.asked) == (media.root / "a.mp4", "What?")
    assert bad == BadRow("deep/c.avi", f"'deep/c.avi' has no caption in {name}")


def test_captions_as_webvid_has_them(tmp_path, media):
    path = write(tmp_path / "w.csv", "videoid,name,page_dir\nc,a dog,deep\n")
    (item,) = read_captions(path, media, "What?", Asking()).rows
    assert (item.row.look, item.answers) == (media.root / "deep/c.avi", ("a dog",))
    path = write(tmp_path / "w.jsonl", {"videoid": 7, "name": "a dog", "page_dir": 1})
    (item,) = read_captions(path, media, "What?", Asking()).rows
    assert item.row.id == "1/7"
    path = write(tmp_path / "w.csv", "videoid,name,page_dir\nc,a dog,deep\nc,a dog\n")
    with pytest.raises(AnnotationError, match=r"w\.csv: record 1: page_dir: got None"):
        read_captions(path, media, "What?", Asking())


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "is not JSON"), ('{"a": 1}', "expected a list"), ("[3]", "record 0 lacks 'video'")],
)
def test_files_that_are_something_else(tmp_path, media, text, said):
    with pytest.raises(AnnotationError, match=said):
        read_choices([write(tmp_path / "x.json", text)], media, Asking())


def test_candidates(tmp_path, media):
    assert read_candidates(write(tmp_path / "c.txt", "dog\n\n cat \ndog\n")) == ["dog", "cat"]
    assert read_candidates(write(tmp_path / "c.json", ["dog", 2])) == ["dog", "2"]
    with pytest.raises(AnnotationError, match="got 1 candidates"):
        read_candidates(write(tmp_path / "c.txt", "dog\n"))
    with pytest.raises(AnnotationError, match="got 5, expected a list of answers"):
        read_candidates(write(tmp_path / "c.json", 5))
    items = [Asking().item(i, "?", "a", Path("a"), [x]) for i, x in enumerate("bacaab")]
    assert common_answers(items, 2) == ["a", "b"]


def test_a_wording_holds_the_question():
    with pytest.raises(ValueError, match="within it"):
        Asking(wording="What?")
