"""Generation: chat contexts, greedy and beam search, end tokens, stop sequences, filters."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vljax.convert.parity.compare import EXACT, Check, Tolerance
from vljax.convert.parity.golden import GoldenSet
from vljax.convert.parity.language import BUCKET
from vljax.data.tokenizer import LLAMA, Special
from vljax.generate import decode
from vljax.generate.beam import beam_search
from vljax.generate.sampling import Sampling, filtered
from vljax.models.video_llama import VideoLlama
from vljax.nn.attention import Caches

KINDS = {"audiovideo": ("audio", "video"), "audio": ("audio",), "image": ("image",)}
BEAM = re.compile(r"beam(\d+)(_eos_override)?_lp(-?[\d.]+)_(?:ids|score)")
PENALTY = re.compile(r"greedy_rep([\d.]+)_ids")
FILTER = re.compile(r"filter_T([\d.]+)_k(\d+)_p([\d.]+)/")
ROUNDING = 4e-6  # of logits, relative: about ten times what float32 leaves
FILTER_INPUT = "gen_video_vicuna/prefix_logits_last"


class Chat:
    """One chat context, padded so that all of a set's share their programs."""

    def __init__(self, golden: GoldenSet, name: str):
        self.golden = golden
        kinds = KINDS.get(name.split("_")[0], ("video",))
        queries = {"audio": golden.config["n_audio_query"]}
        counts = [queries.get(kind, golden.config["n_video_query"]) for kind in kinds]
        prompt = golden.texts["inference"][name]["prompt"]
        ids = golden.tokenizer.encode_prompt(prompt, counts)
        self.length = len(ids)
        self.tokens = np.full((1, self.length + -self.length % BUCKET), LLAMA.pad, np.int32)
        self.tokens[0, : self.length] = ids
        self.mask = np.arange(self.tokens.shape[1])[None] < self.length
        media = [golden.soft_prompts[kind][:1] for kind in kinds]
        spare = golden.config["n_audio_query"] + golden.config["n_video_query"] - sum(counts)
        empty = np.zeros((1, spare, golden.config["llm_hidden"]), np.float32)
        self.media = np.concatenate([*media, empty], axis=1)  # the last ones are never spliced
        self.most = int(golden.texts["max_new_tokens"])

    def embeddings(self) -> jax.Array:
        """[1, context, D]."""
        out, _ = self.golden.apply(VideoLlama.splice, self.tokens, self.media)
        return out[:, : self.length]

    def greedy(
        self, eos: int | None = None, stops: decode.Stops = (), penalty: float = 1.0
    ) -> tuple[np.ndarray, jax.Array]:
        """Ids [1, n], bos first, and the logits [1, V] after the context."""
        sampling = Sampling(max_new_tokens=self.most, repetition_penalty=penalty)
        ids, logits = decode.generate(
            self.golden.model,
            self.golden.params,
            jnp.asarray(self.tokens),
            jnp.asarray(self.mask),
            jnp.asarray(self.media),
            jax.random.key(0),
            sampling,
            stops,
            self._special(eos),
        )
        return with_bos(ids), logits

    def step_logits(self, ids: np.ndarray) -> jax.Array:
        """Logits [1, n, V] that each of the ids [1, n] was chosen by, through the cache."""
        (out, _) = self.golden.apply(_steps, self.tokens, self.mask, self.media, ids)
        return out

    def beam(self, beams: int, penalty: float, eos: int | None) -> tuple[np.ndarray, jax.Array]:
        """The best hypothesis: ids [1, n], bos first, and its score [1]."""
        answer = beam_search(
            self.golden.model,
            self.golden.params,
            jnp.asarray(self.tokens),
            jnp.asarray(self.mask),
            jnp.asarray(self.media),
            beams=beams,
            max_new_tokens=self.most,
            length_penalty=penalty,
            special=self._special(eos),
        )
        return with_bos(answer.ids), answer.scores

    def _special(self, eos: int | None) -> Special:
        special = self.golden.tokenizer.special
        return special if eos is None else special._replace(eos=eos)


def _steps(
    model: VideoLlama, tokens: jax.Array, mask: jax.Array, media: jax.Array, ids: jax.Array
) -> jax.Array:
    """The decode loop's two functions with the choices given."""
    params, bare = dict(model.variables["params"]), model.clone(parent=None, name=None)
    spare = ids.shape[1]
    first, cache = decode.prefill(bare, params, tokens, mask, media, spare)

    def one(carry: tuple[Caches, jax.Array], token: jax.Array) -> tuple[Any, jax.Array]:
        cache, written = carry
        logits, cache = decode.extend(bare, params, token, mask, written, cache)
        return (cache, written + 1), logits

    _, rest = jax.lax.scan(one, (cache, jnp.ones((), int)), ids[:, :-1].T)
    return jnp.concatenate([first[:, None], rest.transpose(1, 0, 2)], axis=1)


def with_bos(ids: Any) -> np.ndarray:
    """Ids [1, N] -> as the original tells them: bos first, and nothing after the end."""
    row = np.asarray(ids)[0]
    written = np.flatnonzero(row)
    return np.concatenate([[LLAMA.bos], row[: written[-1] + 1 if len(written) else 0]])[None]


def generation(golden: GoldenSet, check: Check) -> None:
    """The part of llm.npz that a chat sees."""
    for prefix in check.cases("prefix_embeds"):
        case = prefix.rstrip("/")
        with check.attempt(case):
            _chat(check, case, Chat(golden, case.removeprefix("gen_")))
    for name in check.wants:
        if found := FILTER.match(name):
            with check.attempt(name):
                _filter(check, name, *found.groups())


def _chat(check: Check, case: str, chat: Chat) -> None:
    check(f"{case}/prefix_embeds", chat.embeddings())
    ids, logits = chat.greedy()
    check(f"{case}/prefix_logits_last", logits)
    check(f"{case}/greedy_ids", ids, EXACT)
    if f"{case}/greedy_step_logits" in check:
        # The golden ids are followed: after a first wrong one nothing could be compared.
        steps = chat.step_logits(check[f"{case}/greedy_ids"][:, 1:])
        check(f"{case}/greedy_step_logits", steps)
        top = jax.lax.top_k(steps, 2)[0]
        # A difference of logits is as exact as they are, however small it is itself.
        margin = Tolerance(ROUNDING * float(jnp.abs(steps).max()), "absolute")
        check(f"{case}/greedy_min_margin", (top[..., 0] - top[..., 1]).min(), margin)
    eos = check.get(f"{case}/eos_override_id")
    if eos is not None:
        check(f"{case}/greedy_eos_override_ids", chat.greedy(eos=int(eos))[0], EXACT)
    stop = check.get(f"{case}/stop_ids")
    if stop is not None:
        stops = (tuple(int(i) for i in stop),)
        check(f"{case}/greedy_until_stop_ids", chat.greedy(stops=stops)[0], EXACT)
    for name in check.wants:
        if name.startswith(f"{case}/"):
            _variant(check, name, name.removeprefix(f"{case}/"), chat, eos)


def _variant(check: Check, name: str, variant: str, chat: Chat, eos: Any) -> None:
    """What has a number in its name: a penalty, or beams and a length penalty."""
    if found := PENALTY.fullmatch(variant):
        check(name, chat.greedy(penalty=float(found[1]))[0], EXACT)
    if found := BEAM.fullmatch(variant):
        ids, scores = chat.beam(int(found[1]), float(found[3]), int(eos) if found[2] else None)
        if name.endswith("_ids"):
            check(name, ids, EXACT)
        else:
            check(name, scores)


def _filter(check: Check, name: str, temperature: str, top_k: str, top_p: str) -> None:
    sampling = Sampling(float(temperature), int(top_k), float(top_p))
    logits = filtered(jnp.asarray(check[FILTER_INPUT]), sampling)
    if name.endswith("/kept"):
        check(name, jnp.isfinite(logits).astype(int), EXACT)
    elif name.endswith("/probs"):
        check(name, jax.nn.softmax(logits))
