"""Captions and conversations: ids, labels and masks, and LLaMA's logits and losses on them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vljax.convert.parity.compare import EXACT, Check
from vljax.convert.parity.golden import GoldenSet
from vljax.data.text import (
    IGNORE,
    LLAMA2,
    VICUNA,
    TextExample,
    caption_example,
    collate,
    conversation_example,
)
from vljax.data.tokenizer import IMAGE_HERE, LLAMA
from vljax.models.video_llama import VideoLlama
from vljax.train.objectives import language_loss

TEMPLATES = {"vicuna": VICUNA, "llama_v2": LLAMA2, "llama2": LLAMA2}
BUCKET = 128  # lengths are padded to a multiple of it, so that few programs are compiled

Batch = dict[str, np.ndarray]


def language(golden: GoldenSet, check: Check) -> None:
    """The part of llm.npz that training sees."""
    for prefix in check.cases("labels"):
        case = prefix.rstrip("/")
        with check.attempt(case):
            if case.startswith("ids/"):
                example = conversation(golden, case.removeprefix("ids/"))
                check(f"{case}/input_ids", example.tokens, EXACT)
                check(f"{case}/labels", example.labels, EXACT)
            elif case.startswith("multi_"):
                tag = case.removeprefix("multi_")
                _case(golden, check, case, conversations(golden, tag), tag.split("_")[0])
            elif case.startswith("caption_"):
                kind = "video" if case == "caption_noprompt" else "image"
                _case(golden, check, case, captions(golden, case), kind)


def conversation(golden: GoldenSet, name: str) -> TextExample:
    """Tokens and labels of one record, such as "video_vicuna/0"."""
    case = golden.texts["conversations"][name]
    turns = [(t["from"], t["value"]) for t in case["sources"]]
    template = TEMPLATES[case["model_type"]]
    return conversation_example(golden.tokenizer, turns, template, case["n_query"])


def conversations(golden: GoldenSet, tag: str) -> list[TextExample]:
    """All records of a tag, in order."""
    names = [n for n in golden.texts["conversations"] if n.rsplit("/", 1)[0] == tag]
    ordered = sorted(names, key=lambda n: int(n.rsplit("/", 1)[1]))
    return [conversation(golden, name) for name in ordered]


def captions(golden: GoldenSet, case: str, limit_of: str | None = None) -> list[TextExample]:
    """The caption texts as ``case`` has them; ``limit_of`` names another case's length limit."""
    c = golden.texts["caption"]
    prompt = None
    if case != "caption_noprompt":
        line = next(x for x in c["prompt_file_lines"] if IMAGE_HERE in x)
        prompt = c[case.replace("caption", "template")].format(line)
    return [
        caption_example(
            golden.tokenizer,
            text,
            golden.config["n_video_query"],
            prompt,
            c["end_sym"][case],
            c["max_txt_len"][limit_of or case],
        )
        for text in c["texts"]
    ]


def batch_of(examples: Sequence[TextExample]) -> Batch:
    """``collate`` at the longest one's length."""
    return collate(examples, max(len(e.tokens) for e in examples))


def _case(
    golden: GoldenSet, check: Check, case: str, examples: list[TextExample], kind: str
) -> None:
    """Everything a case has, from its texts and from what our branch makes of its media."""
    batch = batch_of(examples)
    length = batch["tokens"].shape[1]
    check(f"{case}/input_ids", batch["tokens"], EXACT)
    check(f"{case}/labels", batch["labels"], EXACT)
    check(f"{case}/pad_mask", batch["mask"], EXACT)
    check(f"{case}/attention_mask", batch["mask"], EXACT)
    check(f"{case}/seq_len", length, EXACT)
    media = golden.soft_prompts[kind]
    (embeddings, logits, loss), _ = golden.apply(forward, _padded(batch), media)
    check(f"{case}/inputs_embeds", embeddings[:, :length])
    check(f"{case}/logits", logits[:, :length])
    check(f"{case}/loss", loss)


def forward(
    model: VideoLlama, batch: Batch, media: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Embeddings [B, L, D], logits [B, L, V] and the loss."""
    embeddings = model.splice(jnp.asarray(batch["tokens"]), media)
    logits = model.llama.logits(model.llama(embeddings, jnp.asarray(batch["mask"]))[0])
    return embeddings, logits, language_loss(logits, jnp.asarray(batch["labels"]))[0]


def _padded(batch: Batch) -> Batch:
    """The batch with padding up to a multiple of BUCKET, which changes no number before it."""
    width = -batch["tokens"].shape[1] % BUCKET
    fill = {"tokens": LLAMA.pad, "labels": IGNORE, "mask": False}
    return {
        name: np.pad(x, ((0, 0), (0, width)), constant_values=fill[name])
        for name, x in batch.items()
    }
