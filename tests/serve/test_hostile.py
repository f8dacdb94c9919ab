"""What is broken, too large or meant to harm gets a 4xx and one clear sentence."""

import base64
import gzip
import http.client
import io
import json
import os
import socket
import struct
import time
import zipfile
import zlib

import av
import numpy as np
import pytest

from tests.serve.asking import LIMITS, answer, by_url, png, text, told, until, uploaded

WHAT = text("What happens?")
HOURS = 36_000  # seconds


def header_tells(clip: bytes, seconds: int) -> bytes:
    """The mp4 with another duration in every box that has one."""
    changed = bytearray(clip)
    for box, at in ((b"mvhd", 16), (b"mdhd", 16)):  # a scale, then a duration in units of it
        place = -1
        while (place := clip.find(box, place + 1)) >= 0:
            scale = struct.unpack_from(">I", clip, place + at)[0]
            struct.pack_into(">I", changed, place + at + 4, min(seconds * scale, 2**32 - 1))
    return bytes(changed)


def stretched(seconds: int, format: str = "matroska") -> bytes:
    """Two frames, so far apart."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as out:
        stream = out.add_stream("mpeg4", rate=1)
        stream.width = stream.height = 16
        for at in (0, seconds):
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")
            frame.pts = at
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def huge_png(side: int) -> bytes:
    """A bomb: a few kilobytes that unpack to side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(1 + side // 8)) for _ in range(side)) + rows.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", data), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("clip.mp4", data)
    return file.getvalue()


BROKEN = {  # name: (bytes of a clip -> the file, status, part of the sentence)
    "html": (lambda clip: b"<!DOCTYPE html><script>alert(1)</script>", 422, "an HTML or XML page"),
    "svg": (lambda clip: b"\xef\xbb\xbf <svg><image href='file:///etc/passwd'/></svg>", 422, "XML"),
    "zip bomb": (lambda clip: zipped(bytes(20_000_000)), 422, "a zip archive"),
    "gzip bomb": (lambda clip: gzip.compress(bytes(20_000_000)), 422, "gzip data"),
    "half": (lambda clip: clip[: len(clip) // 2], 422, "not a readable"),
    "half webm": (lambda clip: stretched(40)[:300], 422, ""),
    "empty": (lambda clip: b"", 422, "0 bytes"),
    "noise": (lambda clip: np.random.default_rng(0).bytes(5000), 422, "not a readable"),
    "playlist": (lambda clip: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", 422, "a playlist"),
    "list of files": (lambda clip: b"ffconcat version 1.0\nfile /etc/passwd\n", 422, "readable"),
    "sdp": (lambda clip: b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\n", 422, "readable"),
    "ten hours told": (
        lambda clip: header_tells(clip, HOURS),
        413,
        "36,000 s, expected at most 60",
    ),
    "ten hours held": (lambda clip: stretched(HOURS), 413, "s, expected at most 60"),
    "png bomb": (lambda clip: huge_png(40_000), 413, "pixels"),
    "large png": (lambda clip: png(3000, 3000), 413, "3000 x 3000 pixels"),
    "large file": (lambda clip: clip + bytes(LIMITS.file_bytes), 413, "expected at most 1,000,000"),
    "half a png": (lambda clip: png(300, 300)[:60], 422, ""),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_told_in_a_sentence(running, clip, kind):
    make, status, part = BROKEN[kind]
    assert part in told(running.upload(make(clip), "clip.mp4"), status)
    assert running.client.get("/health").json()["taken"] == 0


def test_a_broken_file_in_a_message_is_told_as_well(running, clip):
    assert "zip" in told(running.ask(by_url("video_url", zipped(clip), "video/mp4"), WHAT), 422)
    large = by_url("video_url", clip + bytes(LIMITS.file_bytes))
    assert "messages[0].content[0]" in told(running.ask(large, WHAT), 413)


def test_files_with_a_few_wrong_bytes_never_fail_the_server(running, clip):
    rng, seen = np.random.default_rng(0), set()
    for _ in range(12):
        bent = np.frombuffer(clip, np.uint8).copy()
        bent[rng.integers(0, len(bent), 40)] = rng.integers(0, 256, 40)
        response = running.upload(bent.tobytes())
        seen.add(response.status_code)
        if response.status_code != 200:
            told(response, response.status_code)
    assert seen <= {200, 413, 422}


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../../etc/cron.d/evil.mp4", "evil.mp4"),
        ("..\\..\\evil.mp4", "evil.mp4"),
        ("/root/.ssh/authorized_keys", "authorized_keys"),
        ("..", "the file"),
        ("a\u202e4pm.exe", "a4pm.exe"),
        ("line\nbreak\x00.mp4", "linebreak.mp4"),
        ("x" * 500 + ".mp4", "x" * 80),
        ("<img src=x onerror=alert(1)>.mp4", None),
    ],
)
def test_a_name_is_only_a_label(running, clip, name, kept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    boundary = b"x1y2"
    quoted = name.replace("\n", "\\n") if "\n" in name else name
    form = b'--%b\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n\r\n' % (
        boundary,
        quoted.replace("\\n", "").encode(),
    )
    body = form + clip + b"\r\n--" + boundary + b"--\r\n"
    headers = {"content-type": f"multipart/form-data; boundary={boundary.decode()}"}
    response = running.client.post("/v1/files", content=body, headers=headers)
    assert response.status_code == 200, response.text
    shown = response.json()["filename"]
    assert shown == (kept or name.replace("\n", "")) and not os.listdir(tmp_path)
    assert answer(running.ask(uploaded(response.json()["id"]), WHAT)) == "A green car moves left."


WRONG = {
    "no JSON": b"{",
    "a list": b"[]",
    "a deep one": b"[" * 100_000,
    "no messages": b"{}",
    "no text": json.dumps({"messages": [{"role": "user", "content": []}]}).encode(),
    "a number": json.dumps({"messages": [{"role": "user", "content": 5}]}).encode(),
    "a role": json.dumps({"messages": [{"role": "tool", "content": "x"}]}).encode(),
    "an answer last": json.dumps({"messages": [{"role": "assistant", "content": "x"}]}).encode(),
    "too long": json.dumps({"messages": [{"role": "user", "content": "x " * 9000}]}).encode(),
    "longer": json.dumps({"messages": [{"role": "user", "content": "x" * 30_000}]}).encode(),
    "half a character": rb'{"messages": [{"role": "user", "content": "\ud800"}]}',
    "a placeholder": b'{"messages": [{"role": "user", "content": "<ImageHere>"}]}',
    "not base64": json.dumps(
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,*"}},
                        WHAT,
                    ],
                }
            ]
        }
    ).encode(),
}
FIELDS = {
    "temperature": ["hot", -1, 3, True, 1e400],
    "max_tokens": [0, -1, 10**9, 2**70, 1.5],
    "top_p": [0, 1.1, "x"],
    "seed": ["x", 2**70],
    "stream": ["yes"],
    "n": [2],
    "tools": [[{}]],
    "no_such_field": [1],
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_body_is_told_in_a_sentence(running, kind):
    headers = {"content-type": "application/json"}
    response = running.client.post("/v1/chat/completions", content=WRONG[kind], headers=headers)
    told(response, 400)


@pytest.mark.parametrize("name", FIELDS)
def test_a_wrong_field_is_named(running, name):
    for value in FIELDS[name]:
        asked = {"messages": [{"role": "user", "content": "x"}], name: value}
        headers = {"content-type": "application/json"}
        body = json.dumps(asked)
        response = running.client.post("/v1/chat/completions", content=body, headers=headers)
        assert name in told(response, 400), value


def test_pages_from_elsewhere_may_not_ask(running, clip):
    post, asked = running.client.post, {"messages": [{"role": "user", "content": "x"}]}
    chat = "/v1/chat/completions"
    assert "not a page" in told(post(chat, json=asked, headers={"origin": "http://evil.com"}), 403)
    assert "not a name" in told(post(chat, json=asked, headers={"host": "evil.com:8000"}), 403)
    told(post(chat, content=json.dumps(asked), headers={"content-type": "text/plain"}), 415)
    gzipped = gzip.compress(json.dumps(asked).encode())
    told(post(chat, content=gzipped, headers={"content-encoding": "gzip"}), 415)
    page = running.client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    for path in ("/../setup.py", "/%2e%2e/%2e%2e/setup.py", "/page.js/../app.py", "/v1/nothing"):
        told(running.client.get(path), 404)


def test_a_body_beyond_the_limit_is_refused_before_it_is_kept(running):
    def endless():
        while True:
            yield bytes(1 << 16)

    host, port = running.url.removeprefix("http://").split(":")
    line = http.client.HTTPConnection(host, int(port), timeout=30)
    line.putrequest("POST", "/v1/files")
    line.putheader("content-type", "multipart/form-data; boundary=x")
    line.putheader("content-length", str(10**12))
    line.endheaders()
    response = line.getresponse()  # without a byte of the body
    assert response.status == 413 and "smaller" in response.read().decode()
    line.close()
    assert until(lambda: running.client.get("/health").status_code == 200)


def test_a_client_that_sends_nothing_more_is_let_go(running):
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as line:
        line.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n"
            b"content-type: application/json\r\n\r\n{"
        )
        began = time.monotonic()
        assert b" 408 " in line.recv(1000).split(b"\r\n")[0]
        assert LIMITS.patience - 0.5 < time.monotonic() - began


def test_a_data_url_is_what_its_bytes_are(running, clip):
    """Whatever type it claims."""
    assert answer(running.ask(by_url("video_url", clip, "text/html"), WHAT)) == (
        "A green car moves left."
    )
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"<html>").decode()}}
    assert "HTML" in told(running.ask(part, WHAT), 422)
