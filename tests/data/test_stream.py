"""Streams: which pictures are taken, what is lost where nobody takes them, and how they end."""

import http.server
import itertools
import os
import threading
import time
from types import SimpleNamespace

import av
import numpy as np
import pytest

from vljax.data.stream import Clock, Picture, Ring, Sampler, Sound, Source
from vljax.data.video import MediaError
from vljax.data.world.files import write_clip

SIZE = (48, 48)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Three seconds at 8 frames a second, of which the n-th has the brightness 10 * n."""
    path = tmp_path_factory.mktemp("stream") / "a.mp4"
    frames = (
        np.full((24, 48, 48, 3), 10, np.uint8) * np.arange(24, dtype=np.uint8)[:, None, None, None]
    )
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 48000).astype(np.float32)
    write_clip(path, frames, wave)
    return path


def split(pieces):
    pieces = list(pieces)
    return [[p for p in pieces if isinstance(p, kind)] for kind in (Picture, Sound)]


def test_pictures_come_at_the_rate_that_is_asked_for(clip):
    pictures, sounds = split(Source(str(clip), SIZE, 2.0).pieces())
    assert [p.seconds for p in pictures] == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5], abs=0.01)
    shown = [p.pixels.mean() for p in pictures]
    assert shown == pytest.approx([0, 40, 80, 120, 160, 200], abs=4)
    assert sounds[0].rate == 16000
    for before, after in itertools.pairwise(sounds):
        assert after.seconds == pytest.approx(before.end, abs=1e-3)
    assert sounds[-1].end == pytest.approx(3, abs=0.1)


def test_one_of_both_may_be_left_out(clip):
    assert not split(Source(str(clip), SIZE, 2.0, look=False).pieces())[0]
    assert not split(Source(str(clip), SIZE, 2.0, listen=False).pieces())[1]


@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        ([0, 0.25, 0.5, 0.75, 1], [0, 0.5, 1]),
        ([0.1, 0.4, 0.6, 0.7, 1.9, 2.0], [0.1, 0.6, 1.9, 2.0]),
        ([0, 3.2, 3.3, 3.6], [0, 3.2, 3.6]),
        ([0.4995, 0.9999], [0.4995, 0.9999]),
    ],
)
def test_which_pictures_are_taken(times, wanted):
    sampler = Sampler(2.0)
    assert [t for t in times if sampler.wants(t)] == wanted


def frame(seconds: float | None):
    return SimpleNamespace(time=seconds, duration=1, time_base=0.5)


@pytest.mark.parametrize(
    ("stamps", "seconds"),
    [
        ([70, 70.5, 71], [0, 0.5, 1]),
        ([70, 70.5, 3, 3.5], [0, 0.5, 1, 1.5]),  # an encoder that was started anew
        ([0, 0.5, 9000, 9000.5], [0, 0.5, 1, 1.5]),
        ([None, None, None], [0, 0.5, 1]),
        ([0, 4, 4.5], [0, 4, 4.5]),  # a gap is a gap
    ],
)
def test_time_stamps_are_mended(stamps, seconds):
    clock = Clock()
    assert [clock(0, frame(s)) for s in stamps] == seconds


class Tap:
    """A source of pictures that come without a pause; ``waits`` as a file's."""

    name, waits = "tap", False

    def __init__(self, count: int, error: str = "", waits: bool = False):
        self.count, self.error, self.waits = count, error, waits
        self.made = 0

    def pieces(self):
        for i in range(self.count):
            self.made += 1
            yield Picture(float(i), np.zeros((1, 1, 3), np.uint8))
        if self.error:
            raise MediaError(self.error)


def until(true) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_nobody_takes_in_time_is_dropped_and_counted():
    with Ring(Tap(100), room=8) as ring:
        until(lambda: ring.ended)
        assert [p.seconds for p in ring] == list(range(92, 100))
    assert ring.dropped == 92
    assert ring.ended == "tap: the stream ended after 99 s"


def test_a_file_at_full_speed_waits():
    tap = Tap(50, waits=True)
    with Ring(tap, room=4, speed=0) as ring:
        until(lambda: tap.made == 5)
        time.sleep(0.05)
        assert tap.made == 5
        assert [p.seconds for p in ring] == list(range(50))
    assert ring.dropped == 0


def test_a_file_goes_at_its_pace():
    began = time.monotonic()
    with Ring(Tap(4, waits=True), room=4, speed=10.0) as ring:
        assert len(list(ring)) == 4
    assert time.monotonic() - began >= 0.3


def test_who_leaves_ends_the_reading():
    tap = Tap(10**9, waits=True)
    with Ring(tap, room=4, speed=0):
        until(lambda: tap.made == 5)
    until(lambda: not any(t.name == "stream" for t in threading.enumerate()))


def test_a_stream_that_breaks_off_is_told():
    with Ring(Tap(3, "tap broke off (no data for 10 s)"), room=9) as ring:
        assert len(list(ring)) == 3
    assert ring.ended == "tap broke off (no data for 10 s); it was followed for 2 s"


def test_a_stream_that_never_begins_is_an_error():
    with (
        Ring(Tap(0, "tap can't be opened"), room=9) as ring,
        pytest.raises(MediaError, match=r"^tap can't be opened$"),
    ):
        list(ring)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "http://127.0.0.1:9/a.ts",
            r"^http://127.0.0.1:9/a.ts can't be opened as a stream \(.*refused",
        ),
        ("nowhere.mkv", "nowhere.mkv: got no such file"),
        ("gopher://a/b", "gopher://a/b can't be opened as a stream"),
        ("file:///etc/hostname", "can't be opened as a stream"),
    ],
)
def test_a_stream_that_is_not_there(name, sentence):
    with pytest.raises(MediaError, match=sentence):
        list(Source(name, SIZE, 2.0).pieces())


@pytest.fixture(scope="module")
def transport(clip):
    """The clip as broadcasts are sent."""
    path = clip.with_suffix(".ts")
    with av.open(str(clip)) as given, av.open(str(path), "w", format="mpegts") as out:
        streams = {s.index: out.add_stream_from_template(s) for s in given.streams}
        for packet in given.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    return path


def test_a_named_pipe(transport, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(transport.read_bytes()), daemon=True)
    writer.start()
    with Ring(Source(str(pipe), SIZE, 2.0), room=99) as ring:
        pictures, _ = split(ring)
    assert [p.seconds for p in pictures] == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5], abs=0.1)
    assert ring.ended.startswith(f"{pipe}: the stream ended after ")


def test_a_device():
    made = "testsrc=size=64x48:rate=8:duration=2[out0];sine=sample_rate=8000:duration=2[out1]"
    pictures, sounds = split(Source(f"lavfi:{made}", SIZE, 2.0).pieces())
    assert [p.seconds for p in pictures] == pytest.approx([0, 0.5, 1, 1.5])
    assert (sounds[0].rate, sounds[-1].end) == (8000, pytest.approx(2))


@pytest.fixture
def served(transport):
    """A URL of the clip."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(transport.stat().st_size))
            self.end_headers()
            self.wfile.write(transport.read_bytes())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/live"
        server.shutdown()


def test_a_url(served):
    pictures, sounds = split(Source(served, SIZE, 2.0).pieces())
    assert [p.seconds for p in pictures] == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5], abs=0.1)
    assert sounds[-1].end == pytest.approx(3, abs=0.1)
