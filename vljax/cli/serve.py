"""``vljax serve``: OpenAI's chat completions over HTTP, and a page to talk to."""

import argparse
import functools
import sys
from collections.abc import Sequence

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    require_libraries()
    from vljax.generate.chat import load
    from vljax.serve.app import Server
    from vljax.serve.limits import Limits
    from vljax.serve.run import listen, serve

    limits = Limits(
        file_bytes=int(args.max_megabytes * 1e6),
        seconds=args.max_seconds,
        queue=args.queue,
        batch=args.batch,
        new_tokens=args.max_new_tokens,
        decoders=args.decoders,
        decoding=args.decode_seconds,
        fetch_from=tuple(args.fetch_from),
    )
    told = functools.partial(print, file=sys.stderr)
    socket = listen(args.host, args.port)  # before the weights: a taken port is told at once
    model = load(
        args.model, args.dtype, quantise=args.quantise, quantise_vit=args.quantise_vit, tell=told
    )
    hosts = LOOPBACK if args.host in LOOPBACK else frozenset[str]()
    if not hosts:
        told(
            f"{args.host} may be reached from elsewhere, and whoever reaches it may ask: "
            "put a proxy that knows its users before it"
        )
    server = Server(model.engine, args.name or str(args.model), limits, hosts)
    serve(server, socket, warm=not args.cold, tell=told)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vljax serve", description=__doc__)
    add = parser.add_argument
    add("--model", default="tiny", help='"tiny" or a folder of weights')
    add("--name", default="", help="what requests call it; else as --model says")
    add("--host", default="127.0.0.1", help="to listen on; only this machine by default")
    add("--port", type=int, default=8000, help="0 is any free one (8000)")
    add("--dtype", choices=("bfloat16", "float32"), help="to compute in; else as the folder says")
    add("--quantise", choices=("int8", "int4"), default="", help="to hold the language model in")
    add("--quantise-vit", choices=("int8",), default="", help="to hold the image encoder in")
    add("--batch", type=int, default=16, help="most questions answered together (16)")
    add("--queue", type=int, default=64, help="most questions that wait or are answered (64)")
    add("--max-new-tokens", type=int, default=512, help="most of one answer (512)")
    add("--max-megabytes", type=float, default=64, help="of one file (64)")
    add("--max-seconds", type=float, default=600, help="of one clip or sound (600)")
    add("--decoders", type=int, default=2, help="decoding processes (2)")
    add("--decode-seconds", type=float, default=20, help="most for one file (20)")
    add(
        "--fetch-from",
        action="append",
        default=[],
        type=origin,
        metavar="ORIGIN",
        help="fetch media by URL from there, as in https://example.org; may be repeated; else none",
    )
    add("--cold", action="store_true", help="compile when questions come, not beforehand")
    return parser.parse_args(argv)


def origin(text: str) -> str:
    import urllib.parse

    parts = urllib.parse.urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path not in ("", "/"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected one like https://example.org")
    return f"{parts.scheme}://{parts.netloc}".lower()


def require_libraries() -> None:
    try:
        import multipart  # noqa: F401
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{error.name} is not installed, which serving needs: pip install 'vljax[serve]'"
        ) from error
