"""``Model.embed`` against the model's own modules, on the weights that come with the package."""

import dataclasses
import functools

import av
import jax
import numpy as np
import pytest
from PIL import Image

import vljax
from vljax import store
from vljax.data.world import render
from vljax.data.world.files import write_clip
from vljax.data.world.scenes import OBJECTS, Scene, Thing
from vljax.data.world.sound import RATE, waveform
from vljax.generate.chat import TINY_WEIGHTS, Model
from vljax.generate.media import read_media
from vljax.models.video_llama import VideoLlama

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def tiny() -> Model:
    return vljax.load("tiny")


def write_wav(path, wave: np.ndarray) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray((wave[None] * 32000).astype(np.int16), "s16", "mono")
        frame.sample_rate = RATE
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A clip with sound, one without, an image and a sound."""
    folder = tmp_path_factory.mktemp("files")
    scenes = [
        Scene("one", (Thing(name, "red", "left"),), (name,), 2.0, 0.5, i)
        for i, name in enumerate(("bell", "car"))
    ]
    write_clip(folder / "bell.mp4", render.frames(scenes[0]), waveform(scenes[0]))
    write_clip(folder / "car.mp4", render.frames(scenes[1]), None)
    Image.fromarray(render.frames(scenes[0], 1)[0]).save(folder / "bell.png")
    write_wav(folder / "car.wav", waveform(scenes[1]))
    return [folder / name for name in ("bell.mp4", "car.mp4", "bell.png", "car.wav")]


@pytest.fixture(scope="module")
def embedded(tiny, files):
    return tiny.embed(files)


def test_what_a_file_lacks_is_none(embedded):
    def there(embedding) -> list[str]:
        return [name for name, x in vars(embedding).items() if x is not None]

    sight, sound = ["sight", "picture_tokens"], ["sound", "sound_tokens"]
    clip, silent, image, heard = map(there, embedded)
    assert (set(clip), silent, image, heard) == ({*sight, *sound}, sight, sight, sound)


def test_they_are_what_the_modules_make(tiny, files, embedded):
    """One file at a time, from the folder's arrays, module by module."""
    arrays = {name: x.read() for name, x in store.flatten(store.stored(TINY_WEIGHTS)[0]).items()}
    params, size = {"params": store.unflatten(arrays)}, tiny.engine.size
    model = VideoLlama(size)

    def apply(method, *args, **kwargs):
        made = jax.jit(functools.partial(model.apply, method=method, **kwargs))
        return made(params, *args)

    clip, _, image, _ = embedded
    for file, got in ((files[0], clip), (files[2], image)):
        frames = read_media(file, size).frames[None]
        pixels = apply(lambda m, x: m.frame_encoder(x, True), frames)
        sight = apply(lambda m, x: m.imagebind.see(x, True), frames)
        _, kept = apply("video_tokens", pixels, mutable=["intermediates"])
        tokens = kept["intermediates"]["video_qformer_out"][0]
        np.testing.assert_allclose(got.sight, sight[0], **CLOSE)
        np.testing.assert_allclose(got.picture_tokens, tokens[0], **CLOSE)
    mel = read_media(files[0], size).mel[None]
    sound = apply(lambda m, x: m.imagebind.hear(x), mel)
    _, kept = apply("audio_tokens", sound, mutable=["intermediates"])
    np.testing.assert_allclose(clip.sound, sound[0], **CLOSE)
    tokens = kept["intermediates"]["audio_qformer_out"][0]
    np.testing.assert_allclose(clip.sound_tokens, tokens[0], **CLOSE)


def test_lengths(tiny, embedded):
    clip, _, image, heard = embedded
    norm = tiny.engine.size.imagebind.sound.norm
    for vectors, length in (
        (clip.sight, 1),
        (image.sight, 1),
        (heard.sound, norm),
        (clip.seen, 1),
        (heard.heard, 1),
    ):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), length, rtol=1e-5)
    assert (len(clip.sight), len(image.sight), len(clip.sound)) == (8, 1, 8)
    assert np.linalg.norm(clip.picture_tokens, axis=-1).min() > 2  # these are no directions


def test_a_batch_is_as_each_alone(tiny, files, embedded):
    alone = tiny.embed(str(files[1]))
    for name, x in vars(alone).items():
        other = getattr(embedded[1], name)
        if x is None:
            assert other is None
        else:
            np.testing.assert_allclose(x, other, **CLOSE)


def test_a_sound_lies_nearest_to_the_picture_of_what_makes_it(tiny, tmp_path):
    """Pictures and sounds share a space, which is how the audio branch is trained on pictures."""
    paths = []
    for i, name in enumerate(OBJECTS):
        scene = Scene("one", (Thing(name, "green", "still"),), (name,), 2.0, 0.5, 10 + i)
        paths.append(tmp_path / f"{name}.mp4")
        write_clip(paths[-1], render.frames(scene), waveform(scene))
    made = tiny.embed(paths)
    near = np.stack([e.heard for e in made]) @ np.stack([e.seen for e in made]).T
    assert near.argmax(axis=1).tolist() == list(range(len(OBJECTS)))


def test_weights_without_a_part_have_none_of_it(tiny, files):
    blind = {n: x for n, x in tiny.engine.params.items() if n != "frame_encoder"}
    engine = dataclasses.replace(tiny.engine, params=blind)
    made = Model(engine, "blind").embed(files[0])
    assert made.sight is None and made.picture_tokens is None and made.seen is None
    assert made.sound is not None and made.sound_tokens is not None
