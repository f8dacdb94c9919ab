"""Tokens, prompt templates, labels: what the language model is given, and what it is taught.

Facts of the original that ids depend on (a slow sentencepiece LLaMA tokeniser): text is split at
special tokens first, every remaining piece is encoded by itself and so gets its own dummy leading
space, and around the placeholders, not around ``<s>`` and ``</s>``, white space is stripped.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

IGNORE = -100  # labels that take no part in the loss
PAD, BOS, EOS = 0, 1, 2  # pad is unk, as the original sets it
IMAGE_HERE, AUDIO_HERE = "<ImageHere>", "<AudioHere>"
_SPECIAL = re.compile(r"(\s*<ImageHere>\s*|\s*<AudioHere>\s*|<unk>|<s>|</s>)")


class PromptError(ValueError):
    """A text that can't be used as it is; the sentence says why."""


class Tokenizer:
    """LLaMA's sentencepiece model plus the two placeholders, whose ids follow the vocabulary."""

    def __init__(self, path: str | Path):
        import sentencepiece

        if not Path(path).is_file():
            raise FileNotFoundError(f"tokenizer: got {path}, expected a tokenizer.model file")
        self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.vocab: int = self.model.vocab_size()
        self._ids = {
            "<unk>": PAD,
            "<s>": BOS,
            "</s>": EOS,
            IMAGE_HERE: self.vocab,
            AUDIO_HERE: self.vocab + 1,
        }

    @property
    def image_here(self) -> int:
        return self._ids[IMAGE_HERE]

    def encode(self, text: str, bos: bool = False, limit: int | None = None) -> list[int]:
        """Ids of ``text``, cut to ``limit``; with ``bos``, one in front. No eos is ever added."""
        ids = [BOS] if bos else []
        for piece in _SPECIAL.split(text):
            special = self._ids.get(piece.strip())
            if special is not None:
                ids.append(special)
            elif piece:
                ids.extend(self.model.encode(piece))
        return ids[:limit]

    def encode_prompt(self, prompt: str, media: Sequence[int]) -> list[int]:
        """Ids of a chat prompt: the n-th ``<ImageHere>`` becomes ``media[n]`` placeholders.

        Unlike a training text, white space around a placeholder is kept (as the original's chat
        does). Raises PromptError when there are more or fewer placeholders than media.
        """
        first, *rest = prompt.split(IMAGE_HERE)
        if len(rest) != len(media) or AUDIO_HERE in prompt:
            raise PromptError(
                f"prompt: got {len(rest)} {IMAGE_HERE}, {prompt.count(AUDIO_HERE)} {AUDIO_HERE}; "
                f"expected {len(media)} and 0: these words stand for media, leave them out"
            )
        ids = self.encode(first, bos=True)
        for part, count in zip(rest, media, strict=True):
            ids += [self.image_here] * count + self.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; special tokens and ids beyond the vocabulary are dropped."""
        return self.model.decode([int(i) for i in ids if EOS < i < self.vocab])

    def stop_ids(self, stop: str) -> tuple[tuple[int, ...], ...]:
        """The token sequences that spell ``stop`` at a line's start or after other text."""
        found = {tuple(self.model.encode(stop))}
        for before in ("a", ".", "a.", "\n", "?"):
            ids, lead = self.model.encode(before + stop), self.model.encode(before)
            if ids[: len(lead)] == lead:
                found.add(tuple(ids[len(lead) :]))
        return tuple(sorted(found))


@dataclasses.dataclass(frozen=True)
class Template:
    """How a checkpoint wants to be talked to. It belongs to the weights, not to a flag.

    Attributes:
      family: which conversation layout and label rule (REFERENCE of both: the paper's code).
      caption: wraps a captioning prompt. end: ends a caption after such a prompt.
      stop: what ends an answer. roles: names of user and assistant.
      system: a system text, our own wording; callers may set another.
      image, video, sound, sound_video: the user's message for media, ``<ImageHere>`` for each.
      frame_message: whether to say at which seconds frames were sampled.
    """

    family: Literal["vicuna", "llama2"]
    caption: str
    end: str
    stop: str
    roles: tuple[str, str]
    system: str = ""
    image: str = "<Image><ImageHere></Image> "
    video: str = "<Video><ImageHere></Video> "
    sound: str = "You hear:<ImageHere>. "
    sound_video: str = "You hear:<ImageHere>. You see:<Video><ImageHere></Video> "
    sound_image: str = "You hear:<ImageHere>. You see:<Image><ImageHere></Image> "
    frame_message: bool = True


SYSTEM = "You can see and hear what the user gives you. Follow the instructions closely."
VICUNA = Template(
    family="vicuna",
    caption="###Human: {} ###Assistant: ",
    end="###",
    stop="###",
    roles=("Human", "Assistant"),
)
LLAMA2 = Template(
    family="llama2",
    caption="[INST] <<SYS>>\n \n<</SYS>>\n\n{} [/INST] ",
    end="</s>",
    stop="</s>",
    roles=("USER", "ASSISTANT"),
    system=SYSTEM,
)
TEMPLATES = {
    "vicuna": VICUNA,
    "llama2": LLAMA2,
    "tiny": dataclasses.replace(VICUNA, frame_message=False),
}

CAPTION_PROMPTS = (
    "<Image><ImageHere></Image> Describe what you see.",
    "<Image><ImageHere></Image> What happens?",
    "<Image><ImageHere></Image> Give a detailed description of this.",
    "<Image><ImageHere></Image> Look closely and say what is in the picture.",
)

Turns = Sequence[tuple[str, str]]  # (role, text), role "human" or "gpt"


@dataclasses.dataclass(frozen=True)
class TextExample:
    """Token ids with a placeholder id for every media vector, and labels of the same length."""

    tokens: np.ndarray
    labels: np.ndarray


def caption_example(
    tokenizer: Tokenizer,
    text: str,
    media: int,
    prompt: str | None = None,
    end: str = "\n",
    limit: int = 32,
) -> TextExample:
    """[bos, prompt's start, ``media`` placeholders, prompt's end, text + end]; text is taught.

    ``limit`` counts the text's tokens, its end included, and may cut the end off (as the original
    does). Pad ids, and so unknown words, are not taught.
    """
    before, after = prompt.split(IMAGE_HERE) if prompt else ("", "")
    context = [
        BOS,
        *tokenizer.encode(before),
        *[tokenizer.image_here] * media,
        *tokenizer.encode(after),
    ]
    target = tokenizer.encode(text + end, limit=limit)
    labels = [IGNORE] * len(context) + [IGNORE if i == PAD else i for i in target]
    return TextExample(np.array(context + target, np.int32), np.array(labels, np.int32))


def expand(text: str, media: int, tags: tuple[str, str] = ("<Image>", "</Image>")) -> str:
    """Each ``<image>`` of an instruction record becomes ``media`` placeholders between ``tags``.

    ``<other>`` becomes bare ones of the second kind, whose ids tell that what stands there is not
    the record's own (``Record``).
    """
    own, other = tags[0] + IMAGE_HERE * media + tags[1], AUDIO_HERE * media
    return text.replace("<image>", own).replace("<other>", other)


def conversation_example(
    tokenizer: Tokenizer,
    turns: Turns,
    template: Template,
    media: int,
    limit: int = 512,
    masking: Literal["original", "clean"] = "original",
) -> TextExample:
    """Tokens and labels of a whole conversation; see ``conversation_text``.

    Args:
      media: how many placeholders a medium has; truncation that cuts one is an error.
      masking: "original" reproduces the paper's code, whose windows drift by about a token a
        turn; "clean" teaches exactly the assistant's words and the end of its turn.

    Raises:
      PromptError: the placeholders are not all there.
    """
    if masking == "clean":
        tokens, labels = _clean(tokenizer, turns, template)
    else:
        text = conversation_text(turns, template)
        tokens = np.array(tokenizer.encode(text, bos=True, limit=limit), np.int32)
        mask = _mask_vicuna if template.family == "vicuna" else _mask_llama2
        labels = mask(tokenizer, turns, template, text, tokens)
    tokens, labels = tokens[:limit], labels[:limit]
    got = int((tokens >= tokenizer.image_here).sum())
    there = sum(value.count(IMAGE_HERE) + value.count(AUDIO_HERE) for _, value in turns)
    whole = got > 0 and got % media == 0 if media else got == 0
    if got != there or not whole:
        raise PromptError(
            f"conversation: got {got} media placeholders within {limit} tokens, expected all of "
            f"{media} a medium; shorten the first turns or raise the limit"
        )
    return TextExample(tokens, labels)


def conversation_text(turns: Turns, template: Template) -> str:
    """The whole conversation as one string, in the layout the template's family is trained on."""
    if template.family == "vicuna":
        return "\n\n" + "".join(_vicuna_turn(t, template) for t in turns) + "###"
    return _llama2_text(_alternating(turns), template)


def _vicuna_turn(turn: tuple[str, str], template: Template) -> str:
    role, text = turn
    return f"###{template.roles[role != 'human']}: {text}\n"


def _llama2_text(turns: Turns, template: Template, system: str = " ") -> str:
    text = ""
    for i, (role, value) in enumerate(turns):
        if i == 0:
            text += f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{value} [/INST]"
        elif role == "human":
            text += f"<s>[INST] {value} [/INST]"
        else:
            text += f" {value} </s>"
    return text.lstrip("<s>")


def _alternating(turns: Turns) -> Turns:
    """Drops a leading answer; roles must alternate."""
    turns = turns[1:] if turns and turns[0][0] != "human" else turns
    for i, (role, _) in enumerate(turns):
        if (role == "human") != (i % 2 == 0):
            raise PromptError(f"conversation: turn {i} is by {role!r} again; roles must alternate")
    return turns


def _count(tokenizer: Tokenizer, text: str) -> int:
    """Tokens of ``text`` with its own bos, not counting pad ids, as the original counts."""
    return sum(i != PAD for i in tokenizer.encode(text, bos=True))


def _mask_vicuna(
    tokenizer: Tokenizer, turns: Turns, template: Template, text: str, tokens: np.ndarray
) -> np.ndarray:
    labels = tokens.copy()
    at = _count(tokenizer, "\n\n")
    labels[:at] = IGNORE
    for role, value in turns:
        length = _count(tokenizer, _vicuna_turn((role, value), template))
        if role == "human":
            labels[at + 2 : at + length] = IGNORE
        at += length
    return labels


def _mask_llama2(
    tokenizer: Tokenizer, turns: Turns, template: Template, text: str, tokens: np.ndarray
) -> np.ndarray:
    labels = tokens.copy()
    at = 1
    labels[:at] = IGNORE
    for round_ in text.split("</s>"):
        parts = round_.split("[/INST] ")
        if not round_ or len(parts) != 2:
            break
        instruction = _count(tokenizer, parts[0] + "[/INST] ") - 2
        labels[at : at + instruction] = IGNORE
        at += _count(tokenizer, round_)
    labels[at:] = IGNORE
    return labels


def _clean(tokenizer: Tokenizer, turns: Turns, template: Template) -> tuple[np.ndarray, np.ndarray]:
    """The chat's own layout, so that training and asking see the same ids."""
    text, spans = "", []
    for i, (role, value) in enumerate(turns):
        if role == "human":
            text += open_turn(value, template, first=i == 0)
        else:
            start, text = text, text + close_turn(value, template)
            spans.append((start, text))
    tokens = np.array(tokenizer.encode(text, bos=True), np.int32)
    labels = np.full_like(tokens, IGNORE)
    for start, stop in spans:
        a, b = (_shared_prefix(tokens, tokenizer.encode(t, bos=True)) for t in (start, stop))
        labels[a:b] = tokens[a:b]
    return tokens, labels


def _shared_prefix(tokens: np.ndarray, prefix: Sequence[int]) -> int:
    """How many leading tokens agree: a text's own ids may differ where it was cut."""
    n = min(len(tokens), len(prefix))
    differs = np.flatnonzero(tokens[:n] != np.array(prefix[:n]))
    return int(differs[0]) if len(differs) else n


def open_turn(text: str, template: Template, first: bool = True) -> str:
    """A user's message up to where the answer starts, as ``chat`` sends it.

    Vicuna: ``###Human: text###Assistant:`` (later turns: the ``###`` already stands, as the end of
    the answer before). Llama-2: the ``[INST]`` layout, with the system text in the first turn.
    """
    if template.family == "vicuna":
        lead = f"{template.system}###" if first else ""
        return f"{lead}{template.roles[0]}: {text}###{template.roles[1]}:"
    if first:
        return f"[INST] <<SYS>>\n{template.system}\n<</SYS>>\n\n{text} [/INST]"
    return f"<s>[INST] {text} [/INST]"


def close_turn(text: str, template: Template) -> str:
    """An answer and what ends it."""
    return f" {text}###" if template.family == "vicuna" else f" {text} </s>"


def collate(examples: Sequence[TextExample], length: int) -> dict[str, np.ndarray]:
    """Pads to ``length``: tokens and labels int32 [B, length], mask bool (the pad id is masked)."""
    tokens = np.full((len(examples), length), PAD, np.int32)
    labels = np.full((len(examples), length), IGNORE, np.int32)
    for i, example in enumerate(examples):
        n = len(example.tokens)
        if n > length:
            raise PromptError(f"example {i}: got {n} tokens, expected at most {length}")
        tokens[i, :n], labels[i, :n] = example.tokens, example.labels
    return {"tokens": tokens, "labels": labels, "mask": tokens != PAD}


@functools.cache
def load_tokenizer(path: str) -> Tokenizer:
    """One tokenizer a path and process."""
    return Tokenizer(path)
