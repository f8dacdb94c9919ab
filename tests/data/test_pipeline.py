"""Batches: which records, in which order, with what in them."""

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vljax.data.examples import Record
from vljax.data.pipeline import FrameSpec, MediaSource, Plan, TextSpec, batches, load_frames
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
