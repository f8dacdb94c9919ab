"""The tiny world: real files, held-out combinations, right answers, batches without files."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from vljax.data.audio import AudioSpec, read_audio
from vljax.data.sources import read
from vljax.data.text import IGNORE
from vljax.data.tokenizer import Tokenizer
from vljax.data.world import files, language, pretrain, render, scenes, sound
from vljax.data.world.scenes import COLOURS, OBJECTS, Scene, Thing, random_scene
from vljax.data.world.sources import world_source

SIZES = {"train": 7, "val": 1, "test": 1}
SPEC = AudioSpec(clips=8, clip_seconds=1.0, mel_bins=32, mel_frames=96)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> list[Path]:
    """Two worlds of one seed, and one of another."""
    roots = [tmp_path_factory.mktemp(f"world{i}") for i in range(3)]
    for root, seed in zip(roots, (3, 3, 4), strict=True):
        files.make_world(root, 8, seed)
    return roots


@pytest.fixture(scope="module")
def tokenizer(worlds) -> Tokenizer:
    return Tokenizer(worlds[0] / "tokenizer.model")


def scene_rows(root: Path, split: str) -> list[dict]:
    return json.loads((root / split / "scenes.json").read_text())


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        return np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)])


def test_layout(worlds):
    root = worlds[0]
    assert json.loads((root / "world.json").read_text()) == {"seed": 3, "clips": SIZES}
    assert sorted(p.name for p in root.iterdir()) == [
        "test",
        "tokenizer.model",
        "train",
        "val",
        "world.json",
    ]
    for split, n in SIZES.items():
        assert sorted(p.name for p in (root / split).iterdir()) == [
            "cc595k",
            "coco",
            "hear",
            "hear_instruct.json",
            "llava_instruct.json",
            "scenes.json",
            "see_instruct.json",
            "videochat.json",
            "videos",
            "webvid",
        ]
        clips = sorted(p.relative_to(root / split) for p in (root / split).rglob("*.mp4"))
        assert clips == [Path(f"videos/00000/{i:07d}.mp4") for i in range(n)]


@pytest.mark.parametrize("split", SIZES)
def test_clips_are_what_scenes_say(worlds, split):
    for i, row in enumerate(scene_rows(worlds[0], split)):
        path = files.clip_path(worlds[0] / split, i)
        frames = decoded(path)
        assert 16 <= len(frames) <= 32
        assert frames.shape == (round(row["seconds"] * render.RATE), render.SIDE, render.SIDE, 3)
        with av.open(str(path)) as file:
            assert len(file.streams.audio) == (row["sounds"] is not None)
        track = read_audio(path)
        if row["sounds"] is None:
            assert track is None
            continue
        samples, rate = track
        assert (rate, len(samples)) == (sound.RATE, 1)
        assert abs(samples.shape[1] / rate - row["seconds"]) < 0.2
        assert (np.abs(samples).max() > 0.05) == bool(row["sounds"])


def test_clips_without_a_track_can_be_drawn():
    rng = np.random.default_rng(0)
    heard = Counter(type(random_scene(rng).sounds) for _ in range(500))
    assert 15 < heard[type(None)] < 80


def test_a_clip_without_a_track_has_no_audio_stream(tmp_path):
    scene = Scene("empty", (), None, 2.0, 0.5, 0)
    files.write_clip(tmp_path / "a.mp4", render.frames(scene), sound.waveform(scene))
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert not file.streams.audio


@pytest.mark.parametrize("split", SIZES)
def test_the_real_readers_read_the_annotations(worlds, split):
    folder = worlds[0] / split
    rows = scene_rows(worlds[0], split)
    seen = read("webvid", folder / "webvid" / "captions.csv", folder / "videos", clean=False)
    talks = read("videochat", folder / "videochat.json", folder / "videos")
    assert len(seen) == len(talks) == len(rows)
    records = [*seen, *talks]
    # A split of one clip may hold nothing that can be heard, and one image has no caption.
    if any(row["kind"] != "pair" for row in rows):
        records += read("webvid", folder / "hear" / "captions.csv", folder / "videos")
        records += read("llava", folder / "hear_instruct.json", folder / "videos")
    images = read("llava", folder / "llava_instruct.json", folder / "coco")
    if len(rows) > 1:
        images += read("filter_cap", folder / "cc595k" / "filter_cap.json", folder / "cc595k/image")
    assert len(images) == len(rows)
    assert {r.kind for r in images} == {"image"}
    assert all(r.path.is_file() for r in [*records, *images])


def test_captions_are_the_scenes(worlds):
    folder = worlds[0] / "train"
    table = read("webvid", folder / "webvid" / "captions.csv", folder / "videos", clean=False)
    for record, row in zip(table, scene_rows(worlds[0], "train"), strict=True):
        things = tuple(Thing(**t) for t in row["things"])
        scene = Scene(**row | {"things": things})
        assert record.caption == language.answer("caption", scene, None)


def digests(root: Path, suffixes: tuple[str, ...]) -> dict[str, str]:
    paths = [p for p in root.rglob("*") if p.suffix in suffixes]
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths
    }


def test_a_seed_says_everything(worlds):
    notes = (".json", ".csv", ".jpg", ".model")
    first, again, other = (digests(root, notes) for root in worlds)
    assert first == again
    assert not {n for n in first if n.startswith("train/") and first[n] == other.get(n)}
    for path in worlds[0].rglob("*.mp4"):
        twin = worlds[1] / path.relative_to(worlds[0])
        np.testing.assert_array_equal(decoded(path), decoded(twin))


@pytest.mark.parametrize("word", [*COLOURS, *OBJECTS, "there"])
def test_what_an_answer_begins_with_is_one_token(tokenizer, word):
    """Spelt in pieces, "Purple" was mostly answered as "P" and what a "p" led to elsewhere."""
    text = f"{word.capitalize()}." if word in COLOURS else f"A {word}."
    text = "There is no picture." if word == "there" else text
    pieces = tokenizer.encode(text)
    assert len(pieces) == len(text.rstrip(".").split()) + 1
    assert not any(tokenizer.pieces.model.is_byte(i) for i in pieces)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="not empty; name a new folder"):
        files.make_world(tmp_path, 3, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_held_out_combinations():
    assert len(scenes.HELD_OUT_PAIRS) == 6
    assert {o for o, _ in scenes.HELD_OUT_PAIRS} == set(OBJECTS)
    assert {c for _, c in scenes.HELD_OUT_PAIRS} == set(COLOURS)
    assert not set(scenes.TRAIN_TRIPLES) & set(scenes.TEST_TRIPLES)
    assert len(scenes.TRAIN_TRIPLES) + len(scenes.TEST_TRIPLES) == 6 * 6 * 8
    assert not scenes.HELD_OUT_TRIPLES - set(scenes.TEST_TRIPLES)
    left = {axis: {t[i] for t in scenes.TRAIN_TRIPLES} for i, axis in enumerate("ocm")}
    assert {axis: len(v) for axis, v in left.items()} == {"o": 6, "c": 6, "m": 8}


def test_training_never_shows_what_is_held_out():
    rng = np.random.default_rng(1)
    drawn = [random_scene(rng) for _ in range(4000)]
    pairs = {(t.object, t.colour) for s in drawn for t in s.things}
    assert pairs == set(scenes.SEEN_PAIRS)
    alone = [s.things[0] for s in drawn if s.kind == "one"]
    triples = {(t.object, t.colour, t.motion) for t in alone}
    assert not triples & scenes.HELD_OUT_TRIPLES
    assert triples == set(scenes.TRAIN_TRIPLES)


@pytest.mark.parametrize("split", ["val", "test"])
def test_exams_show_single_things_that_are_held_out(split):
    rng = np.random.default_rng(2)
    things = [random_scene(rng, split, "one").things[0] for _ in range(4000)]
    triples = {(t.object, t.colour, t.motion) for t in things}
    assert triples == set(scenes.TEST_TRIPLES)
    rest = [random_scene(rng, split, kind) for kind in ("pair", "cut") for _ in range(500)]
    assert not {(t.object, t.colour) for s in rest for t in s.things} & scenes.HELD_OUT_PAIRS


def test_kinds_of_scenes():
    rng = np.random.default_rng(3)
    drawn = [random_scene(rng) for _ in range(2000)]
    assert {(s.kind, len(s.things)) for s in drawn} == {
        ("one", 1),
        ("pair", 2),
        ("cut", 2),
        ("empty", 0),
    }
    assert all(len({t.object for t in s.things}) == len(s.things) for s in drawn)
    alone = [s for s in drawn if s.kind == "one" and s.sounds and len(s.sounds) == 1]
    fitting = np.mean([s.sounds[0] == s.things[0].object for s in alone])
    assert 0.5 < fitting < 0.67  # a half, and a sixth of the other half
    assert [len(random_scene(rng, sounds=n).sounds) for n in (0, 1, 2)] == [0, 1, 2]


BELL, DRUM = Thing("bell", "red", "left"), Thing("drum", "green", "circles")
ONE = Scene("one", (BELL,), ("car",), 2.0, 0.5, 0)
PAIR = Scene("pair", (BELL, DRUM), (), 2.0, 0.5, 0)
CUT = Scene("cut", (BELL, DRUM), ("car", "bird"), 2.0, 0.5, 0)
EMPTY = Scene("empty", (), None, 2.0, 0.5, 0)
UNKNOWN = "I can't tell from this."
NO_SOUND = "I can't tell: there is no sound."
NO_PICTURE = "I can't tell: there is no picture."


@pytest.mark.parametrize(
    ("topic", "scene", "sounds", "moving", "right"),
    [
        ("object", ONE, None, True, "A bell."),
        ("object", PAIR, None, True, "A bell and a drum."),
        ("object", CUT, None, True, "First a bell, then a drum."),
        ("object", EMPTY, None, True, "Nothing."),
        ("colour", ONE, None, True, "Red."),
        ("colour", PAIR, None, True, None),
        ("colour", EMPTY, None, True, None),
        ("motion", ONE, None, True, "It moves left."),
        ("motion", ONE, None, False, "I can't tell from one image."),
        ("motion", CUT, None, True, None),
        ("caption", ONE, None, True, "A red bell moves left."),
        ("caption", ONE, None, False, "A red bell."),
        ("caption", PAIR, None, True, "A red bell and a green drum."),
        ("caption", CUT, None, True, "First a red bell, then a green drum."),
        ("caption", EMPTY, None, True, "Nothing."),
        ("sound", ONE, ("car",), True, "A car."),
        ("sound", ONE, (), True, "Nothing."),
        ("sound", ONE, None, True, NO_SOUND),
        ("sound", None, ("car", "bird"), True, "First a car, then a bird."),
        ("order", None, ("car", "bird"), True, "First a car, then a bird."),
        ("order", CUT, None, True, NO_SOUND),
        ("both", ONE, ("car",), True, "A red bell moves left, and I hear a car."),
        ("both", ONE, None, True, "A red bell moves left, but there is no sound."),
        ("both", ONE, ("car",), False, "A red bell, and I hear a car."),
        ("both", EMPTY, (), True, "Nothing, and I hear nothing."),
        ("both", None, ("car",), True, "There is no picture, but I hear a car."),
        ("both", None, None, True, "There is no picture and no sound."),
        ("object", None, ("car",), True, NO_PICTURE),
        ("colour", None, ("car",), True, NO_PICTURE),
        ("motion", None, ("car",), True, NO_PICTURE),
        ("caption", None, ("car",), True, NO_PICTURE),
        ("unknown", ONE, ("car",), True, UNKNOWN),
        ("unknown", None, None, True, UNKNOWN),
    ],
)
def test_right_answers(topic, scene, sounds, moving, right):
    assert language.answer(topic, scene, sounds, moving) == right


def test_questions_of_a_conversation_differ_and_are_answered():
    rng = np.random.default_rng(0)
    for _ in range(50):
        asked = language.turns(rng, CUT, ("car",), 3)
        assert len({t.topic for t in asked}) == 3
        for turn in asked:
            assert turn.question in language.QUESTIONS[turn.topic]
            assert turn.answer == language.answer(turn.topic, CUT, ("car",))


@pytest.mark.parametrize(
    ("motion", "axis", "sign"),
    [("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1), ("grows", 2, 1)],
)
def test_things_move_as_they_are_said_to(motion, axis, sign):
    times = np.linspace(0, 1, 9)
    for seed in range(20):
        track = render.path(np.random.default_rng(seed), motion, times)
        steps = sign * np.diff(track, axis=0)
        assert (steps[:, axis] > 0).all()
        assert not np.delete(steps, axis, 1).any()


def test_few_frames_are_those_that_sampling_picks():
    scene = random_scene(np.random.default_rng(0), kind="empty")
    whole = render.frames(scene)
    few = render.frames(scene, 8)
    assert whole.shape[1:] == few.shape[1:] == (render.SIDE, render.SIDE, 3)
    picked = np.arange(8) * len(whole) // 8
    assert np.abs(whole[picked].astype(int) - few).mean() < 6  # but for the grain


def test_sounds_are_told_apart_and_silence_is_quiet():
    tracks = {n: sound.play(np.random.default_rng(0), n, sound.RATE) for n in (*OBJECTS, None)}
    assert all(t.dtype == np.float32 and t.shape == (sound.RATE,) for t in tracks.values())
    loud = {n: float(np.abs(t).max()) for n, t in tracks.items()}
    assert loud.pop(None) < 0.01 < 0.1 < min(loud.values()) <= max(loud.values()) <= 1


def test_tags_batch(monkeypatch):
    """Tags say what stands where; off-palette colours are not taught."""
    drawn = []
    original = render.snapshot
    monkeypatch.setattr(
        render, "snapshot", lambda rng, placed: drawn.append(placed) or original(rng, placed)
    )
    batch = pretrain.tags_batch(np.random.default_rng(0), 300)
    tags = batch["tags"]
    assert batch["frames"].shape == (300, 1, 48, 48, 3)
    assert batch["frames"].dtype == np.uint8
    assert (tags.shape, tags.dtype) == ((300, 2, 5), np.int32)
    for row, placed in zip(tags, drawn, strict=True):
        for tag, (name, rgb, *_) in zip(row, placed, strict=False):
            assert OBJECTS[tag[0]] == name
            near = {c for c in COLOURS if np.abs(rgb - render.RGB[c]).max() < 14.1}
            if tag[1] != IGNORE:
                assert COLOURS[tag[1]] in near
                assert (name, COLOURS[tag[1]]) not in scenes.HELD_OUT_PAIRS
        for tag in row[len(placed) :]:
            assert tag.tolist() == [len(OBJECTS), *[IGNORE] * 4]
    patches = batch["patch_tags"]
    assert (patches.shape, patches.dtype) == ((300, 36), np.int32)
    for row, tag in zip(patches, tags, strict=True):
        assert set(row.tolist()) <= {len(OBJECTS), *tag[:, 0].tolist()}
    assert 0.05 < (patches < len(OBJECTS)).mean() < 0.5
    there = tags[tags[..., 0] < len(OBJECTS)]
    assert 0.4 < (there[:, 1] == IGNORE).mean() < 0.6
    bounds = list(pretrain.CLASSES.values())
    assert (there[:, 2:] >= 0).all()
    assert (tags.max((0, 1)) < bounds).all()


def test_pairs_batch():
    batch = pretrain.pairs_batch(np.random.default_rng(0), 40, SPEC)
    assert {n: (a.shape, a.dtype.name) for n, a in batch.items()} == {
        "frames": ((40, 1, 48, 48, 3), "uint8"),
        "mel": ((40, 1, 32, 96), "float32"),
        "kinds": ((40,), "int32"),
    }
    assert set(batch["kinds"].tolist()) == set(range(7))
    silent = batch["mel"][batch["kinds"] == len(OBJECTS)]
    assert silent.max() < batch["mel"][batch["kinds"] < len(OBJECTS)].max()


def test_text_batch(tokenizer):
    batches = [pretrain.text_batch(np.random.default_rng(s), 64, tokenizer) for s in range(6)]
    lengths = {b["tokens"].shape[1] for b in batches}
    assert lengths == set(pretrain.LENGTHS)
    batch = next(b for b in batches if b["tokens"].shape[1] == max(lengths))
    shapes = {n: (a.shape, a.dtype.name) for n, a in batch.items()}
    length = max(lengths)
    assert shapes == {
        "tokens": ((64, length), "int32"),
        "labels": ((64, length), "int32"),
        "mask": ((64, length), "bool"),
        "context": ((64, length), "bool"),
    }
    assert (batch["tokens"] < tokenizer.vocab).all()  # every placeholder is filled
    taught = batch["labels"] != IGNORE
    assert taught.any(1).all()
    assert not (taught & batch["context"]).any()
    assert not (batch["context"] & ~batch["mask"]).any()
    words = {tokenizer.decode(t[c]) for t, c in zip(batch["tokens"], batch["context"], strict=True)}
    assert any("bell" in w for w in words)
    # Words leave no combination out: a language model that never met one can't say it.
    texts = " ".join(tokenizer.decode(row) for b in batches for row in b["tokens"])
    assert all(f"{colour} {name}" in texts for name, colour in scenes.HELD_OUT_PAIRS)


@pytest.mark.parametrize("name", ["text", "tags", "pairs"])
def test_generated_sources_are_pure_in_their_generator(worlds, name):
    source = world_source(name, 4, str(worlds[0] / "tokenizer.model"), SPEC)
    first, again, other = (
        source.batch(np.arange(4), np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert len(source) == 4
    for field, values in first.items():
        np.testing.assert_array_equal(values, again[field])
    assert any((values != other[field]).any() for field, values in first.items())


def test_an_unknown_generated_source_is_named():
    with pytest.raises(ValueError, match="got 'smell', expected text, tags or pairs"):
        world_source("smell", 4, "", SPEC)
