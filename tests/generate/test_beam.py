"""Beam search against a word-for-word transcription of Hugging Face's, without a cache."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.data.tokenizer import LLAMA
from vljax.generate import decode
from vljax.generate.beam import beam_search
from vljax.generate.sampling import Sampling, already_said, penalised
from vljax.models.sizes import TINY
from vljax.models.video_llama import VideoLlama, abstract_parameters
from vljax.store import flatten, unflatten

VOCAB = 7  # so few that eos and dead ends are common
SIZE = dataclasses.replace(
    TINY, llama=dataclasses.replace(TINY.llama, vocab=VOCAB, width=32, depth=1, mlp=32)
)
MODEL = VideoLlama(SIZE)
LENGTH, NEW = 6, 5
PROMPTS = [[1, 3, 4], [1, 5, 6, 3, 4, 5]]


def make_params(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    flat = {
        name.removesuffix("/value"): rng.normal(0, 0.6, x.shape).astype(np.float32)
        for name, x in flatten(abstract_parameters(SIZE)).items()
        if name.startswith("llama/")
    }
    return unflatten(flat)


@jax.jit
def _logits(params: dict, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    return MODEL.apply({"params": params}, tokens, mask, None, method="logits")


def next_logits(params: dict, prompt: list[int], ids: list[int]) -> np.ndarray:
    tokens = np.zeros((1, LENGTH + NEW), np.int32)
    n = len(prompt) + len(ids)
    tokens[0, :n] = prompt + ids
    logits = _logits(params, tokens, np.arange(LENGTH + NEW)[None] < n)
    return np.asarray(logits[0, n - 1], np.float64)


def next_log_probs(params: dict, prompt: list[int], ids: list[int]) -> np.ndarray:
    logits = next_logits(params, prompt, ids)
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def penalise(scores: np.ndarray, ids: list[int], penalty: float) -> np.ndarray:
    out = scores.copy()
    for i in {1, *ids}:
        out[i] = scores[i] * penalty if scores[i] < 0 else scores[i] / penalty
    return out


def search(params, prompt, beams, eos, length_penalty, penalty) -> tuple[list[int], float]:
    """BeamSearchScorer of one row; every id list starts without the bos that lengths count."""
    opened = [([], 0.0)] + [([], -1e9)] * (beams - 1)
    finished: list[tuple[float, list[int]]] = []

    def add(ids: list[int], total: float) -> None:
        score = total / (len(ids) + 1) ** length_penalty
        if len(finished) < beams or score > min(s for s, _ in finished):
            finished.append((score, ids))
            if len(finished) > beams:
                finished.remove(min(finished, key=lambda pair: pair[0]))

    done = False
    for length in range(1, NEW + 1):
        found = []
        for ids, total in opened:
            scores = penalise(next_log_probs(params, prompt, ids), ids, penalty)
            found += [(total + s, ids, token) for token, s in enumerate(scores)]
        found = sorted(found, key=lambda x: -x[0])[: 2 * beams]
        opened = []
        for rank, (total, ids, token) in enumerate(found):
            if token == eos:
                if rank < beams:
                    add(ids, total)
            elif len(opened) < beams:
                opened.append(([*ids, token], total))
        worst = min((s for s, _ in finished), default=0.0)
        if len(finished) == beams and worst >= found[0][0] / length**length_penalty:
            done = True
            break
    if not done:
        for ids, total in opened:
            add(ids, total)
    score, ids = max(finished, key=lambda pair: pair[0])
    return [*ids, eos][:NEW], score


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beams", [1, 2, 3])
def test_rows_of_a_batch_are_searched_as_the_original_does(seed, beams):
    params = make_params(seed)
    tokens, mask = np.zeros((2, LENGTH), np.int32), np.zeros((2, LENGTH), bool)
    for i, prompt in enumerate(PROMPTS):
        tokens[i, : len(prompt)], mask[i, : len(prompt)] = prompt, True
    lengths = set()
    for eos in range(2, VOCAB):
        for length_penalty, penalty in ((1.0, 1.0), (0.0, 1.0), (2.0, 1.0), (1.0, 1.3)):
            answer = beam_search(
                MODEL,
                params,
                jnp.asarray(tokens),
                jnp.asarray(mask),
                None,
                beams=beams,
                max_new_tokens=NEW,
                length_penalty=length_penalty,
                repetition_penalty=penalty,
                special=LLAMA._replace(eos=eos),
            )
            for i, prompt in enumerate(PROMPTS):
                ids, score = search(params, prompt, beams, eos, length_penalty, penalty)
                assert answer.ids[i].tolist() == ids + [0] * (NEW - len(ids))
                assert answer.scores[i] == pytest.approx(score, rel=1e-4)
                lengths.add(len(ids))
    assert len(lengths) > 1


def test_what_was_said_counts_with_bos_and_not_what_comes_after():
    said = already_said(jnp.array([[3, 4, 5], [2, 2, 0]]), 2, 6, 1)
    assert np.flatnonzero(said[0]).tolist() == [1, 3, 4]
    assert np.flatnonzero(said[1]).tolist() == [1, 2]


def test_a_penalty_lowers_positive_and_negative_scores():
    scores = jnp.array([[2.0, -2.0, 3.0]])
    said = jnp.array([[True, True, False]])
    np.testing.assert_allclose(penalised(scores, said, 2.0), [[1.0, -4.0, 3.0]])


def test_a_penalty_in_greedy_decoding():
    """On logits, not on log-probabilities, unlike in beam search."""
    found: dict[float, list[list[int]]] = {1.0: [], 1.5: []}
    for seed, penalty in itertools.product(range(3), found):
        params, prompt = make_params(seed), PROMPTS[1]
        sampling = Sampling(max_new_tokens=NEW, repetition_penalty=penalty)
        mask = jnp.ones((1, LENGTH), bool)
        endless = LLAMA._replace(eos=VOCAB)
        rest = (mask, None, jax.random.key(0), sampling, (), endless)
        ids, _ = decode.generate(MODEL, params, jnp.array([prompt]), *rest)
        want: list[int] = []
        for _ in range(NEW):
            logits = next_logits(params, prompt, want)
            want.append(int(penalise(logits, want, penalty).argmax()))
        assert ids[0].tolist() == want
        found[penalty].append(want)
    assert found[1.0] != found[1.5]


def test_a_penalty_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"repetition_penalty: got 0\.0, expected more than 0"):
        Sampling(repetition_penalty=0.0)
