"""Batches: which records, in which order, with what in them."""

import dataclasses
import itertools
import os
import pickle
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vljax.data.audio import AudioSpec
from vljax.data.examples import Record
from vljax.data.pipeline import FrameSpec, MediaSource, Plan, TextSpec, batches, load_frames
from vljax.data.quarantine import Reader
from vljax.data.text import CAPTION_PROMPTS, IGNORE, VICUNA
from vljax.data.tokenizer import PromptError, load_tokenizer

TOKENIZER = str(Path(__file__).parent.parent / "golden" / "tokenizer.model")
TEXT = TextSpec(TOKENIZER, "vicuna", media=2, limit=40, lengths=(8, 16, 64))
FRAMES = FrameSpec(count=4, size=24, augment=False)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A source whose batch is the records' numbers, and one random number."""

    name: str
    size: int
    batch_size: int = 4
    weight: float = 1.0
    field: str = "kinds"

    def __len__(self) -> int:
        return self.size

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        drawn = rng.integers(1000, size=len(indices)).astype(np.int32)
        return {self.field: indices.astype(np.int32), "tags": drawn}


TWO = [Numbers("a", 10), Numbers("b", 9, batch_size=3, weight=3.0, field="tokens")]


def same(left, right) -> bool:
    return all(
        a == b and x.keys() == y.keys() and all((x[n] == y[n]).all() for n in x)
        for (a, x), (b, y) in itertools.zip_longest(left, right)
    )


def test_a_batch_is_a_function_of_seed_and_step():
    whole = list(batches(TWO, 7, 12))
    assert len(whole) == 12
    assert same(whole, batches(TWO, 7, 12))
    assert same(whole[5:], batches(TWO, 7, 12, start=5))
    assert not same(whole, batches(TWO, 8, 12))
    assert list(batches(TWO, 7, 12, start=12)) == []


def test_workers_change_nothing():
    assert same(batches(TWO, 7, 12, workers=1), batches(TWO, 7, 12, workers=4))


def of_hosts(sources, count: int, **options) -> list:
    """The streams of so many hosts, each on its own, put together again."""
    streams = [list(batches(sources, 7, 6, host=(i, count), **options)) for i in range(count)]
    together = []
    for rows in zip(*streams, strict=True):
        [name] = {name for name, _ in rows}
        fields = {n: np.concatenate([batch[n] for _, batch in rows]) for n in rows[0][1]}
        together.append((name, fields))
    return together


def test_a_generated_source_is_shared_out_to_hosts():
    sources = [Numbers("a", 10), Numbers("b", 9, field="tokens")]
    whole = list(batches(sources, 7, 6))
    assert same(whole, of_hosts(sources, 2)) and same(whole, of_hosts(sources, 4))


def test_rows_that_cannot_be_shared_out_are_told():
    with pytest.raises(ValueError, match="got 3 of source b, expected a multiple of the 2 proc"):
        next(batches(TWO, 7, 6, host=(0, 2)))
    with pytest.raises(ValueError, match="host: got index 2 of 2, expected 0 to 1"):
        next(batches(TWO, 7, 6, host=(2, 2)))


def test_more_steps_change_no_earlier_batch():
    assert same(batches(TWO, 7, 6), itertools.islice(batches(TWO, 7, 12), 6))


def test_a_batch_comes_whole_from_one_source():
    fields = {"a": {"kinds": 4, "tags": 4}, "b": {"tokens": 3, "tags": 3}}
    met = set()
    for name, batch in batches(TWO, 7, 12):
        met.add(name)
        assert {n: len(x) for n, x in batch.items()} == fields[name]
        assert {x.dtype.name for x in batch.values()} == {"int32"}
    assert met == {"a", "b"}


def test_each_record_once_a_pass():
    seen = [b["kinds"] for _, b in batches([Numbers("a", 12)], 0, 9)]
    passes = [np.concatenate(seen[i : i + 3]).tolist() for i in (0, 3, 6)]
    assert all(sorted(p) == list(range(12)) for p in passes)
    assert passes[0] != passes[1] != passes[2]


def test_a_pass_drops_its_last_part():
    seen = [b["kinds"] for _, b in batches([Numbers("a", 10)], 0, 2)]
    assert len(set(np.concatenate(seen).tolist())) == 8


def test_sources_are_drawn_by_weight():
    plan = Plan(0, (10, 10), (1.0, 3.0), (4, 4))
    drawn = Counter(plan.sources(4000).tolist())
    assert abs(drawn[1] / 4000 - 0.75) < 0.03


def test_too_few_records_are_told():
    with pytest.raises(ValueError, match="source 0: got 3 records, expected at least 4"):
        next(batches([Numbers("a", 3)], 0, 1))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Record]:
    """Images of noise, with captions of growing length."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    records = []
    for i in range(4):
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(path)
        records.append(Record(str(i), path, "image", caption="dog " * (10 * i + 1)))
    return records


@pytest.fixture
def clip(tmp_path, write, grey_frames) -> Record:
    path = write(tmp_path / "a.mp4", grey_frames(20), fps=10)
    return Record("a", path, "video", caption="a dog runs")


def one_batch(records, frames=FRAMES, text=TEXT, seed=0):
    source = MediaSource("s", 1.0, len(records), records, frames, text)
    return source.batch(np.arange(len(records)), np.random.default_rng(seed))


def test_images_and_their_captions(images):
    batch = one_batch(images[:2])
    assert {n: (x.shape, x.dtype.name) for n, x in batch.items()} == {
        "tokens": ((2, 16), "int32"),
        "labels": ((2, 16), "int32"),
        "mask": ((2, 16), "bool"),
        "frames": ((2, 1, 24, 24, 3), "uint8"),
        "frame_mask": ((2, 1), "bool"),
    }
    assert batch["frame_mask"].all()
    words = load_tokenizer(TOKENIZER).encode("dog \n")
    assert batch["labels"][0, 3 : 3 + len(words)].tolist() == words


@pytest.mark.parametrize(("index", "length"), [(0, 8), (1, 16), (3, 64)])
def test_a_batch_takes_the_smallest_length_that_fits(images, index, length):
    batch = one_batch([images[index]])
    assert batch["tokens"].shape == (1, length)
    assert 0 < batch["mask"].sum() <= length


def test_a_batch_that_fits_no_length_is_told(images):
    short = dataclasses.replace(TEXT, lengths=(4, 8))
    with pytest.raises(PromptError, match="expected at most 8; add a longer length"):
        one_batch(images, text=short)


def test_one_prompt_a_batch(images):
    tokenizer = load_tokenizer(TOKENIZER)
    spec = dataclasses.replace(TEXT, prompts=True, end="###", lengths=(256,))
    wanted = {VICUNA.caption.format(p).replace("<ImageHere>", " ") for p in CAPTION_PROMPTS}
    met = set()
    for seed in range(12):
        batch = one_batch(images[:2], text=spec, seed=seed)
        rows = zip(batch["tokens"], batch["labels"], batch["mask"], strict=True)
        prompts = {tokenizer.decode(t[m & (y == IGNORE)]).strip() for t, y, m in rows}
        assert len(prompts) == 1
        met |= prompts
    squeezed = {" ".join(p.split()) for p in met}
    assert len(squeezed) > 1
    assert squeezed <= {" ".join(w.split()) for w in wanted}


def test_clips_are_sampled_uniformly(clip):
    batch = one_batch([clip])
    assert batch["frames"].shape == (1, 4, 24, 24, 3)
    assert batch["frame_mask"].tolist() == [[True] * 4]
    levels = batch["frames"][0].mean((1, 2, 3))
    np.testing.assert_allclose(levels, [20 + 7 * i for i in (0, 5, 10, 15)], atol=3)


def test_a_short_clip_is_padded(tmp_path, write, grey_frames):
    path = write(tmp_path / "a.mp4", grey_frames(3), fps=10)
    batch = one_batch([Record("a", path, "video", caption="a dog")])
    assert batch["frame_mask"].tolist() == [[True, True, True, False]]
    assert not batch["frames"][0, 3].any()
    assert batch["frames"][0, :3].any((1, 2, 3)).all()


def test_augmentation_crops_at_random(images):
    crops = dataclasses.replace(FRAMES, augment=True)
    plain = [one_batch(images[:1], seed=seed)["frames"] for seed in (0, 1)]
    np.testing.assert_array_equal(*plain)
    first, again, other = (one_batch(images[:1], crops, seed=s)["frames"] for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first != plain[0]).any()


def test_a_clip_s_frames_share_one_crop(tmp_path, write):
    still = np.random.default_rng(0).integers(0, 256, (1, 48, 64, 3), np.uint8).repeat(8, 0)
    path = write(tmp_path / "a.mkv", still, codec="ffv1")
    crops = dataclasses.replace(FRAMES, augment=True)
    frames, _ = load_frames(Record("a", path, "video", caption=""), crops, np.random.default_rng(0))
    assert (frames == frames[:1]).all()


def test_headtail_frames_are_random_and_from_both_halves(clip):
    spec = dataclasses.replace(FRAMES, policy="headtail")
    drawn = [one_batch([clip], spec, seed=s)["frames"][0].mean((1, 2, 3)) for s in range(6)]
    assert len({tuple(d.round()) for d in drawn}) > 1
    for levels in drawn:
        index = (levels - 20) / 7
        assert (index[:2] < 10.5).all()
        assert (index[2:] > 9.5).all()


def test_conversations_tell_the_frames_times(clip):
    tokenizer = load_tokenizer(TOKENIZER)
    talk = dataclasses.replace(
        clip,
        caption=None,
        turns=(("human", "<image> who?"), ("gpt", "a dog.")),
        tags=("<Video>", "</Video>"),
        frame_message=True,
    )
    spec = dataclasses.replace(TEXT, limit=256, lengths=(256,))
    told = tokenizer.decode(one_batch([talk], text=spec)["tokens"][0])
    message = "The video contains 4 frames sampled at 0.0, 0.5, 1.0, 1.5 seconds. "
    assert f"</Video> {message} who?" in told or f"</Video> {message}who?" in told
    silent = tokenizer.decode(
        one_batch([talk], text=dataclasses.replace(spec, template="tiny"))["tokens"][0]
    )
    assert "frames sampled" not in silent


def test_a_conversation_that_does_not_fit_names_its_record(images):
    talk = dataclasses.replace(
        images[0], id="77", caption=None, turns=(("human", "dog " * 99 + "<image>"), ("gpt", "a"))
    )
    with pytest.raises(PromptError, match="record 77: conversation: got 0 media placeholders"):
        one_batch([talk])


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> list[MediaSource]:
    """Clips that are talked about (their times are told), and images with captions; random crops.

    One of the clips is broken.
    """
    folder = tmp_path_factory.mktemp("library")
    rng = np.random.default_rng(0)
    clips, stills = [], []
    for i in range(9):
        still = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(still)
        stills.append(Record(f"s{i}", still, "image", caption="dog " * (3 * i + 1)))
        clip = folder / f"{i}.mp4"
        pixels = rng.integers(0, 256, (6 + 4 * i, 32, 48, 3), np.uint8)
        with av.open(str(clip), "w") as out:
            stream = out.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for frame in pixels:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
            out.mux(stream.encode())
        turns = (("human", "<image> who?" + " and who" * i), ("gpt", "a dog."))
        clips.append(Record(f"c{i}", clip, "video", None, turns, frame_message=True))
    clips[4].path.write_bytes(b"broken")
    spec = dataclasses.replace(
        TEXT, limit=100, prompts=True, end="###", lengths=tuple(range(40, 129, 4))
    )
    crops = FrameSpec(count=4, size=24, policy="headtail")
    return [
        MediaSource("clips", 2.0, 4, clips, crops, spec, on_bad="skip", max_bad=0.2),
        MediaSource("stills", 1.0, 4, stills, crops, spec),
    ]


@pytest.mark.parametrize("mixed", [False, True])
def test_hosts_load_the_rows_of_one_stream(library, mixed):
    whole = list(batches(library, 7, 6, workers=1, mixed=mixed))
    assert same(whole, of_hosts(library, 2, workers=1, mixed=mixed))
    assert same(whole, of_hosts(library, 4, workers=2, mixed=mixed))
    assert same(whole[4:], batches(library, 7, 6, start=4, mixed=mixed))
    missing = np.concatenate([b["missing"] for _, b in whole if "missing" in b])
    assert missing.any() and not missing.all()
    assert len({b["tokens"].shape for _, b in whole}) > 1


def test_a_host_reads_none_but_its_own_rows(library):
    class Watched(Reader):
        def __call__(self, wanted):
            met.extend(record.id for _, record, _ in wanted)
            return super().__call__(wanted)

    met: list[str] = []
    source = library[1]
    indices, rng = np.arange(4), np.random.default_rng(0)
    batch = source.batch(indices, rng, slice(2, 4), Watched())
    assert met == ["s2", "s3"] and len(batch["tokens"]) == 2


def test_mixed_rows_are_drawn_by_weight(library):
    got = list(batches(library, 7, 6, mixed=True))
    assert {name for name, _ in got} == {"mixed"}
    clips = np.concatenate([b["frame_mask"][:, 1] | b["missing"] for _, b in got])
    assert {b["frames"].shape for _, b in got} == {(4, 4, 24, 24, 3)}
    assert 0 < (~clips).sum() < clips.sum()
    drawn = Plan(0, (10, 10), (1.0, 3.0), (4, 4), mixed=True).rows(1000)
    picks = [pick for step in range(1000) for pick in drawn.picks(step)]
    assert abs(np.mean([source for source, _ in picks]) - 0.75) < 0.03
    first = [i for source, i in picks if source == 0][:10]
    assert sorted(first) == list(range(10))  # each record once a pass


def test_what_cannot_be_mixed_is_told(library):
    with pytest.raises(ValueError, match="mixed: got source a, expected only sources of records"):
        next(batches([*library, Numbers("a", 10)], 0, 1, mixed=True))
    other = dataclasses.replace(library[0], frames=FrameSpec(size=32))
    with pytest.raises(ValueError, match="mixed: got sources clips and stills with other sizes"):
        next(batches([other, library[1]], 0, 1, mixed=True))
    other = dataclasses.replace(library[0], batch_size=2)
    with pytest.raises(ValueError, match="batch_size: got 2, 4, expected one size"):
        next(batches([other, library[1]], 0, 1, mixed=True))


def test_sound_is_there_where_it_is_asked_for(tmp_path, write, grey_frames, tone):
    path = write(tmp_path / "a.mp4", grey_frames(20), tone(2.0, 16000, 1), fps=10)
    mute = write(tmp_path / "b.mp4", grey_frames(20), fps=10)
    records = [Record("a", path, "video", "a dog"), Record("b", mute, "video", "a cat")]
    source = MediaSource("s", 1.0, 2, records, FRAMES, TEXT, sound=AudioSpec())
    [(_, batch)] = batches([source], 0, 1)
    there = batch["sound"].tolist()
    assert sorted(there) == [False, True] and batch["mel"].shape == (2, 8, 128, 204)
    assert not batch["mel"][there.index(False)].any() and batch["mel"][there.index(True)].any()


CONSUMER = """
import hashlib, pickle, sys
from vljax.data.pipeline import batches
sources, start, steps = pickle.load(sys.stdin.buffer)
for step, (name, batch) in enumerate(batches(sources, 7, steps, start, workers=2), start):
    digest = hashlib.sha256(b"".join(batch[n].tobytes() for n in sorted(batch))).hexdigest()
    print(step, name, digest, flush=True)
"""


@pytest.mark.slow
def test_a_killed_stream_goes_on_exactly(library):
    """kill -9 of a process that consumes the stream, at a random batch; then from there on."""
    steps = 40

    def consume(start: int, stop: int | None = None) -> list[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", CONSUMER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        process.stdin.write(pickle.dumps((library, start, steps)))
        process.stdin.close()
        lines = []
        for line in process.stdout:
            lines.append(line.decode())
            if len(lines) == stop:
                process.kill()
        process.wait()
        process.stdout.close()
        return lines

    whole = consume(0)
    assert len(whole) == steps and len(set(whole)) == steps
    stop = random.randint(3, 30)
    before = consume(0, stop)
    assert stop <= len(before) < steps  # some may still have been in the pipe
    assert before == whole[: len(before)]
    assert consume(len(before)) == whole[len(before) :]
