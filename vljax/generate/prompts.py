"""Prompts as the model gets them, without its weights."""

import dataclasses
import itertools
from pathlib import Path

from vljax import store
from vljax.data.text import TEMPLATES
from vljax.data.tokenizer import Tokenizer
from vljax.generate.engine import LENGTHS, Engine, Request, manifest_of_model
from vljax.models.sizes import size_of


class Prompter(Engine):
    """What of an engine makes prompts: reads the manifest and the tokenizer, and no weights."""

    def __init__(self, folder: str | Path):
        manifest = manifest_of_model(Path(folder))
        self.size = size_of(manifest)
        self.tokenizer = Tokenizer(folder, self.size.llama.vocab)
        self.template = TEMPLATES[manifest["template"]]
        self.params = store.unflatten(dict(store.stored(folder)[0]))  # whose names tell the senses


def show_prompt(engine: Engine, request: Request, max_new_tokens: int) -> str:
    """The prompt's text, and a line of its ids, media's placeholders as ``<ImageHere> x 32``."""
    ids = engine.prompt_ids(request, LENGTHS[-1] - max_new_tokens)
    # A long conversation loses its oldest turns.
    while request.history and len(engine.prompt_ids(request, 10**9)) > len(ids):
        request = dataclasses.replace(request, history=request.history[2:])
    here = engine.tokenizer.image_here
    runs = ((i, len(list(run))) for i, run in itertools.groupby(ids))
    told = [f"<ImageHere> x {n}" if i == here else " ".join([str(i)] * n) for i, n in runs]
    counts = f"{len(ids)} tokens, {ids.count(here)} of them media"
    return f"{engine.prompt(request)}\n{counts}: {' '.join(told)}"
