"""These models in lmms-eval: ``--model vljax --model_args pretrained=FOLDER``.

lmms-eval finds ``manifest`` by the entry point group ``lmms_eval.models``, and by it the class
``VljaxModel``, which is made on first use: it inherits from lmms-eval's own, which needs PyTorch.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vljax.data.audio import mel_clips
from vljax.data.video import resize_image, uniform_indices
from vljax.generate.chat import load
from vljax.generate.engine import Engine, Request
from vljax.generate.likelihood import log_likelihoods
from vljax.generate.media import FRAMES, Media, read_media
from vljax.generate.sampling import Sampling
from vljax.models.sizes import VideoLlamaSize

log = logging.getLogger(__name__)
MODEL_ID = "vljax"
CLASS = "VljaxModel"
MOST = 1024  # tokens of an answer
PLACEHOLDERS = ("<image>", "<video>", "<audio>")  # the template has its own
Visuals = Sequence[Any] | None


def manifest() -> Any:
    """lmms-eval's ``ModelManifest``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(MODEL_ID, simple_class_path=f"{__name__}.{CLASS}")


def __getattr__(name: str) -> Any:
    if name == CLASS:
        return _model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _model_class() -> type:
    from lmms_eval.api.instance import GenerationResult
    from lmms_eval.api.model import lmms

    class Pair(tuple, GenerationResult):
        """A pair that survives the evaluator: 0.7.3 makes a text of any other tuple."""

        def __init__(self, pair: tuple[float, bool]):
            self.text, self.token_counts = pair, None

    class VljaxModel(Adapter, lmms):
        is_simple = True

        def __init__(self, **flags: Any):
            lmms.__init__(self)
            Adapter.__init__(self, **flags)

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            return [Pair(pair) for pair in super().loglikelihood(requests)]

    VljaxModel.__module__, VljaxModel.__qualname__ = __name__, CLASS
    return VljaxModel


class Adapter:
    """lmms-eval's requests as the engine's; all that its base class must have.

    Args:
      pretrained: "tiny", or a folder that ``vljax train`` or ``vljax convert`` wrote.
      batch_size: requests at once. dtype, quantise, quantise_vit, sharding: as ``vljax.load``'s.
      look, listen: whether picture and sound are used. device: JAX chooses; not used.
    """

    task_dict: Mapping[str, Any]
    cache_hook: Any

    def __init__(
        self,
        pretrained: str = "tiny",
        batch_size: int | str = 16,
        dtype: str | None = None,
        quantise: str = "",
        quantise_vit: str = "",
        sharding: str = "",
        look: bool = True,
        listen: bool = True,
        device: str = "",
        max_batch_size: int | None = None,
    ):
        self.batch_size = int(batch_size)
        model = load(
            pretrained, dtype, quantise=quantise, quantise_vit=quantise_vit, sharding=sharding
        )
        self.engine: Engine = model.engine
        self.senses = self.engine.senses(look, listen)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One answer a request, in their order."""
        asked = []
        for args in (request.args for request in requests):
            words, flags, to_visual, doc_id, task, split = args
            asked.append((words, flags, to_visual, self.task_dict[task][split][doc_id]))
        answers = self._answer([(w, f, v(doc)) for w, f, v, doc in asked])
        for (words, flags, *_), answer in zip(asked, answers, strict=True):
            self.cache_hook.add_partial("generate_until", (words, flags), answer)
        return answers

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """The answers of all rounds, a list a request; the task says what the next one asks."""
        rounds = [_Round(self.task_dict, request.args) for request in requests]
        while going := [r for r in rounds if not r.ended]:
            answers = self._answer([(r.words, r.flags, r.visuals) for r in going])
            for one, answer in zip(going, answers, strict=True):
                one.go_on(answer)
        return [r.answers for r in rounds]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """A continuation's mean loss a token, and whether greedy decoding would say it.

        The loss and not its negative, as the package's own models return it: of choices, its
        evaluator takes the one with the least.
        """
        found: list[tuple[float, bool]] = []
        for part in _parts(requests, self.batch_size):
            asked, answers = [], []
            for args in (request.args for request in part):
                words, target, visuals = self._continuation(*args)
                asked.append(Request(_plain(words), self._media(visuals)))
                answers.append(target.strip())
            told = log_likelihoods(self.engine, asked, answers)
            found += [(-one.each, one.likeliest) for one in told]
        return found

    def _continuation(
        self,
        words: str,
        target: str | Callable[[Any], Any],
        to_visual: Callable[[Any], Visuals] | None = None,
        doc_id: Any = None,
        task: str = "",
        split: str = "",
    ) -> tuple[str, str, Visuals]:
        """Without a document, words and continuation stand alone."""
        if to_visual is None:
            return words, str(target), None
        doc = self.task_dict[task][split][doc_id]
        return words, str(target(doc) if callable(target) else target), to_visual(doc)

    def _answer(self, asked: Sequence[tuple[str, Mapping[str, Any], Visuals]]) -> list[str]:
        """To words with lmms-eval's flags and visuals; those of the same flags share batches."""
        groups: dict[tuple[Sampling, tuple[str, ...]], list[int]] = {}
        for i, (_, flags, _) in enumerate(asked):
            groups.setdefault((sampling_of(flags), until_of(flags)), []).append(i)
        answers = [""] * len(asked)
        for (sampling, until), indices in groups.items():
            for part in _parts(indices, self.batch_size):
                requests = [Request(_plain(asked[i][0]), self._media(asked[i][2])) for i in part]
                for i, said in zip(part, self.engine.answer(requests, sampling), strict=True):
                    answers[i] = cut(said, until)
        return answers

    def _media(self, visuals: Visuals) -> Media | None:
        given = [x for x in visuals or () if x is not None]
        return as_media(given, self.engine.size, self.senses) if given else None


class _Round:
    """A conversation whose task says what comes next."""

    def __init__(self, task_dict: Mapping[str, Any], args: tuple[Any, ...]):
        self.words, self.flags, to_visual, self._next, doc_id, task, split = args
        self._doc = task_dict[task][split][doc_id]
        self.visuals, self.ended = to_visual(self._doc), False
        self.answers: list[str] = []
        self._info: Any = None

    def go_on(self, answer: str) -> None:
        self.answers.append(answer)
        self.visuals, self.words, self.ended, self.answers, self._info = self._next(
            self._doc,
            previous_output=self.answers,
            round_idx=len(self.answers),
            previous_round_info=self._info,
        )
        self.answers = list(self.answers)


def _parts(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _plain(words: str) -> str:
    for placeholder in PLACEHOLDERS:
        words = words.replace(placeholder, "")
    return words.strip()


def sampling_of(flags: Mapping[str, Any]) -> Sampling:
    """lmms-eval's generation arguments as ours; what is None or absent is greedy."""
    most = int(flags.get("max_new_tokens") or 128)
    if most > MOST:
        log.warning("max_new_tokens: got %d, answers have at most %d", most, MOST)
    temperature = float(flags.get("temperature") or 0)
    if flags.get("do_sample") is False:
        temperature = 0.0
    top_p = float(flags.get("top_p") or 1.0)
    return Sampling(
        temperature=temperature,
        top_p=top_p if temperature else 1.0,
        max_new_tokens=min(most, MOST),
        beams=int(flags.get("num_beams") or 1),
    )


def until_of(flags: Mapping[str, Any]) -> tuple[str, ...]:
    until = flags.get("until") or ()
    return tuple(filter(None, [until] if isinstance(until, str) else until))


def cut(text: str, until: Sequence[str]) -> str:
    """Up to the first of what ends it."""
    ends = [at for end in until if (at := text.find(end)) >= 0]
    return text[: min(ends)] if ends else text


def as_media(given: Sequence[Any], size: VideoLlamaSize, senses: tuple[bool, bool]) -> Media:
    """A file's name, pictures (several are a clip's frames), or {"array", "sampling_rate"}.

    A sound may stand beside pictures. Raises ValueError for anything else.
    """
    sounds = [x for x in given if isinstance(x, Mapping) and "array" in x]
    rest = [x for x in given if not (isinstance(x, Mapping) and "array" in x)]
    if len(rest) == 1 and isinstance(rest[0], str) and not sounds:
        return read_media(rest[0], size, *senses)
    pictures = [x for x in rest if hasattr(x, "convert")]
    if len(pictures) < len(rest) or len(sounds) > 1:
        kinds = ", ".join(sorted({type(x).__name__ for x in given}))
        raise ValueError(
            f"visuals: got {len(given)} ({kinds}), expected one file, pictures, or one sound"
        )
    media = Media(_frames(pictures, size) if pictures else None, None)
    if sounds:
        media = dataclasses.replace(media, mel=_mel(sounds[0], size))
    return media


def _frames(pictures: Sequence[Any], size: VideoLlamaSize) -> np.ndarray:
    side = (size.vit.image, size.vit.image)
    picked = uniform_indices(len(pictures), min(FRAMES, size.max_frames))
    images = [np.asarray(pictures[i].convert("RGB")) for i in picked]
    return np.stack([resize_image(image, side) for image in images])


def _mel(sound: Mapping[str, Any], size: VideoLlamaSize) -> np.ndarray | None:
    wave = np.atleast_2d(np.asarray(sound["array"], np.float32))
    return mel_clips(wave, int(sound["sampling_rate"]), size.audio)
