"""Properties of the model on the tiny size with random weights: no original needed."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.convert.parity import relative_error
from vljax.models.sizes import TINY
from vljax.models.video_llama import VideoLlama, normalise
from vljax.nn.stack import REMAT

EXACT = 1e-5  # float32 sums in another order, nothing more
CHANGED = 1e-2

SIZE, LLAMA = TINY, TINY.llama


def same(got: object, want: object) -> bool:
    return relative_error(got, want) < EXACT


def differ(got: object, want: object) -> bool:
    return relative_error(got, want) > CHANGED


@pytest.fixture(scope="module")
def params(randomly) -> dict:
    return randomly(SIZE)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def run(params: dict, *arguments: object, method: object, size=SIZE):
    model = VideoLlama(size)
    arguments = [a if a is None else jnp.asarray(a) for a in arguments]
    return jax.jit(lambda p, a: model.apply({"params": p}, *a, method=method))(params, arguments)


def draw_embeddings(rng: np.random.Generator, batch: int, length: int) -> np.ndarray:
    return rng.normal(size=(batch, length, LLAMA.width)).astype(np.float32)


def llm(model: VideoLlama, embeddings, mask):
    return model.llama.logits(model.llama(embeddings, mask)[0])


def test_llama_is_causal(params, rng):
    """A logit's gradient is exactly zero at every later position, and at no earlier one."""
    length = 7
    embeddings = draw_embeddings(rng, 1, length)
    model, mask = VideoLlama(SIZE), jnp.ones((1, length), int)

    @jax.jit
    def influence(x):
        def summed(x):  # one number a position, that no symmetry sends to zero
            y = model.apply({"params": params}, x, mask, method=llm)[0]
            return (y * jnp.cos(jnp.arange(LLAMA.vocab))[None]).sum(-1)

        return jnp.abs(jax.jacobian(summed)(x)[:, 0]).sum(-1)

    reaches = np.asarray(influence(embeddings)) != 0  # [length of output, length of input]
    assert (reaches == np.tri(length, dtype=bool)).all()


def test_right_padding_changes_nothing(params, rng):
    short, length = 5, 9
    embeddings = draw_embeddings(rng, 2, length)
    embeddings[:, short:] *= 100
    mask = np.zeros((2, length), int)
    mask[:, :short] = 1
    padded = run(params, embeddings, mask, method=llm)[:, :short]
    assert same(padded, run(params, embeddings[:, :short], mask[:, :short], method=llm))


def test_masked_tokens_in_the_middle_are_not_seen(params, rng):
    """A pad id inside a text is masked: what stands there must not reach later positions."""
    embeddings, mask = draw_embeddings(rng, 1, 6), np.array([[1, 1, 0, 1, 1, 1]])
    other = embeddings.copy()
    other[:, 2] += 3
    seen = mask[0].astype(bool)
    got, want = (np.asarray(run(params, x, mask, method=llm)) for x in (other, embeddings))
    assert (got[:, seen] == want[:, seen]).all()
    assert differ(run(params, other, np.ones_like(mask), method=llm), want)


def whole(model: VideoLlama, frames, mel, tokens, mask):
    heard = model.audio_tokens(model.sound_features(mel))
    seen = model.video_tokens(model.frame_tokens(frames))
    return model.logits(tokens, mask, jnp.concatenate([heard, seen], axis=1))


def test_a_batch_of_one_equals_a_batch_of_many(params, rng):
    batch, image = 3, SIZE.vit.image
    assert SIZE.imagebind.vision.image == image
    sound = SIZE.imagebind.sound
    media = SIZE.audio_qformer.queries + SIZE.video_qformer.queries
    ids = rng.integers(0, LLAMA.vocab, (batch, media + 6))
    ids[:, 2 : 2 + media] = LLAMA.vocab
    inputs = (
        rng.normal(size=(batch, 2, image, image, 3)).astype(np.float32),
        rng.normal(size=(batch, 2, sound.mel_bins, sound.mel_frames)).astype(np.float32),
        ids,
        np.ones_like(ids),
    )
    together = run(params, *inputs, method=whole)
    alone = [run(params, *(x[i : i + 1] for x in inputs), method=whole) for i in range(batch)]
    assert same(together, np.concatenate(alone))
    assert differ(alone[0], alone[1])


def draw_frame_tokens(rng: np.random.Generator, frames: int) -> np.ndarray:
    shape = (2, frames, SIZE.qformer.queries, SIZE.qformer.width)
    return rng.normal(size=shape).astype(np.float32)


def with_frame_positions(params: dict, order: list[int]) -> dict:
    params = copy.deepcopy(params)
    table = params["frame_position"]["embedding"]
    table[: len(order)] = table[order]
    return params


def test_frame_order_matters_and_only_through_the_position_table(params, rng):
    tokens, order = draw_frame_tokens(rng, 3), [2, 0, 1]
    moved = with_frame_positions(params, order)
    method = VideoLlama.video_tokens
    want = run(params, tokens, method=method)
    assert differ(run(params, tokens[:, order], method=method), want)
    assert differ(run(moved, tokens, method=method), want)
    assert same(run(moved, tokens[:, order], method=method), want)


def test_padded_frames_change_nothing(params, rng):
    tokens = draw_frame_tokens(rng, 5)
    tokens[:, 3:] *= 10
    valid = np.arange(5)[None] < np.array([[3], [3]])
    method = VideoLlama.video_tokens
    want = run(params, tokens[:, :3], method=method)
    assert same(run(params, tokens, valid, method=method), want)
    assert differ(run(params, tokens, method=method), want)


def test_padded_sound_clips_change_nothing(params, rng):
    features = rng.normal(size=(2, 5, SIZE.imagebind.out)).astype(np.float32)
    valid = np.arange(5)[None] < np.array([[4], [2]])
    method = VideoLlama.audio_tokens
    got = run(params, features, valid, method=method)
    for row, clips in enumerate((4, 2)):
        want = run(params, features[row : row + 1, :clips], method=method)
        assert same(got[row : row + 1], want)
    assert differ(run(params, features, method=method), got)


def test_dropout_acts_in_training_only(params, rng):
    tokens = draw_frame_tokens(rng, 2)
    video = dataclasses.replace(SIZE.video_qformer, dropout=0.3)
    model = VideoLlama(dataclasses.replace(SIZE, video_qformer=video))

    def tokens_with(train: bool, seed: int):
        rngs = {"dropout": jax.random.key(seed)}
        arguments = ({"params": params}, tokens, None, train)
        return model.apply(*arguments, rngs=rngs, method=VideoLlama.video_tokens)

    want = run(params, tokens, method=VideoLlama.video_tokens)
    assert same(tokens_with(False, 0), want)
    assert differ(tokens_with(True, 0), want)
    assert differ(tokens_with(True, 0), tokens_with(True, 1))


def decode(model: VideoLlama, embeddings, mask, positions, cache):
    hidden, cache = model.decode(embeddings, mask, positions, cache)
    return model.llama.logits(hidden), cache


@pytest.mark.parametrize("chunks", [[1, 1, 1, 1, 1, 1], [4, 1, 1], [2, 4], [6]])
def test_cached_decoding_equals_one_uncached_call(params, rng, chunks):
    length, slots = sum(chunks), 8
    embeddings = draw_embeddings(rng, 2, length)
    want = run(params, embeddings, np.ones((2, length), int), method=llm)
    cache = VideoLlama(SIZE).apply({}, method=lambda model: model.llama.empty_cache(2, slots))
    got, start = [], 0
    for size in chunks:
        rows = np.arange(start, start + size)
        mask = np.broadcast_to(np.arange(slots) <= rows[:, None], (2, size, slots))
        positions = np.broadcast_to(rows, (2, size))
        logits, cache = jax.jit(
            lambda *a: VideoLlama(SIZE).apply({"params": params}, *a, method=decode)
        )(embeddings[:, rows], mask, positions, cache)
        got.append(logits)
        start += size
    assert same(np.concatenate(got, 1), want)


def test_grouped_query_heads_equal_repeated_heads(randomly, rng):
    groups = LLAMA.heads // 2
    size = dataclasses.replace(SIZE, llama=dataclasses.replace(LLAMA, kv_heads=groups))
    params = randomly(size)
    embeddings, mask = draw_embeddings(rng, 2, 5), np.ones((2, 5), int)
    repeated = copy.deepcopy(params)
    attention = repeated["llama"]["layers"]["attention"]
    for name in ("key", "value"):
        kernel = attention[name]["kernel"]
        heads = kernel.reshape(*kernel.shape[:2], groups, -1)
        attention[name]["kernel"] = heads.repeat(2, axis=2).reshape(*kernel.shape[:2], -1)
    got = run(params, embeddings, mask, method=llm, size=size)
    assert same(got, run(repeated, embeddings, mask, method=llm))


def test_tied_embeddings_equal_a_transposed_head(randomly, rng):
    size = dataclasses.replace(SIZE, llama=dataclasses.replace(LLAMA, tied=True))
    params = randomly(size)
    assert "head" not in params["llama"]
    embeddings, mask = draw_embeddings(rng, 1, 4), np.ones((1, 4), int)
    untied = copy.deepcopy(params)
    untied["llama"]["head"] = {"kernel": params["llama"]["tokens"]["embedding"].T}
    got = run(params, embeddings, mask, method=llm, size=size)
    assert same(got, run(untied, embeddings, mask, method=llm))


def test_media_take_the_places_of_the_placeholders(params, rng):
    media = rng.normal(size=(2, 3, LLAMA.width)).astype(np.float32)
    here = LLAMA.vocab
    ids = np.array([[1, here, here, here, 7, 8], [1, 5, here, here, 9, here + 1]])
    got = run(params, ids, media, method=VideoLlama.splice)
    table = params["llama"]["tokens"]["embedding"]
    for row, columns in enumerate(([1, 2, 3], [2, 3, 5])):
        want = table[np.where(ids[row] >= here, 0, ids[row])]
        want[columns] = media[row]
        assert (np.asarray(got[row]) == want).all()


@pytest.mark.parametrize("remat", [name for name in REMAT if name != "none"])
def test_rematerialisation_changes_no_gradient(params, rng, remat):
    embeddings, mask = draw_embeddings(rng, 1, 4), jnp.ones((1, 4), int)

    def gradient(policy: str):
        model = VideoLlama(SIZE, remat=policy)
        return jax.jit(
            jax.grad(lambda x: (model.apply({"params": params}, x, mask, method=llm) ** 2).mean())
        )(embeddings)

    assert same(gradient(remat), gradient("none"))


def test_each_policy_keeps_less_of_a_frozen_layer_than_the_one_before(params):
    """In layer inputs: attention's are queries, keys, values, its output, and the input itself."""
    width, tokens = LLAMA.width, 16
    x = jax.ShapeDtypeStruct((1, tokens, width), jnp.float32)
    mask = jnp.ones((1, tokens), int)

    def kept(policy: str) -> float:
        model = VideoLlama(SIZE, remat=policy)
        gradient = jax.grad(lambda x, p: model.apply({"params": p}, x, mask, method=llm).sum())
        equations = jax.make_jaxpr(gradient)(x, params).eqns
        forward = next(e for e in equations if e.primitive.name == "scan")
        stacked = [v.aval for v in forward.outvars[forward.params["num_carry"] :]]
        return sum(a.size for a in stacked if a.shape[:1] == (LLAMA.depth,)) / LLAMA.depth / x.size

    sizes = {policy: kept(policy) for policy in REMAT}
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    assert (sizes["attention"], sizes["full"], sizes["offload"]) == (5, 1, 1)
    assert sizes["dots_no_batch"] == 5 + 2 * LLAMA.mlp / width


def test_frames_in_chunks_are_as_frames_at_once(params, rng):
    """Of five frames the last chunk of two is filled up."""
    image, sound = SIZE.vit.image, SIZE.imagebind.sound
    frames = rng.integers(0, 256, (2, 5, image, image, 3), np.uint8)
    mel = rng.normal(size=(2, 5, sound.mel_bins, sound.mel_frames)).astype(np.float32)

    def encode(frame_chunk: int, frames: np.ndarray, pixels: bool):
        def all_of(model: VideoLlama, frames):
            seen = model.frame_tokens(frames, pixels), model.sight_features(frames, pixels)
            return *seen, model.sound_features(mel)

        model = VideoLlama(SIZE, frame_chunk=frame_chunk)
        return jax.jit(lambda p, x: model.apply({"params": p}, x, method=all_of))(params, frames)

    chunked, whole = encode(2, frames, True), encode(0, normalise(frames), False)
    for got, want in zip(chunked, whole, strict=True):
        assert got.shape == want.shape and same(got, want)


@pytest.mark.slow
def test_the_memory_of_chunks_does_not_grow_with_the_frames():
    """But for the pixels themselves and the tokens that come of them."""
    shallow = dataclasses.replace(SIZE.vit, depth=1), dataclasses.replace(SIZE.qformer, depth=1)
    size = dataclasses.replace(SIZE, vit=shallow[0], qformer=shallow[1])

    def working(frame_chunk: int, frames: int) -> int:
        model = VideoLlama(size, frame_chunk=frame_chunk)
        images = jax.ShapeDtypeStruct((1, frames, 48, 48, 3), jnp.uint8)
        encode = functools.partial(model.apply, pixels=True, method=VideoLlama.frame_tokens)
        params = jax.eval_shape(
            functools.partial(model.init, pixels=True, method=VideoLlama.frame_tokens),
            jax.random.key(0),
            images,
        )
        return jax.jit(encode).lower(params, images).compile().memory_analysis().temp_size_in_bytes

    assert working(2, 16) - working(2, 4) < (working(0, 16) - working(0, 4)) / 10
