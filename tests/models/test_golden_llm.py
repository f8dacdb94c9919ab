"""What the parity command leaves open of LLaMA: that its comparison would notice a wrong size."""

import dataclasses

import jax

from vljax.convert.parity import relative_error
from vljax.models.video_llama import VideoLlama

TOLERANCE = 1e-4


def from_embeddings(model: VideoLlama, embeddings: jax.Array, mask: jax.Array):
    return model.llama.logits(model.llama(embeddings, mask)[0])


def test_the_eps_of_the_norms_is_noticed(golden):
    """Llama-2's eps in place of LLaMA-1's, or another rotary base, is seen in the logits."""
    arrays = golden.arrays("llm")
    case = next(n.removesuffix("/logits") for n in arrays if n.endswith("/logits"))
    embeddings, mask = (arrays[f"{case}/{x}"] for x in ("inputs_embeds", "attention_mask"))
    for change in ({}, {"eps": golden.size.llama.eps * 100}, {"rope_base": 20000.0}):
        llama = dataclasses.replace(golden.size.llama, **change)
        model = VideoLlama(dataclasses.replace(golden.size, llama=llama))
        logits = model.apply({"params": golden.params}, embeddings, mask, method=from_embeddings)
        off = relative_error(logits, arrays[f"{case}/logits"])
        assert (off > TOLERANCE) == bool(change), change
