"""What a folder says of the language model in it: its tensors, config.json and tokenizer."""

import dataclasses
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vljax.convert import pairing
from vljax.convert.converted import Converted
from vljax.convert.findings import Finding
from vljax.convert.readers import Tensors

Readable = Tensors | Converted
Named = tuple[Path, str, tuple[int, ...]]  # file, name, shape


@dataclasses.dataclass(frozen=True)
class Model:
    """A language model's folder: what its tensors, config.json and tokenizer say."""

    place: Path
    config: Mapping[str, Any]
    words: tuple[pairing.Words, ...]
    parts: Mapping[Path, Readable]

    @classmethod
    def of(cls, place: Path, sound: Collection[Path], opened: Mapping[Path, Readable]) -> "Model":
        """Of the ``sound`` files in the folder and those ``opened``."""
        path = place / "config.json"
        config = read_json(path) if path in sound else {}
        parts = {p: t for p, t in opened.items() if p.parent == place}
        return cls(place, config, tuple(read_words(place, sound)), parts)

    def named(self, pattern: str, axes: Collection[int] = (2,)) -> Iterator[Named]:
        for path, tensors in self.parts.items():
            for name in tensors:
                shape = tensors.info(name).shape
                if re.search(pattern, name) and len(shape) in axes:
                    yield path, name, shape

    def numbers(self, field: str) -> list[pairing.Number]:
        value = self.config.get(field)
        path = self.place / "config.json"
        return [pairing.Number(path, field, value)] if isinstance(value, int) else []

    def widths(self) -> list[pairing.Number]:
        found = [pairing.Number(p, n, shape[1]) for p, n, shape in self.named(pairing.EMBEDDING)]
        return found + self.numbers("hidden_size")

    def rows(self) -> list[pairing.Number]:
        """Of embeddings, then of output heads, then config.json's."""
        found = [pairing.Number(p, n, shape[0]) for p, n, shape in self.named(pairing.EMBEDDING)]
        # Other models' heads may lie in the same folder (EVA's file can hold an lm_head).
        widths = {w.value for w in self.widths()}
        heads = [
            pairing.Number(p, n, pairing.out_width(n, shape))
            for p, n, shape in self.named(pairing.HEAD)
            if found and widths & set(shape)
        ]
        return found + heads + self.numbers("vocab_size")

    def norms(self) -> Iterator[pairing.Norm]:
        for path, name, _ in self.named(pairing.NORM, (1, 2)):
            gain = np.abs(np.asarray(self.parts[path][name], np.float32))
            rows = gain if gain.ndim == 2 else gain[None]
            for i, row in enumerate(rows):
                label = f"{name}[{i}]" if gain.ndim == 2 else name
                yield pairing.Norm(path, label, float(row.mean()))

    def findings(self) -> Iterator[Finding]:
        rows = self.rows()
        yield from pairing.of_vocabulary(rows[0] if rows else None, rows[1:], self.words)
        try:
            norms = list(self.norms())
        except Exception:  # damage, which is told when values are read
            return
        yield from pairing.of_norms(self.place, str(self.config.get("_name_or_path")), norms)

    def claim(self) -> pairing.Claim | None:
        added = [name for w in self.words for name in w.added]
        rows = self.rows()
        return pairing.family_of_decoder(
            self.place, self.config, rows[0].value if rows else None, added
        )


def read_words(place: Path, sound: Collection[Path]) -> Iterator[pairing.Words]:
    """The tokenizers of a folder."""
    added_file, model = place / "added_tokens.json", place / "tokenizer.model"
    if model in sound:
        import sentencepiece

        added = read_json(added_file) if added_file in sound else {}
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(model)).vocab_size()
        yield pairing.Words(
            model, pieces, tuple(n for n, i in added.items() if isinstance(i, int) and i >= pieces)
        )
    whole = place / "tokenizer.json"
    if whole in sound:
        content = read_json(whole)
        try:
            pieces = len(content["model"]["vocab"])
            others = [t["content"] for t in content.get("added_tokens", []) if t["id"] >= pieces]
        except (KeyError, TypeError):
            return
        yield pairing.Words(whole, pieces, tuple(others))


def read_json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_bytes())
    return value if isinstance(value, dict) else {}
