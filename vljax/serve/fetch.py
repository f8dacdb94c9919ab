"""Media by URL, from the origins that whoever runs the server has named, and no others."""

import urllib.error
import urllib.request

from vljax.serve.limits import Limits, Refusal


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A named origin must not be able to send the server elsewhere."""

    def redirect_request(self, *_: object) -> None:
        return None


def fetch(url: str, limits: Limits) -> bytes:
    """Blocks. The origin was checked when the request was parsed. Raises Refusal."""
    opener = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=limits.patience) as answer:
            data: bytes = answer.read(limits.file_bytes + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        told = " ".join(str(error).split())
        raise Refusal(422, f"{url[:200]} cannot be fetched: {told}", "unreadable_file") from error
    return data
