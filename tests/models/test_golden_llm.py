"""The original's LLaMA: logits, losses and greedy decoding on the embeddings it was given."""

import dataclasses

import jax
import numpy as np
import pytest

from vljax.convert.parity import relative_error
from vljax.models.video_llama import VideoLlama

IGNORE = -100
TOLERANCE = 1e-4
# Which arrays of the visual branch the conversation cases are about.
MEDIA = {"video": "llama_proj_out", "image": "image_as_1frame/llama_proj_out"}


def from_embeddings(model: VideoLlama, embeddings: jax.Array, mask: jax.Array):
    return model.llama.logits(model.llama(embeddings, mask)[0])


def decode(model: VideoLlama, embeddings, mask, positions, cache):
    hidden, cache = model.decode(embeddings, mask, positions, cache)
    return model.llama.logits(hidden), cache


def loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Shifted cross-entropy, mean over labels that are not ignored."""
    log_probs = jax.nn.log_softmax(logits[:, :-1])
    labels = labels[:, 1:]
    counted = labels != IGNORE
    picked = np.take_along_axis(log_probs, np.where(counted, labels, 0)[..., None], -1)[..., 0]
    return float(-picked[counted].mean())


@pytest.fixture(scope="module")
def arrays(golden) -> dict[str, np.ndarray]:
    return golden.arrays("llm")


def cases(arrays: dict[str, np.ndarray], array: str) -> list[str]:
    """Prefixes of all cases that have ``array``, at least one."""
    found = [name.removesuffix(f"/{array}") for name in arrays if name.endswith(f"/{array}")]
    assert found
    return found


def test_logits_and_losses(golden, arrays):
    with_logits = cases(arrays, "logits")
    assert set(with_logits) <= set(cases(arrays, "inputs_embeds"))
    for case in cases(arrays, "inputs_embeds"):
        embeddings, mask = (arrays[f"{case}/{x}"] for x in ("inputs_embeds", "attention_mask"))
        logits, _ = golden.apply(embeddings, mask, method=from_embeddings)
        if case in with_logits:
            assert relative_error(logits, arrays[f"{case}/logits"]) < TOLERANCE, case
        got = loss(logits, arrays[f"{case}/labels"])
        assert got == pytest.approx(float(arrays[f"{case}/loss"]), rel=TOLERANCE), case
        assert embeddings.shape[1] == arrays[f"{case}/seq_len"]


def test_loss_from_token_ids_and_media(golden, arrays):
    """Conversations: ids with placeholders, spliced with the visual branch's own tokens."""
    vision = golden.arrays("vision_forward")
    for case in cases(arrays, "input_ids"):
        if case.startswith("ids/"):  # one record before collation, without a loss of its own
            continue
        media = vision[next(x for kind, x in MEDIA.items() if f"_{kind}_" in case)]
        ids, mask = arrays[f"{case}/input_ids"], arrays[f"{case}/attention_mask"]
        if f"{case}/inputs_embeds" in arrays:
            spliced, _ = golden.apply(ids, media, method=VideoLlama.splice)
            assert relative_error(spliced, arrays[f"{case}/inputs_embeds"]) < TOLERANCE, case
        logits, _ = golden.apply(ids, mask, media, method=VideoLlama.logits)
        got = loss(logits, arrays[f"{case}/labels"])
        assert got == pytest.approx(float(arrays[f"{case}/loss"]), rel=TOLERANCE), case


def greedy(golden, prefix: np.ndarray, steps: int, spare: int = 3) -> tuple[list[int], np.ndarray]:
    """Cached greedy decoding -> ids and the logits they were chosen by, [steps, V]."""
    length = prefix.shape[1]
    slots = length + steps + spare  # a cache longer than needed must change nothing
    cache, _ = golden.apply(method=lambda model: model.llama.empty_cache(1, slots))

    def mask(rows: np.ndarray) -> np.ndarray:
        return (np.arange(slots) <= rows[:, None])[None]

    @jax.jit
    def call(params, embeddings, mask, positions, cache):
        arguments = (embeddings, mask, positions, cache)
        return golden.model.apply({"params": params}, *arguments, method=decode)

    table = golden.params["llama"]["tokens"]["embedding"]
    rows, embeddings, ids, seen = np.arange(length), prefix, [], []
    for step in range(steps):
        logits, cache = call(golden.params, embeddings, mask(rows), rows[None], cache)
        seen.append(np.asarray(logits[0, -1]))
        ids.append(int(seen[-1].argmax()))
        rows, embeddings = np.array([length + step]), table[ids[-1]][None, None]
    return ids, np.stack(seen)


def test_greedy_decoding_with_a_cache(golden, arrays):
    found = cases(arrays, "greedy_ids")
    for case in found:
        want = arrays[f"{case}/greedy_ids"][0]
        assert want[0] == golden.config["bos_token_id"]  # reported, but never seen by the model
        ids, logits = greedy(golden, arrays[f"{case}/prefix_embeds"], len(want) - 1)
        assert relative_error(logits[:1], arrays[f"{case}/prefix_logits_last"]) < TOLERANCE, case
        assert relative_error(logits, arrays[f"{case}/greedy_step_logits"][0]) < TOLERANCE, case
        assert ids == want[1:].tolist(), case
    assert len({tuple(arrays[f"{case}/greedy_ids"][0]) for case in found}) > 1


def test_prefix_logits_without_a_cache(golden, arrays):
    for case in cases(arrays, "prefix_embeds"):
        prefix = arrays[f"{case}/prefix_embeds"]
        logits, _ = golden.apply(prefix, np.ones(prefix.shape[:2], int), method=from_embeddings)
        want = arrays[f"{case}/prefix_logits_last"]
        assert relative_error(logits[:, -1], want) < TOLERANCE, case


def test_the_eps_of_the_norms_is_noticed(golden, arrays):
    """The comparison can fail: Llama-2's eps in place of LLaMA-1's, or a rotary base, is seen."""
    case = cases(arrays, "logits")[0]
    embeddings, mask = (arrays[f"{case}/{x}"] for x in ("inputs_embeds", "attention_mask"))
    for change in ({"eps": golden.size.llama.eps * 100}, {"rope_base": 20000.0}):
        llama = dataclasses.replace(golden.size.llama, **change)
        model = VideoLlama(dataclasses.replace(golden.size, llama=llama))
        logits = model.apply({"params": golden.params}, embeddings, mask, method=from_embeddings)
        assert relative_error(logits, arrays[f"{case}/logits"]) > TOLERANCE, change
