"""Text to ids and back, whichever kind of file the vocabulary comes in.

Facts of the original that ids depend on (a slow sentencepiece LLaMA tokeniser): text is split at
special tokens first, every remaining piece is encoded by itself and so gets its own dummy leading
space, and around the placeholders, not around ``<s>`` and ``</s>``, white space is stripped.
"""

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

IMAGE_HERE, AUDIO_HERE = "<ImageHere>", "<AudioHere>"
FILES = ("tokenizer.model", "tokenizer.json")  # in the order they are looked for
SPACE = "▁"  # how sentencepiece writes a space
LLAMA_NAMES = {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}


class PromptError(ValueError):
    """A text that can't be used as it is; the sentence says why."""


class Special(NamedTuple):
    """The ids that mean something; the defaults are LLaMA's own.

    ``pad`` is that of unknown words, as the original sets it: their labels and attention are
    masked like padding's.
    """

    pad: int = 0
    bos: int = 1
    eos: int = 2


LLAMA = Special()


class Vocabulary(Protocol):
    """What a file of either kind offers.

    Attributes:
      count: how many pieces there are; learned: of them, those that were not added by name later.
      special: the ids that mean something.
      start: what a text begins with: bos, or nothing where the model was trained without.
      names: the special tokens' spellings; silent: ids that decoding leaves out.
    """

    count: int
    learned: int
    special: Special
    start: list[int]
    names: dict[str, int]
    silent: frozenset[int]

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


class Tokenizer:
    """A vocabulary plus the two placeholders, whose ids follow the embedding table.

    Args:
      path: a ``tokenizer.model`` (sentencepiece), a ``tokenizer.json`` (Hugging Face's tokenizers;
        what the special tokens are called stands beside it, in ``tokenizer_config.json``), or a
        folder that holds one.
      vocab: rows of the embedding table; by default, as many as the file has pieces.

    Raises FileNotFoundError, or ValueError for a file that can't be used.
    """

    def __init__(self, path: str | Path, vocab: int | None = None):
        file = tokenizer_file(path)
        self.pieces: Vocabulary = JsonFile(file) if file.suffix == ".json" else ModelFile(file)
        self.special = self.pieces.special
        self.start = self.pieces.start
        self.vocab = self.pieces.count if vocab is None else vocab
        if self.vocab < self.pieces.learned:
            raise ValueError(
                f"{file}: got {self.pieces.learned} pieces, expected at most the {self.vocab} rows "
                "of the embedding table; use the tokenizer that belongs to these weights"
            )
        here = {IMAGE_HERE: self.vocab, AUDIO_HERE: self.vocab + 1}
        self._ids = self.pieces.names | here
        spelled = [re.escape(name) for name in self.pieces.names]
        self._split = re.compile("|".join([*(rf"(?:\s*{name}\s*)" for name in here), *spelled]))

    @property
    def image_here(self) -> int:
        return self._ids[IMAGE_HERE]

    def encode(self, text: str, bos: bool = False, limit: int | None = None) -> list[int]:
        """Ids of ``text``, cut to ``limit``; with ``bos``, after ``start``. Eos is never added."""
        ids, at = list(self.start) if bos else [], 0
        for found in self._split.finditer(text):
            ids += self._encode(text[at : found.start()])
            ids.append(self._ids[found[0].strip()])
            at = found.end()
        return (ids + self._encode(text[at:]))[:limit]

    def _encode(self, piece: str) -> list[int]:
        """Without tokens that have no row, such as the <pad> that Llama-2's first release added."""
        return [i for i in self.pieces.encode(piece) if i < self.vocab] if piece else []

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
        spoken = (int(i) for i in ids if i not in self.pieces.silent)
        count = min(self.pieces.count, self.vocab)
        return self.pieces.decode([i for i in spoken if i < count])

    def stop_ids(self, stop: str) -> tuple[tuple[int, ...], ...]:
        """The token sequences that spell ``stop`` at a line's start or after other text."""
        found = {tuple(self.encode(stop))}
        for before in ("a", ".", "a.", "\n", "?"):
            ids, lead = self.encode(before + stop), self.encode(before)
            if ids[: len(lead)] == lead:
                found.add(tuple(ids[len(lead) :]))
        return tuple(sorted(found))


class ModelFile:
    """A sentencepiece model."""

    def __init__(self, path: Path):
        import sentencepiece

        try:
            self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"{path}: is no sentencepiece model ({error}); fetch it anew"
            ) from error
        model = self.model
        ids = {"unk": model.unk_id(), "bos": model.bos_id(), "eos": model.eos_id()}
        self.special = _special(path, ids)
        self.count = self.learned = model.vocab_size()
        self.start = [self.special.bos]
        self.names = {model.id_to_piece(i): i for i in self.special}
        self.silent = frozenset(
            i for i in range(self.count) if model.is_control(i) or model.is_unknown(i)
        )

    def encode(self, text: str) -> list[int]:
        return self.model.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self.model.decode(ids)


class JsonFile:
    """A ``tokenizer.json``. One made of a sentencepiece model is read as sentencepiece reads it.

    What such a file says about spaces has changed with the versions of transformers that wrote it;
    the slow tokeniser's rule is one: a space in front of every piece, whatever it begins with.
    """

    def __init__(self, path: Path):
        self.model = open_json(path)
        like_sentencepiece = self.model.token_to_id(SPACE) is not None
        if like_sentencepiece:
            spaces_as_sentencepiece(self.model)
        config = _beside(path)
        names = {kind: _name(config.get(f"{kind}_token")) for kind in (*LLAMA_NAMES, "pad")}
        names = {kind: name or LLAMA_NAMES.get(kind) for kind, name in names.items()}
        ids = {k: -1 if n is None else self.model.token_to_id(n) for k, n in names.items()}
        ids = {kind: -1 if i is None else i for kind, i in ids.items()}
        self.special = _special(path, ids)
        self.count: int = self.model.get_vocab_size(with_added_tokens=True)
        self.learned: int = self.model.get_vocab_size(with_added_tokens=False)
        begins = config.get("add_bos_token", self.special.bos in self.model.encode("").ids)
        self.start = [self.special.bos] if like_sentencepiece or begins else []
        self.names = {self.model.id_to_token(i): i for i in self.special}
        added = self.model.get_added_tokens_decoder()
        self.silent = frozenset([*self.special, *(i for i, t in added.items() if t.special)])

    def encode(self, text: str) -> list[int]:
        return self.model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.model.decode(ids, skip_special_tokens=False)


def tokenizer_file(path: str | Path) -> Path:
    """The file that ``path`` names, or that the folder ``path`` holds."""
    path = Path(path)
    candidates = [path / name for name in FILES] if path.is_dir() else [path]
    for file in candidates:
        if file.is_file():
            return file
    raise FileNotFoundError(f"tokenizer: got {path}, expected a {' or '.join(FILES)} file")


@functools.cache
def load_tokenizer(path: str, vocab: int | None = None) -> Tokenizer:
    """One tokenizer a path and process; arguments as ``Tokenizer``'s."""
    return Tokenizer(path, vocab)


def open_json(path: Path) -> Any:
    """The file as a ``tokenizers.Tokenizer`` that neither pads nor truncates."""
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(f"{path}: needs the package tokenizers; pip install tokenizers") from error
    try:
        model = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(f"{path}: is no tokenizer.json ({error}); fetch it anew") from error
    model.no_padding()
    model.no_truncation()
    return model


def spaces_as_sentencepiece(model: Any) -> None:
    """Makes a ``tokenizers.Tokenizer`` treat spaces as sentencepiece does."""
    from tokenizers import decoders, normalizers

    model.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    model.pre_tokenizer = None
    model.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )


def _beside(path: Path) -> dict[str, Any]:
    """What stands beside a ``tokenizer.json`` about its special tokens."""
    said: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = path.with_name(name)
        if file.is_file():
            try:
                said |= json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{file}: is not JSON ({error}); fetch it anew") from error
    return said


def _name(token: Any) -> str | None:
    """A token as these files have it: its spelling, or a dict around it."""
    return token.get("content") if isinstance(token, dict) else token


def _special(path: Path, ids: dict[str, int]) -> Special:
    """Raises ValueError where one is missing, or where padding could not be told from an end."""
    pad = ids["unk"] if ids["unk"] >= 0 else ids.get("pad", -1)
    special = Special(pad, ids["bos"], ids["eos"])
    if min(special) < 0 or special.pad == special.eos:
        told = ", ".join(f"{kind} {i if i >= 0 else 'missing'}" for kind, i in ids.items())
        raise ValueError(
            f"{path}: got {told}; expected ids for bos, eos and, other than eos, for unk or pad; "
            "a tokenizer.json needs tokenizer_config.json beside it, which names them"
        )
    return special
