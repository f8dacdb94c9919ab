"""What does not belong together: widths, vocabularies, templates, deltas used as models."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vljax.convert.findings import Finding, listed
from vljax.data.text import TEMPLATES

SIZES = {4096: " (7B)", 5120: " (13B)"}
FAMILIES: dict[str | None, str] = {
    "vicuna": "Vicuna",
    "llama2": "Llama-2",
    None: "another family",
}

# A fine-tuned model minus its base moves a norm's gains by some 1e-3. Those of a whole LLaMA lie
# at 0.1 to 2: the first layer's, which see the bare embeddings, are the smallest of all (some
# 0.03) and are not judged. This lies well between.
NEAR_ZERO = 0.02
MIXED = 0.1  # the part of all norms from which on shards of a delta are suspected

EMBEDDING = r"(^|\.)embed_tokens\.weight$|^llama/tokens/embedding$"
HEAD = r"(^|\.)lm_head\.weight$|^llama/head/kernel$"
PROJECTION = r"^(audio_)?llama_proj\.weight$|^(video|audio)_proj/kernel$"
NORM = (
    r"(^|\.)model\.norm\.weight$|\.(input|post_attention)_layernorm\.weight$"
    r"|^llama/norm/scale$|^llama/layers/(attention|mlp)_norm/scale$"
)


@dataclasses.dataclass(frozen=True)
class Number:
    """A number that something must agree with, and where it stands."""

    file: Path
    name: str
    value: int

    def __str__(self) -> str:
        return f"{self.name} of {self.file}"


def out_width(name: str, shape: Sequence[int]) -> int:
    """Outputs of a kernel: torch keeps [out, in], we keep [in, out]."""
    return shape[-1] if "/" in name else shape[0]


def of_widths(decoders: Sequence[Number], projections: Sequence[Number]) -> Iterator[Finding]:
    """Projections must end in the width of the language model, and be of one width."""
    everything = [*decoders, *projections]
    for other in everything[1:]:
        first = everything[0]
        if other.value != first.value:
            text = (
                f"{other.file}: {other.name} is {other.value} wide{SIZES.get(other.value, '')},"
                f" expected {first.value}{SIZES.get(first.value, '')} as {first}; a projection"
                " must be as wide as its language model: take files made for one size"
            )
            yield Finding(other.file, "width", text)


@dataclasses.dataclass(frozen=True)
class Words:
    """The tokens of a tokenizer file: those of its model, and those added to them by name."""

    file: Path
    pieces: int
    added: tuple[str, ...] = ()

    @property
    def all(self) -> int:
        return self.pieces + len(self.added)

    def fit(self, rows: int) -> bool:
        """Whether a table of so many rows is this tokenizer's.

        Llama-2's first release adds a "<pad>" that its table has no row for and no text uses;
        some fine-tunes pad the table to the next multiple of 64.
        """
        unused = set(self.added) == {"<pad>"} and rows == self.pieces
        return rows == self.all or unused or (rows % 64 == 0 and 0 < rows - self.all < 64)


def of_vocabulary(
    rows: Number | None, others: Sequence[Number], words: Sequence[Words]
) -> Iterator[Finding]:
    """Rows of the embedding against the output head's, config.json's number and the tokenizer's.

    Vicuna's first deltas count 32001 tokens, with a [PAD] behind LLaMA's 32000: half of an applied
    delta beside half of the base loads well and talks nonsense. Without rows, config.json counts.
    """
    if rows is None and others:
        rows, *others = others
    if rows is None:
        return
    for other in others:
        if other.value != rows.value:
            text = (
                f"{other.file}: {other.name} counts {other.value} tokens, expected {rows.value} as"
                f" {rows}; base (32000) and delta (32001, with [PAD]) seem to be mixed: take all"
                " files of the folder from one model"
            )
            yield Finding(other.file, "vocabulary", text)
    for w in words:
        if not w.fit(rows.value):
            added = f" ({w.pieces} and {len(w.added)} added: {listed(list(w.added))})"
            text = (
                f"{w.file}: has {w.all} tokens{added if w.added else ''}, expected {rows.value} as"
                f" {rows}; take the tokenizer files, added_tokens.json among them, of the model"
                " that the weights are of"
            )
            yield Finding(w.file, "tokenizer", text)


@dataclasses.dataclass(frozen=True)
class Claim:
    """That something is of a family (a key of FAMILIES), and how that is known."""

    file: Path
    family: str
    why: str
    sure: bool = True


def family_of_name(name: str) -> str | None:
    """Vicuna first: its later versions are made from Llama-2 and may name both."""
    if re.search("vicuna", name, re.IGNORECASE):
        return "vicuna"
    return "llama2" if re.search(r"llama[-_ ]?v?2", name, re.IGNORECASE) else None


def family_of_decoder(
    place: Path, config: Mapping[str, Any], tokens: int | None, added: Sequence[str] = ()
) -> Claim | None:
    """Which family a Hugging Face folder is of; None where its marks are missing or at odds."""
    source = str(config.get("_name_or_path") or "").rstrip("/").split("/")[-1]
    for name, why in ((place.name, "the folder's name"), (source, "_name_or_path of config.json")):
        if family := family_of_name(name):
            return Claim(place, family, f"{why} is {name!r}")
    if "[PAD]" in added or tokens == 32001:
        return Claim(place, "vicuna", "it has the [PAD] token of Vicuna's first version")
    if tokens not in (None, 32000):  # neither; its norms' eps tells nothing
        return None
    marks = {
        "rms_norm_eps": {1e-6: "vicuna", 1e-5: "llama2"},
        "max_position_embeddings": {2048: "vicuna", 4096: "llama2"},
    }
    known = {field: config[field] for field in marks if config.get(field) is not None}
    families = {marks[field].get(value) for field, value in known.items()}
    family = families.pop() if len(families) == 1 else None
    if family is None:
        return None
    why = " and ".join(f"{field} is {value:g}" for field, value in known.items())
    return Claim(place, family, f"{why} in its config.json")


def of_templates(
    template: str | None, decoders: Sequence[Claim], others: Sequence[Claim]
) -> Iterator[Finding]:
    """The template asked for, language models, and what was trained for one, must agree."""
    asked = None if template is None else TEMPLATES[template].family
    if asked is not None:  # a template of no family may be any model's
        for claim in decoders:
            if claim.family != asked:
                text = (
                    f"{claim.file}: got {FAMILIES[claim.family]} weights ({claim.why}), expected"
                    f" {FAMILIES[asked]} for template {template!r}; use template {claim.family!r}"
                    f" or weights of {FAMILIES[asked]}"
                )
                yield Finding(claim.file, "template", text)
    for claim in others:
        against = [d for d in decoders if d.family != claim.family]
        if against:
            first = against[0]
            text = (
                f"{claim.file}: is for {FAMILIES[claim.family]} ({claim.why}), expected it for"
                f" {FAMILIES[first.family]} as {first.file} is ({first.why}); take both for one"
                " language model"
            )
            yield Finding(claim.file, "template", text, "error" if claim.sure else "warning")
        elif asked is not None and not decoders and claim.family != asked:
            text = (
                f"{claim.file}: is for {FAMILIES[claim.family]} ({claim.why}), expected it for"
                f" template {template!r}; use template {claim.family!r} or the file made for yours"
            )
            yield Finding(claim.file, "template", text, "error" if claim.sure else "warning")


@dataclasses.dataclass(frozen=True)
class Norm:
    """A norm's mean absolute gain."""

    file: Path
    name: str
    gain: float

    @property
    def judged(self) -> bool:
        return not re.search(r"layers\.0\.|\[0\]$", self.name) and self.gain > 0


def of_norms(place: Path, source: str, norms: Sequence[Norm]) -> Iterator[Finding]:
    """Whether a language model is a delta (see NEAR_ZERO), or mixes shards of one with a model's.

    ``source``: config.json's ``_name_or_path``. Gains of exactly zero are damage of another kind.
    """
    judged = [n for n in norms if n.judged]
    small = [n for n in judged if n.gain < NEAR_ZERO]
    if not judged or len(small) < max(1, MIXED * len(judged)):
        return
    example = f"{small[0].name} is {small[0].gain:.2g} on average"
    hint = ", and so it is named" if "delta" in f"{place.name} {source}".lower() else ""
    if len(small) > len(judged) / 2:
        text = (
            f"{place}: got a delta ({example}{hint}), expected a whole model, whose norms lie far"
            " from 0; add the delta to its base model first (FastChat's apply_delta)"
        )
        yield Finding(place, "delta", text)
    else:
        files = listed(sorted({n.file.name for n in small}))
        text = (
            f"{place}: got {len(small)} of {len(judged)} norms near 0 ({example}), expected none,"
            f" as in a whole model; {files} may be a delta's: take all shards from one model"
        )
        yield Finding(place, "delta-mixed", text)
