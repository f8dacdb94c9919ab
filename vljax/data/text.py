"""Prompt templates, tokens, labels: what the language model is given, and what it is taught."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from vljax.data.tokenizer import AUDIO_HERE, IMAGE_HERE, LLAMA, PromptError, Tokenizer

IGNORE = -100  # labels that take no part in the loss


@dataclasses.dataclass(frozen=True)
class Template:
    """How a checkpoint wants to be talked to. It belongs to the weights, not to a flag.

    Attributes:
      family: the layout and label rule of the paper's code that it was trained with, if any.
      caption: wraps a captioning prompt. end: ends a caption after such a prompt.
      first, later: a user's message up to where the answer starts, with the system text and
        without. answer: an answer and what ends it. stop: what is cut off an answer.
      roles: names of user and assistant in the text.
      system: a system text, our own wording; callers may set another.
      image, video, sound, sound_video: the user's message for media, ``<ImageHere>`` for each.
      frame_message: whether to say at which seconds frames were sampled.
    """

    family: Literal["vicuna", "llama2"] | None
    caption: str
    end: str
    first: str
    later: str
    answer: str
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
    first="{system}###Human: {text}###Assistant:",
    later="Human: {text}###Assistant:",  # its ### stands already, as the end of the answer before
    answer=" {text}###",
    stop="###",
    roles=("Human", "Assistant"),
)
LLAMA2 = Template(
    family="llama2",
    caption="[INST] <<SYS>>\n \n<</SYS>>\n\n{} [/INST] ",
    end="</s>",
    first="[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{text} [/INST]",
    later="<s>[INST] {text} [/INST]",
    answer=" {text} </s>",
    stop="</s>",
    roles=("USER", "ASSISTANT"),
    system=SYSTEM,
)
_CHATML_TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
CHATML = Template(
    family=None,
    caption=_CHATML_TURN,
    end="<|im_end|>",
    first="<|im_start|>system\n{system}<|im_end|>\n" + _CHATML_TURN.format("{text}"),
    later="\n" + _CHATML_TURN.format("{text}"),
    answer="{text}<|im_end|>",
    stop="<|im_end|>",
    roles=("user", "assistant"),
    system=SYSTEM,
)
TEMPLATES = {
    "vicuna": VICUNA,
    "llama2": LLAMA2,
    "smollm2_135m": CHATML,
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
    """[start, prompt's start, ``media`` placeholders, prompt's end, text + end]; text is taught.

    ``limit`` counts the text's tokens, its end included, and may cut the end off (as the original
    does). Pad ids, and so unknown words, are not taught.
    """
    before, after = prompt.split(IMAGE_HERE) if prompt else ("", "")
    context = [
        *tokenizer.start,
        *tokenizer.encode(before),
        *[tokenizer.image_here] * media,
        *tokenizer.encode(after),
    ]
    target = tokenizer.encode(text + end, limit=limit)
    labels = [IGNORE] * len(context) + [IGNORE if i == tokenizer.special.pad else i for i in target]
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
    """The whole conversation as one string, in the layout the template's family is trained on.

    Raises PromptError for a template that the paper's code does not know.
    """
    if template.family is None:
        raise PromptError("masking: got original, which this template has none of; say clean")
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
    """Tokens of ``text`` with its own start, not counting pad ids, as the original counts."""
    return sum(i != tokenizer.special.pad for i in tokenizer.encode(text, bos=True))


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
    """A user's message up to where the answer starts, as ``chat`` sends it."""
    if first:
        return template.first.format(system=template.system, text=text)
    return template.later.format(text=text)


def close_turn(text: str, template: Template) -> str:
    """An answer and what ends it."""
    return template.answer.format(text=text)


def spoken(text: str, template: Template) -> str:
    """The answer in a generated text: what comes before its end, without a repeated role name."""
    text = text.split(template.stop)[0]
    if template.family is not None:  # whose role names are ordinary text
        text = text.split(f"{template.roles[1]}:")[-1]
    return text.strip()


def collate(
    examples: Sequence[TextExample], length: int, pad: int = LLAMA.pad
) -> dict[str, np.ndarray]:
    """Pads to ``length``: tokens and labels int32 [B, length], mask bool (the pad id is masked)."""
    tokens = np.full((len(examples), length), pad, np.int32)
    labels = np.full((len(examples), length), IGNORE, np.int32)
    for i, example in enumerate(examples):
        n = len(example.tokens)
        if n > length:
            raise PromptError(f"example {i}: got {n} tokens, expected at most {length}")
        tokens[i, :n], labels[i, :n] = example.tokens, example.labels
    return {"tokens": tokens, "labels": labels, "mask": tokens != pad}
