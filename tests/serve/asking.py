"""A server in a thread of this process, how it is asked, and what it is asked about."""

import base64
import contextlib
import dataclasses
import io
import threading
import time
from collections.abc import Iterator

import httpx
import numpy as np
import uvicorn
from PIL import Image

from vljax.serve.app import Server
from vljax.serve.engine import Piece
from vljax.serve.limits import Limits
from vljax.serve.run import config, listen

LIMITS = Limits(file_bytes=1_000_000, seconds=60, pixels=4_000_000, queue=32, patience=2)
HOSTS = frozenset({"127.0.0.1", "localhost"})


@dataclasses.dataclass
class Running:
    server: Server
    url: str
    client: httpx.Client

    def ask(self, *content: dict, **fields) -> httpx.Response:
        message = {"role": "user", "content": list(content)}
        return self.client.post("/v1/chat/completions", json={"messages": [message], **fields})

    def upload(self, data: bytes, name: str = "clip.mp4") -> httpx.Response:
        return self.client.post("/v1/files", files={"file": (name, data)})

    def metric(self, line: str) -> float:
        lines = dict(x.rsplit(" ", 1) for x in self.client.get("/metrics").text.splitlines())
        return float(lines[line])


@contextlib.contextmanager
def run(server: Server) -> Iterator[Running]:
    socket = listen("127.0.0.1", 0)
    host = uvicorn.Server(config(server))
    thread = threading.Thread(target=host.run, args=([socket],))
    thread.start()
    url = f"http://127.0.0.1:{socket.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=300, trust_env=False) as client:
            yield Running(server, url, client)
    finally:
        host.should_exit = True
        thread.join()
        server.close()


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def uploaded(id: str) -> dict:
    return {"type": "file", "file": {"file_id": id}}


def by_url(kind: str, data: bytes, mime: str = "application/octet-stream") -> dict:
    url = f"data:{mime};base64,{base64.b64encode(data).decode()}"
    return {"type": kind, kind: {"url": url}}


def answer(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def told(response: httpx.Response, status: int) -> str:
    """The one sentence of a refusal, in OpenAI's layout; it gives nothing of this machine away."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["code"]
    message = error["message"]
    assert 10 < len(message) < 400 and "\n" not in message
    assert "Traceback" not in message and "/vljax/" not in message
    return message


def until(true, seconds: float = 10.0) -> bool:
    """Whether it becomes true within that time."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((height, width), np.uint8)).save(file, "PNG")
    return file.getvalue()


class Slow:
    """A runner that says "word " until it is told to ``end``, a while between two."""

    def __init__(self, most: int = 2, pause: float = 0.02):
        self.most, self.pause, self.end, self.counts = most, pause, False, {}

    def prompt_tokens(self, ask):
        return 5

    def free(self):
        return self.most - len(self.counts)

    def join(self, asks):
        self.counts |= dict.fromkeys(asks, 1)
        return [(ask, Piece("word ", 1)) for ask in asks]

    def advance(self):
        time.sleep(self.pause)
        pieces = []
        for ask in list(self.counts):
            self.counts[ask] += 1
            pieces.append((ask, Piece("word ", self.counts[ask], "length" if self.end else "")))
            if self.end:
                del self.counts[ask]
        return pieces

    def leave(self, ask):
        self.counts.pop(ask, None)

    def clear(self):
        self.counts.clear()

    def warm(self, show):
        return 0
