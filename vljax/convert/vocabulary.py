"""Builds a ``tokenizer.json`` of a vocabulary that comes in another form."""

import json
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

from vljax.data.tokenizer import spaces_as_sentencepiece


class Kind(IntEnum):
    """What a piece is, in the numbers that sentencepiece's and GGUF files share."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER = 4
    UNUSED = 5
    BYTE = 6


def byte_level(pieces: Sequence[str], kinds: Sequence[int], merges: Sequence[str]) -> Any:
    """A ``tokenizers.Tokenizer`` of GPT-2's kind whose digits stand alone, as SmolLM's do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {piece: i for i, piece in enumerate(pieces)}
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    model = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    model.decoder = decoders.ByteLevel()
    return _with_special(model, pieces, kinds)


def sentencepiece_bpe(pieces: Sequence[str], kinds: Sequence[int], scores: Sequence[float]) -> Any:
    """A ``tokenizers.Tokenizer`` that splits as sentencepiece does with a BPE model.

    Sentencepiece merges whatever makes the piece of the highest score, so merges are all ways to
    make a piece of two others, in the order of scores.
    """
    from tokenizers import Tokenizer, models

    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [
        (-scores[i], (piece[:cut], piece[cut:]))
        for i, piece in enumerate(pieces)
        if kinds[i] == Kind.NORMAL
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    merges.sort(key=lambda merge: merge[0])
    bpe = models.BPE(
        vocab=vocab,
        merges=[pair for _, pair in merges],
        unk_token=pieces[list(kinds).index(Kind.UNKNOWN)],
        fuse_unk=True,
        byte_fallback=Kind.BYTE in kinds,
    )
    model = Tokenizer(bpe)
    spaces_as_sentencepiece(model)
    return _with_special(model, pieces, kinds)


def write(model: Any, names: dict[str, str], add_bos: bool, folder: str | Path) -> None:
    """Writes ``tokenizer.json`` and, beside it, what its special tokens are called.

    ``names`` as {"bos": "<s>", ...}.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    config = {f"{kind}_token": name for kind, name in names.items()}
    text = json.dumps(config | {"add_bos_token": add_bos}, indent=1)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _with_special(model: Any, pieces: Sequence[str], kinds: Sequence[int]) -> Any:
    """Marks the tokens that are never made of text."""
    from tokenizers import AddedToken

    for piece, kind in zip(pieces, kinds, strict=True):
        if kind in (Kind.UNKNOWN, Kind.CONTROL):
            model.add_special_tokens([AddedToken(piece, special=True, normalized=False)])
        elif kind == Kind.USER:
            model.add_tokens([AddedToken(piece, normalized=False)])
    return model
