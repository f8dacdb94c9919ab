"""Files in a message: data URLs, uploads by their name, and URLs where these may be fetched."""

import base64
import binascii
import dataclasses
import urllib.parse
from typing import Any

from vljax.serve.fields import short, text
from vljax.serve.limits import Limits, Refusal, wrong


@dataclasses.dataclass(frozen=True)
class Part:
    """A file in a message: its bytes, or a name of it here (``file_id``) or elsewhere (``url``)."""

    kind: str
    name: str
    data: bytes = b""
    file_id: str = ""
    url: str = ""


def _from_url(kind: str, value: dict[str, Any], at: str, limits: Limits) -> Part:
    url = text(value, "url") or ""
    name = f"the {kind.removesuffix('_url')}"
    if url[:5].lower() == "data:":
        return Part(kind, name, _data_url(url, at, limits))
    return Part(kind, name, url=_fetchable(url, at, limits))


def _from_audio(kind: str, value: dict[str, Any], at: str, limits: Limits) -> Part:
    data = text(value, "data") or ""
    return Part(kind, "the sound", _base64(data, at, limits))


def _from_file(kind: str, value: dict[str, Any], at: str, limits: Limits) -> Part:
    given = text(value, "file_data")
    if given is not None:
        name = text(value, "filename") or "the file"
        return Part(kind, name, _data_url(given, at, limits))
    file_id = text(value, "file_id")
    if not file_id:
        raise wrong(f"{at}.file: expected file_id, of an upload to /v1/files, or file_data", at)
    return Part(kind, file_id, file_id=file_id)


PARTS = {
    "image_url": _from_url,
    "video_url": _from_url,
    "input_audio": _from_audio,
    "file": _from_file,
}


def _data_url(url: str, at: str, limits: Limits) -> bytes:
    """Whatever type it claims: what it is, its bytes tell."""
    head, comma, data = url.partition(",")
    if head[:5].lower() != "data:" or not comma or not head.lower().endswith(";base64"):
        raise wrong(f"{at}: expected a URL like data:video/mp4;base64,AAAA", at)
    return _base64(data, at, limits)


def _base64(data: str, at: str, limits: Limits) -> bytes:
    if len(data) * 3 // 4 > limits.file_bytes + 3:
        raise Refusal(
            413,
            f"{at}: got a file of about {len(data) * 3 // 4:,} bytes, expected at most "
            f"{limits.file_bytes:,}: send a smaller one",
            "file_too_large",
            at,
        )
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise wrong(f"{at}: its base64 cannot be read ({error})", at) from error


def _fetchable(url: str, at: str, limits: Limits) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}".lower()
    except ValueError:
        origin = ""
    if not origin or origin not in limits.fetch_from:
        raise wrong(
            f"{at}: got {short(url)}, which is not fetched: send the file itself as a data: URL, "
            "or upload it to /v1/files and name it as a file part",
            at,
        )
    return url
