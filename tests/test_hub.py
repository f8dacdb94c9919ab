"""A hub's files, from a server on this machine that speaks its protocol and breaks off."""

import hashlib
import http.server
import json
import threading
import time
from unittest import mock

import numpy as np
import pytest

from vljax.hub import choose, fetch
from vljax.obtain import obtain
from vljax.store import WeightsError

constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CUT = 150_000
NOWHERE = "http://127.0.0.1:1"
FILES = {
    "manifest.json": b'{"size": "tiny"}',
    "tokenizer.model": b"pieces",
    "params/d/large": np.random.default_rng(0).bytes(400_000),
    "params/manifest.ocdbt": b"index",
    "README.md": b"# A model",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """The calls that a download makes; the first answer with the large file breaks off."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, str | None]]

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.seen.append((self.command, path, self.headers.get("Range")))
        if path.startswith("/api/models/someone/model"):
            self._api(path)
        elif path.startswith(f"/someone/model/resolve/{COMMIT}/"):
            self._file(path.partition(COMMIT + "/")[2])
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _api(self, path):
        tree = [
            {"type": "file", "path": name, "size": len(x), "oid": hashlib.sha1(x).hexdigest()}
            for name, x in FILES.items()
        ]
        info = {"id": "someone/model", "sha": COMMIT, "siblings": []}
        self._send(200, json.dumps(tree if "/tree/" in path else info).encode())

    def _file(self, name):
        data = FILES[name]
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        begin, asked = 0, self.headers.get("Range")
        if asked:
            begin = int(asked.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        broken = name.endswith("large") and self.command == "GET" and not asked
        self._send(206 if asked else 200, data[begin:], headers, CUT if broken else None)

    def _send(self, status, body, headers=(), cut=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The server, and ``huggingface_hub`` told to ask it."""
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.seen = []
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{made.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    at_once = mock.Mock(wraps=time, sleep=lambda _: None)  # between one attempt and the next
    monkeypatch.setattr("huggingface_hub.utils._http.time", at_once)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CUT // 3)  # else larger than the files
    yield made
    made.shutdown()
    made.server_close()


def test_a_download_that_breaks_off_is_taken_up_where_it_broke(server, monkeypatch):
    told = []
    folder = obtain("someone/model", tell=told.append)
    assert told == ["someone/model: 5 files of the hub's someone/model"]
    for name, data in FILES.items():
        assert (folder / name).read_bytes() == data
    asked = [r for method, path, r in Hub.seen if method == "GET" and path.endswith("large")]
    assert asked == [None, f"bytes={CUT}-"]
    # Without the hub, what was fetched serves.
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    before = len(Hub.seen)
    assert obtain("someone/model") == folder
    assert len(Hub.seen) == before


def test_what_the_hub_does_not_have(server, monkeypatch):
    with pytest.raises(WeightsError, match="nobody/none: there is no such file or folder, and the"):
        fetch("nobody/none", print)
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    with pytest.raises(WeightsError, match="the hub can't be asked"):
        fetch("someone/other", print)


REPOSITORY = (
    "README.md",
    "VL.pth",
    "llama/config.json",
    "llama/tokenizer.model",
    "llama/model.safetensors.index.json",
    "llama/model-00001-of-00001.safetensors",
    "llama/pytorch_model.bin.index.json",
    "llama/pytorch_model-00001-of-00001.bin",
    "llama/consolidated.00.pth",
    "llama/training_args.bin",
)


def test_one_format_of_each_file_is_fetched():
    assert choose("a/b", REPOSITORY) == list(REPOSITORY[1:6])
    assert choose("a/b/VL.pth", REPOSITORY, "VL.pth") == ["VL.pth"]
    with pytest.raises(WeightsError, match="a/b: holds no weights among 1 files"):
        choose("a/b", REPOSITORY[:1])
    with pytest.raises(WeightsError, match=r"holds 2 GGUF files.* such as a/b/x\.gguf"):
        choose("a/b@main", ["x.gguf", "y.gguf"])
