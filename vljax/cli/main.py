"""``vljax VERB ...``: finds the verb's file, and turns errors users can mend into one sentence."""

import importlib
import os
import signal
import sys
from collections.abc import Sequence

VERBS = {
    "chat": "ask about a clip or an image",
    "serve": "answer over HTTP, as OpenAI's API does, with a page to talk to",
    "run": "answer a file of questions, in batches",
    "probe": "what an answer rests on: the picture, the sound, or the question alone",
    "train": "run a stage, or all of them",
    "encode": "run the frozen towers over all media once, to train from what they make",
    "plan": "which sharding strategy fits which machine, before it is rented",
    "evaluate": "measure answers",
    "doctor": "look weights over before they are converted or loaded",
    "convert": "turn published weights into a folder of ours, or back",
    "parity": "compare with the original's numbers",
    "data": "check, preview or prepare a data set",
    "bench": "measure speed",
    "make-world": "write a tiny world of clips to learn from",
}

DATA = ("tensorflow", "tensorflow_datasets")  # which [data] brings, for the verbs that need them


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit code: 0, 1 for an error told in a sentence, 2 for usage."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # Small products in data preparation are several times slower on many BLAS threads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from vljax import __version__

        print(f"vljax {__version__}")
        return 0
    if argv[0] not in VERBS:
        print(f"vljax: got {argv[0]!r}, expected one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    verb = importlib.import_module(f"vljax.cli.{argv[0].replace('-', '_')}")
    try:
        return verb.main(argv[1:]) or 0
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in DATA or os.environ.get("VLJAX_TRACEBACK"):
            raise
        needed = f"{package} is not installed, which this needs: pip install 'vljax[data]'"
        print(f"vljax {argv[0]}: {needed}", file=sys.stderr)
        return 1
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("VLJAX_TRACEBACK"):
            raise
        print(f"vljax {argv[0]}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        # Of a training run: the signal, and what is saved.
        number, *told = stop.args if len(stop.args) == 2 else (signal.SIGINT,)
        print(f"vljax {argv[0]}: stopped", *told, file=sys.stderr)
        return 128 + number


def usage() -> str:
    lines = [f"  {name:12} {what}" for name, what in VERBS.items()]
    return "\n".join(["usage: vljax VERB [...]   (vljax VERB --help says more)", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
