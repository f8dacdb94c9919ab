"""Frames and images: against the original's arrays, and on files written here."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vljax.data import video
from vljax.data.video import (
    Clip,
    MediaError,
    crop_resize_clip,
    crop_resize_float,
    crop_resize_image,
    eval_frames,
    frame_message,
    headtail_indices,
    is_image,
    normalise,
    random_crop_box,
    read_clip,
    read_image,
    resize_image,
    uniform_indices,
)

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = np.load(FOLDER / "video_image_prep.npz")
SAMPLING = json.loads((FOLDER / "frame_sampling.json").read_text())
ATOL = 1e-5


def channels_last(array: np.ndarray) -> np.ndarray:
    """[C, ...] to [..., C]."""
    return np.moveaxis(array, 0, -1)


# Which frames


@pytest.mark.parametrize(
    "case", SAMPLING["uniform"], ids=lambda c: f"{c['num_frames']}-{c['n_frms']}"
)
def test_uniform_frames_and_their_message_match_the_original(case: dict) -> None:
    indices = uniform_indices(case["num_frames"], case["n_frms"])
    assert indices.dtype.kind == "i" and indices.tolist() == case["indices"]
    assert frame_message(indices, case["fps"]) == case["message"]


@pytest.mark.parametrize(
    "case", SAMPLING["headtail"], ids=lambda c: f"{c['num_frames']}-{c['n_frms']}"
)
def test_headtail_frames_match_the_original(case: dict) -> None:
    num_frames, n = case["num_frames"], case["n_frms"]
    seed = case["python_random_seed"]
    literal = headtail_indices(num_frames, n, random.Random(seed), literal=True)
    assert literal.dtype.kind == "i" and literal.tolist() == case["indices"]
    if min(num_frames, n) % 2:
        with pytest.raises(MediaError, match="use an even n"):
            headtail_indices(num_frames, n, random.Random(seed))
    else:
        assert headtail_indices(num_frames, n, random.Random(seed)).tolist() == case["indices"]


def test_uniform_never_gives_more_than_asked() -> None:
    assert len(np.arange(0, 17, 17 / 7)) == 8  # what the original would take
    assert uniform_indices(17, 7, literal=True).tolist() == [0, 2, 4, 7, 9, 12, 14, 17]
    assert uniform_indices(17, 7).tolist() == [0, 2, 4, 7, 9, 12, 14]
    for num_frames in range(1, 200):
        for n in (1, 7, 8, 49):
            indices = uniform_indices(num_frames, n)
            assert len(indices) == min(n, num_frames)
            assert (np.diff(indices) > 0).all() and indices[-1] < num_frames


def test_headtail_with_nothing_to_halve() -> None:
    with pytest.raises(MediaError, match="video of 1 frames"):
        headtail_indices(1, 8, random.Random(0))
    assert headtail_indices(1, 8, random.Random(0), literal=True).tolist() == []


@pytest.mark.parametrize("sample", [uniform_indices, lambda f, n: headtail_indices(f, n, None)])
def test_counts_that_make_no_sense(sample: Callable) -> None:
    with pytest.raises(MediaError, match="0 frames"):
        sample(0, 8)
    with pytest.raises(ValueError, match="got 0"):
        sample(8, 0)


def test_message_rounds_as_python_does() -> None:
    want = "The video contains 3 frames sampled at 0.1, 0.2, 0.8 seconds. "
    assert (
        frame_message(np.array([3, 5, 15]), 20.0) == want
    )  # 0.15 -> 0.1, 0.25 -> 0.2, 0.75 -> 0.8


# Making CLIP input


def test_eval_transform_matches_the_original() -> None:
    out = eval_frames(GOLDEN["eval/frames_thwc_u8"])
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, channels_last(GOLDEN["eval/out"]), rtol=0, atol=ATOL)
    fractional = eval_frames(channels_last(GOLDEN["eval_fractional/frames_cthw_f32"]))
    want = channels_last(GOLDEN["eval_fractional/out"])
    np.testing.assert_allclose(fractional, want, rtol=0, atol=ATOL)


@pytest.mark.parametrize("name", ["smooth_0", "smooth_1", "hard_edges_0", "hard_edges_1"])
def test_train_transform_matches_the_original(name: str) -> None:
    clip = channels_last(GOLDEN[f"train_{name[:-2]}/clip_cthw"])
    box = tuple(GOLDEN[f"train_{name}/crop_top_left_height_width"].tolist())
    floats = channels_last(GOLDEN[f"train_{name}/resized_float_before_uint8"])
    np.testing.assert_allclose(crop_resize_float(clip, box, (24, 24)), floats, rtol=0, atol=1e-3)

    # Where the float lies on a whole number, its last bit decides between two greys.
    sure = np.abs(floats - np.round(floats)) > 1e-3
    assert sure.mean() > 0.6
    wrapped = crop_resize_clip(clip, box, (24, 24), wrap=True)
    assert wrapped.dtype == np.uint8
    want = channels_last(GOLDEN[f"train_{name}/out"])
    np.testing.assert_allclose(normalise(wrapped)[sure], want[sure], rtol=0, atol=ATOL)
    pixels = np.round((want * video.CLIP_STD + video.CLIP_MEAN) * 255)
    steps = (wrapped - pixels)[~sure] % 256
    assert np.isin(steps, (0, 1, 255)).all()

    clamped = crop_resize_clip(clip, box, (24, 24))
    np.testing.assert_array_equal(clamped[sure], np.clip(floats, 0, 255).astype(np.uint8)[sure])
    assert (clamped != wrapped).any() == name.startswith("hard_edges")


def test_image_transforms_match_the_original() -> None:
    image, small = GOLDEN["image/input_hwc_u8"], GOLDEN["image_small/input_hwc_u8"]
    box = tuple(GOLDEN["image_train/crop_top_left_height_width"].tolist())
    for got, name in (
        (resize_image(image, (28, 28)), "image_eval"),
        (resize_image(small, (28, 28)), "image_eval_upsample"),
        (crop_resize_image(image, box, (28, 28)), "image_train"),
    ):
        want = channels_last(GOLDEN[f"{name}/out"])
        assert got.dtype == np.uint8
        np.testing.assert_allclose(normalise(got), want, rtol=0, atol=ATOL)


def test_sizes_are_height_then_width() -> None:
    clip = np.zeros((2, 30, 40, 3), np.uint8)
    assert crop_resize_clip(clip, (5, 6, 20, 10), (8, 12)).shape == (2, 8, 12, 3)
    assert resize_image(clip[0], (8, 12)).shape == (8, 12, 3)
    assert crop_resize_image(clip[0], (5, 6, 20, 10), (8, 12)).shape == (8, 12, 3)


def test_crop_takes_the_box() -> None:
    clip = np.arange(2 * 6 * 8 * 3, dtype=np.uint8).reshape(2, 6, 8, 3)
    same_size = crop_resize_clip(clip, (1, 2, 4, 5), (4, 5))
    np.testing.assert_array_equal(same_size, clip[:, 1:5, 2:7])


def test_random_boxes_follow_the_rules() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop_box(240, 320, rng) for _ in range(2000)])
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (top + height <= 240).all()
    assert (left >= 0).all() and (left + width <= 320).all()
    area, ratio = height * width / (240 * 320), width / height
    assert 0.49 < area.min() < 0.52 and 0.95 < area.max() <= 1.0
    assert 0.74 < ratio.min() < 0.78 and 1.31 < ratio.max() < 1.35
    assert top.min() == 0 and left.min() == 0 and len(set(top)) > 50 and len(set(left)) > 50


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(300, 30, (130, 0, 40, 30)), (30, 300, (0, 130, 30, 40)), (1, 1, (0, 0, 1, 1))],
)
def test_boxes_of_narrow_pictures_are_centred(height: int, width: int, box: tuple) -> None:
    assert random_crop_box(height, width, np.random.default_rng(0)) == box


# Reading files


def every_frame(num_frames: int) -> np.ndarray:
    return np.arange(num_frames)


def levels(clip: Clip) -> np.ndarray:
    """Mean grey of each frame."""
    return clip.frames.mean((1, 2, 3))


def check_greys(clip: Clip, grey_frames: Callable, atol: float = 3) -> None:
    sent = grey_frames(clip.num_frames)[clip.indices].mean((1, 2, 3))
    np.testing.assert_allclose(levels(clip), sent, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("name", "codec", "fps"),
    [
        ("a.mp4", "libx264", 25),
        ("b.mov", "libx264", 30),
        ("c.mkv", "libx264", 24),
        ("d.webm", "libvpx-vp9", 25),
        ("e.webm", "libvpx", 25),
        ("f.avi", "mpeg4", 25),
        ("g.ts", "libx264", 25),
        ("h.gif", "gif", 20),
    ],
)
def test_containers(
    tmp_path: Path, write: Callable, grey_frames: Callable, name: str, codec: str, fps: int
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    path = write(tmp_path / name, grey_frames(29), codec=codec, fps=fps)
    clip = read_clip(path, lambda n: uniform_indices(n, 8), (16, 24))
    assert clip.frames.shape == (8, 16, 24, 3) and clip.frames.dtype == np.uint8
    assert clip.num_frames == 29 and clip.fps == pytest.approx(fps)
    assert clip.duration == pytest.approx(29 / fps)
    assert clip.indices.tolist() == [0, 3, 7, 10, 14, 18, 21, 25]
    check_greys(clip, grey_frames, atol=20 if codec == "gif" else 4)  # a gif has few greys
    assert np.argsort(levels(clip)).tolist() == list(range(8))


def test_sound_beside_the_picture_is_passed_over(
    tmp_path: Path, write: Callable, grey_frames: Callable, tone: Callable
) -> None:
    path = write(tmp_path / "a.mp4", grey_frames(25), tone(1.0, 44100, 2), rate=44100)
    clip = read_clip(path, every_frame, (16, 16))
    assert clip.num_frames == 25
    check_greys(clip, grey_frames)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.ts"])
@pytest.mark.parametrize("options", [{"g": "8", "bf": "3"}, {"g": "250", "bf": "2"}, {"bf": "0"}])
def test_skipping_gives_the_pixels_of_a_plain_decode(
    tmp_path: Path, write: Callable, name: str, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 12, 16, 3), np.uint8)
    frames = noise.repeat(4, 1).repeat(4, 2)
    path = write(tmp_path / name, frames, options=options)
    plain, decoded = video._read_in_order(path, list(range(60)), (48, 64))
    assert decoded == 60
    if name != "a.ts":  # has no index of keyframes: a frame that is missed is read the plain way
        monkeypatch.setattr(video, "_read_in_order", None)
    rng = np.random.default_rng(1)
    for picked in ([0], [59], [17, 3, 3, 40], *rng.integers(0, 60, (5, 4)).tolist()):
        clip = read_clip(path, lambda n, picked=picked: np.array(picked), (48, 64))
        assert clip.indices.tolist() == picked
        np.testing.assert_array_equal(clip.frames, np.stack([plain[i] for i in picked]))


def test_variable_frame_rate(tmp_path: Path, write: Callable, grey_frames: Callable) -> None:
    times = [500, 540, 700, 1500, 1510, 3000, 3040, 4500]  # and it does not start at 0
    path = write(tmp_path / "a.mkv", grey_frames(8), times=times)
    clip = read_clip(path, lambda n: uniform_indices(n, 4), (16, 16))
    assert clip.num_frames == 8 and clip.indices.tolist() == [0, 2, 4, 6]
    check_greys(clip, grey_frames)


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webm"])
def test_one_frame(tmp_path: Path, write: Callable, grey_frames: Callable, name: str) -> None:
    codec = {"a.mp4": "libx264", "a.gif": "gif", "a.webm": "libvpx-vp9"}[name]
    path = write(tmp_path / name, grey_frames(1), codec=codec)
    clip = read_clip(path, lambda n: uniform_indices(n, 8), (16, 16))
    assert clip.num_frames == 1 and clip.frames.shape == (1, 16, 16, 3)
    assert clip.fps > 0


def test_colours_and_squashing(tmp_path: Path, write: Callable) -> None:
    frames = np.zeros((3, 64, 128, 3), np.uint8)
    frames[:, :32, :, 0] = 255  # red above
    frames[:, 32:, :, 2] = 255  # blue below
    clip = read_clip(write(tmp_path / "a.mp4", frames), every_frame, (32, 32))
    top, bottom = clip.frames[1, 8, 16].astype(int), clip.frames[1, 24, 16].astype(int)
    assert top[0] > 235 and max(top[1], top[2]) < 20
    assert bottom[2] > 235 and max(bottom[0], bottom[1]) < 20


def test_scaling_is_bicubic(tmp_path: Path, write: Callable) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 48, 64, 1), np.uint8).repeat(3, 3)
    path = write(tmp_path / "a.mp4", noise, options={"qp": "0"})
    whole = read_clip(path, every_frame, (48, 64)).frames[0]
    for size in ((16, 16), (24, 48)):
        small = read_clip(path, every_frame, size).frames[0].astype(float)
        error = {
            how: np.abs(np.asarray(Image.fromarray(whole).resize(size[::-1], how)) - small).mean()
            for how in Image.Resampling
        }
        assert min(error, key=error.get) == Image.Resampling.BICUBIC, error


def turn_clockwise(path: Path) -> None:
    """Sets the display matrix of an mp4 as a phone held upright does."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    assert struct.unpack(">9i", data[at : at + 36])[0] == 65536
    data[at : at + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def test_rotation_is_applied(tmp_path: Path, write: Callable) -> None:
    frames = np.zeros((3, 64, 128, 3), np.uint8)
    frames[:, :, :64] = 255  # bright left half: on top after a clockwise turn
    path = write(tmp_path / "a.mp4", frames)
    turn_clockwise(path)
    frame = read_clip(path, every_frame, (32, 16)).frames[1]
    assert frame.shape == (32, 16, 3)
    assert frame[:12].min() > 235 and frame[20:].max() < 20


def test_fewer_frames_than_promised(
    tmp_path: Path, write: Callable, grey_frames: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.mp4", grey_frames(20))
    scan = video._scan

    def promise_forty(*opened: object) -> video._Index:
        index = scan(*opened)
        return video._Index([*index.pts, *range(10**6, 10**6 + 20)], index.keys, index.fps, True)

    monkeypatch.setattr(video, "_scan", promise_forty)
    asked = []
    clip = read_clip(path, lambda n: asked.append(n) or uniform_indices(n, 4), (16, 16))
    assert asked == [40, 20] and clip.num_frames == 20
    assert clip.indices.tolist() == [0, 5, 10, 15]
    check_greys(clip, grey_frames)


def test_a_file_cut_short_is_read_as_far_as_it_goes(
    tmp_path: Path, write: Callable, grey_frames: Callable
) -> None:
    rng = np.random.default_rng(0)
    frames = grey_frames(40) + rng.integers(0, 20, (40, 48, 64, 3), np.uint8)
    whole = write(tmp_path / "whole.mkv", frames)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    clip = read_clip(cut, lambda n: uniform_indices(n, 8), (16, 16))
    assert 8 <= clip.num_frames < 40 and len(clip.frames) == 8


def test_frames_that_are_not_there(tmp_path: Path, write: Callable, grey_frames: Callable) -> None:
    path = write(tmp_path / "a.mp4", grey_frames(5))
    for picked in ([], [5], [-1]):
        with pytest.raises(MediaError, match=r"a.mp4: frames .* 0\.\.4"):
            read_clip(path, lambda n, picked=picked: np.array(picked), (16, 16))


def test_files_that_are_no_video(
    tmp_path: Path, write: Callable, grey_frames: Callable, tone: Callable
) -> None:
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "text.mp4").write_text("This is no video.\n" * 50)
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.mp4\n")
    write(tmp_path / "a.mp4", grey_frames(3))
    (tmp_path / "script.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    write(tmp_path / "sound.mp4", sound=tone(1.0, 44100, 1), rate=44100)
    write(tmp_path / "none.mkv", grey_frames(0), tone(1.0, 44100, 1), rate=44100)
    write(tmp_path / "none.avi", grey_frames(0))
    for name, message in (
        ("zero.mp4", "zero.mp4 is empty"),
        ("text.mp4", "text.mp4 is not a readable video"),
        ("list.mp4", "list.mp4 is not a readable video"),
        ("script.mp4", "script.mp4 is not a readable video"),
        ("sound.mp4", "sound.mp4 has no video stream"),
        ("none.mkv", "none.mkv has a video stream with no readable frame"),
        ("none.avi", "none.avi has a video stream with no readable frame"),
        ("missing.mp4", "no such file"),
        (".", "a folder"),
    ):
        with pytest.raises(MediaError, match=message):
            read_clip(tmp_path / name, every_frame, (16, 16))


def test_a_name_that_looks_like_an_address(
    tmp_path: Path, write: Callable, grey_frames: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "plain.mp4", grey_frames(3)).rename(tmp_path / "http:clip 50%.mp4")
    monkeypatch.chdir(tmp_path)
    assert read_clip("http:clip 50%.mp4", every_frame, (16, 16)).num_frames == 3


def test_is_image() -> None:
    for name in ("a.jpg", "b.JPEG", "c.png", "d.webp", "/x/e.bmp"):
        assert is_image(name) and is_image(Path(name))
    for name in ("a.gif", "b.mp4", "jpg", "c.jpg.mp4"):
        assert not is_image(name)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.webp", "a.gif", "a.jpg"])
def test_read_image(tmp_path: Path, name: str) -> None:
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:10] = (255, 0, 0)
    Image.fromarray(picture).save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert image.shape == (20, 30, 3) and image.dtype == np.uint8
    np.testing.assert_allclose(image[4, 4], (255, 0, 0), atol=4)


def test_read_image_modes_and_orientation(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((4, 6), 77, np.uint8))
    grey.save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.full((4, 6, 3), 77))
    Image.new("RGBA", (6, 4), (1, 2, 3, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").shape == (4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    half = np.zeros((16, 32), np.uint8)
    half[:, :16] = 255
    Image.fromarray(half).save(tmp_path / "turned.png", exif=exif)
    upright = read_image(tmp_path / "turned.png")
    assert upright.shape == (32, 16, 3) and upright[:16].min() == 255 and upright[16:].max() == 0


def test_files_that_are_no_image(tmp_path: Path) -> None:
    (tmp_path / "zero.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name, message in (
        ("zero.png", "zero.png is empty"),
        ("text.png", "text.png cannot be read as an image"),
        ("cut.png", "cut.png cannot be read as an image"),
        ("missing.png", "no such file"),
    ):
        with pytest.raises(MediaError, match=message):
            read_image(tmp_path / name)
