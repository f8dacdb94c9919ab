"""What one request may ask for, and how one that asks for more, or wrongly, is told so."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of a request, and of what the server holds at a time.

    Attributes:
      file_bytes: of one file. seconds: of one clip or sound. pixels: of a frame or an image.
      parts: files in one request. text: characters of one request.
      queue: questions that wait or are being answered. batch: answered together.
      gather: seconds that a question waits for others, while some are answered.
      new_tokens: of one answer.
      decoders: processes. decoding: seconds of one file. decoder_memory: bytes of one process.
      kept_bytes: of decoded media that later questions may be about.
      patience: seconds without a byte from a client that is sending.
      fetch_from: origins such as "https://example.org" that URLs of media may have.
    """

    file_bytes: int = 64 << 20
    seconds: float = 600.0
    pixels: int = 40_000_000
    parts: int = 4
    text: int = 20_000
    queue: int = 64
    batch: int = 16
    gather: float = 0.01
    new_tokens: int = 512
    decoders: int = 2
    decoding: float = 20.0
    decoder_memory: int = 4 << 30
    kept_bytes: int = 256 << 20
    patience: float = 20.0
    fetch_from: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "fetch_from" and value <= 0:
                raise ValueError(f"{field.name}: got {value}, expected more than 0")

    @property
    def body_bytes(self) -> int:
        """Of one request: a file in base64, with room for the rest."""
        return self.file_bytes * 4 // 3 + (1 << 20)

    @property
    def all_bodies(self) -> int:
        """Of the requests that are being received."""
        return 4 * self.body_bytes


class Refusal(Exception):
    """A request that is not answered: an HTTP status and one sentence, in OpenAI's layout."""

    def __init__(self, status: int, told: str, code: str, param: str | None = None):
        super().__init__(told)
        self.status, self.told, self.code, self.param = status, told, code, param

    def body(self) -> dict[str, object]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        error = {"message": self.told, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        return {"Retry-After": "1"} if self.status in (429, 503) else {}


def wrong(told: str, param: str | None = None) -> Refusal:
    """A request that says something it may not."""
    return Refusal(400, told, "invalid_value", param)


def require_type(headers: Mapping[str, str], expected: str) -> None:
    """Also keeps forms of other pages out, which browsers send without asking."""
    got = headers.get("content-type", "").partition(";")[0].strip().lower()
    if got != expected:
        raise Refusal(415, f"content-type: got {got[:80]!r}, expected {expected}", "content_type")
