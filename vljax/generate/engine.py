"""A loaded model: requests in, answers out, in batches of static shapes."""

import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vljax import store
from vljax.data.text import TEMPLATES, Template, close_turn, open_turn, spoken
from vljax.data.tokenizer import Tokenizer
from vljax.generate import decode, loading
from vljax.generate.beam import beam_search
from vljax.generate.compiled import placed
from vljax.generate.media import FRAMES, Encoded, Media
from vljax.generate.sampling import Sampling
from vljax.models import precision
from vljax.models.sizes import VideoLlamaSize, size_of
from vljax.models.video_llama import VideoLlama, abstract_parameters
from vljax.nn.stack import take_apart
from vljax.sharding.mesh import make_mesh
from vljax.sharding.placement import Placement
from vljax.sharding.strategy import strategy
from vljax.store import Tree, WeightsError

log = logging.getLogger(__name__)
LENGTHS = (64, 128, 256, 512, 1024, 2000)  # of prompts; one program each
SIZES = (1, 4, 16, 64)  # of batches
KEPT = 64  # media whose soft prompts are kept
ONLY_TRAINING = ("imagebind/vision",)  # the audio branch learns from sights
SIGHT = (
    "frame_encoder/vit",
    "frame_encoder/qformer",
    "frame_position",
    "video_qformer",
    "video_proj",
)
IMAGES = ("frame_encoder/vit", "frame_encoder/qformer", "video_proj")  # MiniGPT-4
SOUND = ("imagebind/sound", "audio_position", "audio_qformer", "audio_proj")


@dataclasses.dataclass(frozen=True)
class Request:
    """One question about some media, after what was said before: (role, text) pairs.

    A ``system`` text stands in the place of the template's.
    """

    question: str
    media: Media | Encoded | None = None
    history: tuple[tuple[str, str], ...] = ()
    system: str = ""


@dataclasses.dataclass
class Engine:
    """Weights with what belongs to them. ``load_engine`` makes one from a folder.

    ``placement``: where the weights lie, if not on one device; programs then run on its mesh.
    """

    size: VideoLlamaSize
    params: Tree
    tokenizer: Tokenizer
    template: Template
    dtype: Any = jnp.float32
    placement: Placement | None = None

    def __post_init__(self) -> None:
        self._soft_prompts: OrderedDict[bytes, np.ndarray] = OrderedDict()  # by recency
        self.model = VideoLlama(self.size, loading.compute_dtype(self.dtype), apart=True)
        llama = self.params["llama"]
        if "0" not in llama["layers"]:
            llama = {**llama, "layers": take_apart(llama["layers"])}
            self.params = {**self.params, "llama": llama}
        self.stops = self.tokenizer.stop_ids(self.template.stop)

    def senses(self, look: bool = True, listen: bool = True) -> tuple[bool, bool]:
        """Which of the senses asked for these weights have; warns of one they lack.

        Raises WeightsError where they have none of them.
        """
        sees, hears = look and self.sees, listen and self.hears
        if (look or listen) and not (sees or hears):
            raise WeightsError(
                f"weights: got {', '.join(self.params)}, which neither see nor hear; convert the "
                "files of all parts together"
            )
        if listen and not hears:
            log.warning("these weights have no audio branch: the sound is not used")
        if look and not sees:
            log.warning("these weights have no vision branch: the picture is not used")
        return sees, hears

    @property
    def sees(self) -> bool:
        return self.has(*SIGHT) or self.has(*IMAGES)

    @property
    def hears(self) -> bool:
        return self.has(*SOUND)

    def has(self, *parts: str) -> bool:
        names = store.flatten(self.params)
        return all(any(store.is_under(name, (part,)) for name in names) for part in parts)

    @property
    def picture_queries(self) -> int:
        """How many vectors stand for a picture."""
        whole = "video_qformer" in self.params
        return (self.size.video_qformer if whole else self.size.qformer).queries

    def answer(
        self, requests: Sequence[Request], sampling: Sampling = Sampling(), seed: int = 0
    ) -> list[str]:
        """One answer a request; requests with the same kinds of media share a batch."""
        groups: dict[tuple[bool, bool, bool], list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(kind(request.media), []).append(i)
        answers = [""] * len(requests)
        for indices in groups.values():
            for start in range(0, len(indices), SIZES[-1]):
                part = indices[start : start + SIZES[-1]]
                texts = self._answer_batch([requests[i] for i in part], sampling, seed)
                for i, words in zip(part, texts, strict=True):
                    answers[i] = words
        return answers

    def prompt(self, request: Request) -> str:
        """The whole prompt as text, ``<ImageHere>`` where media stand."""
        template = self.template
        if request.system:
            template = dataclasses.replace(template, system=request.system)
        lead = media_message(request.media, template)
        said = [*request.history, ("human", request.question)]
        first = f"{lead} {said[0][1]}" if lead else said[0][1]
        text = open_turn(first, template)
        for role, words in said[1:]:
            if role == "human":
                text += open_turn(words, template, first=False)
            else:
                text += close_turn(words, template)
        return text

    def prompt_ids(self, request: Request, room: int = LENGTHS[-1]) -> list[int]:
        """The prompt's ids, with a placeholder for every media vector, at most ``room`` of them.

        The oldest turns of a long conversation are dropped, with a warning; its media stay. (The
        original cuts from the left, media and all.)
        """
        counts = self._counts(request.media)
        ids = self.tokenizer.encode_prompt(self.prompt(request), counts)
        dropped = 0
        while len(ids) > room and request.history:
            request = dataclasses.replace(request, history=request.history[2:])
            ids = self.tokenizer.encode_prompt(self.prompt(request), counts)
            dropped += 1
        if dropped:
            log.warning(
                "the conversation is too long: its first %d questions are left out", dropped
            )
        return ids

    def answered_ids(self, request: Request, answer: str) -> list[int]:
        """The prompt's ids with an answer and what ends it, as a later turn would have them."""
        text = self.prompt(request) + close_turn(answer, self.template)
        return self.tokenizer.encode_prompt(text, self._counts(request.media))

    def _counts(self, media: Media | Encoded | None) -> list[int]:
        """Placeholders of each medium, in the prompt's order."""
        if isinstance(media, Encoded):
            return [len(x) for x in (media.sound, media.sight) if x is not None]
        counts = []
        if media is not None and media.hears:
            counts.append(self.size.audio_qformer.queries)
        if media is not None and media.sees:
            counts.append(self.picture_queries)
        return counts

    def encode(self, media: Sequence[Media | Encoded | None]) -> jax.Array | None:
        """Soft prompts [B, M, D] of media of one kind: sound's first, then the picture's.

        Those of the last ``KEPT`` media are kept, by what the towers would be given.
        """
        kinds = {kind(m) for m in media}
        assert len(kinds) == 1, "a batch has media of one kind"
        encoded = [m.prompts for m in media if isinstance(m, Encoded)]
        if encoded:
            return jnp.asarray(_padded(encoded))
        given = {m.digest(): m for m in media if isinstance(m, Media)}
        if not given or kinds == {kind(None)}:
            return None
        new = {key: m for key, m in given.items() if key not in self._soft_prompts}
        if new:
            self._soft_prompts |= zip(new, self._encode(list(new.values())), strict=True)
        keys = [m.digest() for m in media if isinstance(m, Media)]
        for key in keys:
            self._soft_prompts.move_to_end(key)
        made = np.stack([self._soft_prompts[key] for key in keys])
        while len(self._soft_prompts) > KEPT:
            self._soft_prompts.popitem(last=False)
        return jnp.asarray(made)

    def forget(self) -> None:
        """Media are encoded anew: what is computed depends on what is asked from now on alone."""
        self._soft_prompts.clear()

    def _encode(self, media: Sequence[Media]) -> np.ndarray:
        """[B, M, D] of media of one kind, B filled up to a static size."""
        filled = [*media, *[media[-1]] * (fit(len(media), SIZES) - len(media))]
        parts = []
        with placed(self.placement):
            if media[0].mel is not None:
                mel = np.stack([m.mel for m in filled if m.mel is not None])
                parts.append(decode.encode_sound(self.model, self.params, mel))
            if media[0].frames is not None:
                frames, valid = _pad_frames([m.frames for m in filled if m.frames is not None])
                parts.append(decode.encode_frames(self.model, self.params, frames, valid))
        # On the host: on a device, each number of media would be a program of its own.
        return np.concatenate([np.asarray(p) for p in parts], axis=1)[: len(media)]

    def _answer_batch(
        self, requests: Sequence[Request], sampling: Sampling, seed: int
    ) -> list[str]:
        padded = list(requests) + [requests[-1]] * (fit(len(requests), SIZES) - len(requests))
        room = LENGTHS[-1] - sampling.max_new_tokens
        prompts = [self.prompt_ids(r, room) for r in padded]
        padded_to = fit(max(map(len, prompts)), LENGTHS)
        tokens, mask = map(jnp.asarray, self.pad(prompts, padded_to))
        media, key = self.encode([r.media for r in padded]), jax.random.key(seed)
        with placed(self.placement):
            if sampling.beams == 1:
                ids = decode.generate(
                    self.model,
                    self.params,
                    tokens,
                    mask,
                    media,
                    key=key,
                    sampling=sampling,
                    stops=self.stops,
                    special=self.tokenizer.special,
                )[0]
            else:
                ids = beam_search(
                    self.model,
                    self.params,
                    tokens,
                    mask,
                    media,
                    beams=sampling.beams,
                    max_new_tokens=sampling.max_new_tokens,
                    length_penalty=sampling.length_penalty,
                    repetition_penalty=sampling.repetition_penalty,
                    special=self.tokenizer.special,
                    stops=self.stops,
                    sampling=sampling if sampling.temperature else None,
                    key=key,
                ).ids
        return [self.text(row) for row in np.asarray(ids)[: len(requests)]]

    def pad(self, prompts: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask [B, length], padded at the end."""
        tokens = np.full((len(prompts), length), self.tokenizer.special.pad, np.int32)
        mask = np.zeros(tokens.shape, bool)
        for i, ids in enumerate(prompts):
            tokens[i, : len(ids)], mask[i, : len(ids)] = ids, True
        return tokens, mask

    def text(self, ids: np.ndarray) -> str:
        """What a row of ids says, up to where it stopped."""
        return spoken(self.tokenizer.decode(ids.tolist()), self.template)


def media_message(media: Media | Encoded | None, template: Template) -> str:
    """The first user message's lead: the template's words for the media there are."""
    if media is None:
        return ""
    if not media.sees:
        return template.sound
    if not media.hears:
        message = template.image if media.still else template.video
        return message + (media.message if template.frame_message else "")
    return template.sound_image if media.still else template.sound_video


def load_engine(
    folder: str | Path,
    dtype: Any = None,
    quantise: str = "",
    quantise_vit: str = "",
    tell: Callable[[str], None] = log.info,
    sharding: str = "",
) -> Engine:
    """The model in a folder that ``vljax train`` (stage=all) or ``vljax convert`` wrote.

    Holds them in ``dtype``, by default in what the manifest says. Where a converted set lacks a
    branch, the engine does too. ``quantise``, ``quantise_vit``: see ``precision.formats``; a layer
    is quantised as it is read. ``tell`` is told beforehand what the weights take. ``sharding``: a
    strategy over all devices, by the names that training has; "" is the first device alone.
    """
    folder = Path(folder)
    formats = precision.formats(quantise, quantise_vit)
    manifest = manifest_of_model(folder)
    size = size_of(manifest)
    tokenizer = Tokenizer(folder, size.llama.vocab)
    dtype = jnp.dtype(dtype or manifest.get("compute", "float32"))
    placement = None
    if sharding:
        placement = Placement(strategy(sharding), make_mesh(strategy(sharding)))
    has = _parts(manifest)
    whole = {n: x for n, x in store.flatten(nn.unbox(abstract_parameters(size))).items() if has(n)}
    given = store.unflatten(store.stored(folder)[0])
    picked = store.flatten(store.pick(given, store.unflatten(whole), str(folder)))
    held = loading.held(size, dtype, formats, placement, has)
    tell(loading.told(held))
    params = store.unflatten(loading.read(picked, size, formats, held))
    return Engine(size, params, tokenizer, TEMPLATES[manifest["template"]], dtype, placement)


def _parts(manifest: Mapping[str, Any]) -> Callable[[str], bool]:
    """Which arrays are there to answer with; all but training's, if the manifest names no parts."""
    parts = manifest.get("parts")

    def has(name: str) -> bool:
        there = parts is None or store.is_under(name, tuple(parts))
        return there and not store.is_under(name, ONLY_TRAINING)

    return has


def manifest_of_model(folder: Path) -> dict[str, Any]:
    """Raises WeightsError where the folder's weights can't answer by themselves."""
    manifest = store.read_manifest(folder)
    if "template" not in manifest:
        raise WeightsError(
            f"{folder}: holds one stage's weights ({manifest.get('run')}), expected a whole model; "
            "name the folder that stage=all wrote"
        )
    if manifest["template"] not in TEMPLATES:
        raise WeightsError(
            f"{folder}: its manifest's template is {manifest['template']!r}, expected one of "
            f"{', '.join(TEMPLATES)}"
        )
    if "llama" not in manifest.get("parts", ("llama",)):
        raise WeightsError(
            f"{folder}: holds {', '.join(manifest['parts'])}, expected a language model, too; "
            "convert the files of all parts together"
        )
    return manifest


def kind(media: Media | Encoded | None) -> tuple[bool, bool, bool]:
    """(sees, hears, read by the towers already)."""
    if media is None:
        return False, False, False
    return media.sees, media.hears, isinstance(media, Encoded)


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays [M, D] as one [B, M, D]; no placeholder points at what fills up the short ones."""
    longest = max(map(len, rows))
    return np.stack([np.pad(x, ((0, longest - len(x)), (0, 0))) for x in rows])


def _pad_frames(clips: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Stacks clips: to one frame if all are images, else to FRAMES, and says which are there."""
    longest = max(len(c) for c in clips)
    count = longest if longest == 1 else max(longest, FRAMES)
    frames = np.zeros((len(clips), count, *clips[0].shape[1:]), np.uint8)
    valid = np.zeros((len(clips), count), bool)
    for i, clip in enumerate(clips):
        frames[i, : len(clip)], valid[i, : len(clip)] = clip, True
    return frames, valid


def fit(n: int, sizes: Sequence[int]) -> int:
    """The smallest static size that holds n. Raises ValueError when none does."""
    for size in sizes:
        if size >= n:
            return size
    raise ValueError(f"prompt: got {n} tokens, expected at most {sizes[-1]}; ask shorter questions")
