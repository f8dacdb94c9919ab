"""What a conversion will do, worked out and checked from names and shapes before any is read."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from vljax.convert import adjust, layouts
from vljax.convert.layouts import UNITS, Layout
from vljax.convert.mapping import Coverage, Rule, cover
from vljax.convert.readers import TensorInfo, Tensors, joined, open_tensors
from vljax.convert.towers import check_sound_scale, droppable, expected, rules
from vljax.data.text import TEMPLATES
from vljax.models.sizes import (
    DECODERS,
    LlamaSize,
    VideoLlamaSize,
    size_from_dict,
    video_llama_size,
)
from vljax.store import WeightsError

EMBEDDING = "llama_model.model.embed_tokens.weight"
POSITIONS = "visual_encoder.pos_embed"
TOKENIZERS = ("tokenizer.model", "tokenizer.json")


@dataclasses.dataclass(frozen=True)
class Options:
    """What the caller wants.

    Attributes:
      size: a name, or a JSON file that states a whole VideoLlamaSize; by default, what fits.
      llm: whose decoder. template: how it is talked to; by default ``llm``'s.
      dtype: what all is cast to, or "keep". delta: a folder that is added to the LLaMA folder.
    """

    size: str | None = None
    llm: str = "vicuna"
    template: str | None = None
    dtype: str = "keep"
    delta: Path | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """A file or folder, its tensors under the original's whole-model names."""

    path: Path
    layout: Layout
    tensors: Tensors


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is decided.

    Attributes:
      tensors: of all files, by whole-model names. size: of the model. template: its prompts'.
      table: the rules to build, of whole parts. units: keys of UNITS. dtypes: by our names.
      coverage: by file. added: tokens that a delta adds to the base's tokeniser, and their ids.
    """

    sources: tuple[Source, ...]
    tensors: Tensors
    size: VideoLlamaSize
    table: tuple[Rule, ...]
    units: tuple[str, ...]
    coverage: dict[Path, Coverage]
    dtypes: dict[str, np.dtype]
    template: str
    added: dict[str, int]

    @property
    def decoder(self) -> Source | None:
        return next((s for s in self.sources if s.layout.name == "llama"), None)


def make_plan(paths: Sequence[Path], options: Options) -> Plan:
    """Opens the files in the original's order of loading.

    Raises WeightsError for files that don't belong together. What is missing or unexpected within
    a file is in ``coverage``: see ``require_complete``.
    """
    sources = sorted(map(open_source, paths), key=lambda s: s.layout.order)
    added: dict[str, int] = {}
    if options.delta is not None:
        before = _rows(sources)
        sources = [_add_delta(s, options.delta) for s in sources]
        if not before:
            raise WeightsError(f"--delta={options.delta}: got no LLaMA folder to add it to")
        added = {"[PAD]": before} if _rows(sources) > before else {}
    _require_distinct(sources)
    size = choose_size(sources, options)
    tensors = joined([s.tensors for s in sources])
    tensors = adjust.with_positions(tensors, POSITIONS, (size.vit.image // size.vit.patch) ** 2 + 1)
    check_sound_scale(tensors, size)
    template = options.template or options.llm
    if template not in TEMPLATES:
        raise WeightsError(f"--template: got {template}, expected one of {', '.join(TEMPLATES)}")
    table, drop = rules(size), droppable(size)
    held, coverage = set(), {}
    for source in sources:
        units = {*source.layout.units, *layouts.touched(source.tensors, table)}
        wanted = [r for r in table if layouts.unit_of(r) in units]
        coverage[source.path] = cover(source.tensors, wanted, drop)
        held |= units
    table = [r for r in table if layouts.unit_of(r) in held]
    # What is missing is told with the rest of the coverage, not here.
    whole = [r for r in table if all(name in tensors for name in r.sources)]
    return Plan(
        tuple(sources),
        tensors,
        size,
        tuple(table),
        tuple(unit for unit in UNITS if unit in held),
        coverage,
        {rule.name: _dtype(rule, tensors, size, options.dtype) for rule in whole},
        template,
        added,
    )


def open_source(path: Path) -> Source:
    tensors = open_tensors(path)
    layout = layouts.identify(path, tensors)
    return Source(path, layout, layouts.as_whole(layout, tensors))


def _rows(sources: Sequence[Source]) -> int:
    """Of the embedding; 0 without one."""
    found = [s.tensors.info(EMBEDDING).shape[0] for s in sources if EMBEDDING in s.tensors]
    return found[0] if found else 0


def _add_delta(source: Source, folder: Path) -> Source:
    if source.layout.name != "llama":
        return source
    delta = open_source(folder)
    if delta.layout.name != "llama":
        raise WeightsError(f"--delta={folder}: is {delta.layout.title}, expected a LLaMA's delta")
    return dataclasses.replace(source, tensors=adjust.with_delta(source.tensors, delta.tensors))


def _require_distinct(sources: Sequence[Source]) -> None:
    """Two files of one kind would silently shadow each other."""
    seen: dict[str, Source] = {}
    for source in sources:
        if other := seen.get(source.layout.name):
            raise WeightsError(
                f"{other.path} and {source.path}: both are {source.layout.title}; name one"
                + (", the other with --delta" if source.layout.name == "llama" else "")
            )
        seen[source.layout.name] = source


def choose_size(sources: Sequence[Source], options: Options) -> VideoLlamaSize:
    """The size asked for or, without one, that fits; the decoder as its config.json has it."""
    llama = next((s for s in sources if s.layout.name == "llama"), None)
    decoder = None if llama is None else _decoder(llama)
    if llama is not None and decoder is not None:
        _require_llm(llama.path, decoder, options.llm)
    widths = {s.path: w for s in sources if (w := layouts.projection_width(s.tensors))}
    if options.size is not None:
        size = named_size(options.size, options.llm)
        if llama is not None and decoder is not None:
            _require_same(llama.path, decoder, size, options.size)
    elif decoder is not None:
        names = {DECODERS[n, m].width: n for n, m in DECODERS}
        size = VideoLlamaSize(names.get(decoder.width, "other"), decoder)
    else:
        size = _size_by_width(widths, options.llm)
    if decoder is not None:
        size = dataclasses.replace(size, llama=decoder)
    for path, width in widths.items():
        if width != size.llama.width:
            whose = f" ({llama.path})" if llama else ""
            raise WeightsError(
                f"{path}: this projection is for a {width}-wide LLM, yours is "
                f"{size.llama.width}{whose}; take the files of one size"
            )
    return size


def named_size(name: str, llm: str) -> VideoLlamaSize:
    if not name.endswith(".json"):
        return video_llama_size(name, llm)
    try:
        return size_from_dict(json.loads(Path(name).read_text()))
    except ValueError as error:
        raise WeightsError(f"--size={name}: {error}") from error


def _decoder(source: Source) -> LlamaSize:
    """As config.json has it, but as many embeddings as there are."""
    if "config" not in source.tensors.metadata:
        raise WeightsError(f"{source.path}: got no config.json beside the LLaMA; name its folder")
    size = layouts.decoder_size(source.tensors.metadata["config"], source.path / "config.json")
    return dataclasses.replace(size, vocab=_rows([source]) or size.vocab)


def _require_llm(path: Path, decoder: LlamaSize, llm: str) -> None:
    """A decoder that goes by one name alone must be called by it: its template depends on it."""
    names = {name for (_, name), known in DECODERS.items() if known.width == decoder.width}
    if names and llm not in names:
        raise WeightsError(
            f"{path}: its LLM is {decoder.width} wide, as none of --llm={llm} is; "
            f"say --llm={sorted(names)[0]}"
        )


def _require_same(path: Path, decoder: LlamaSize, size: VideoLlamaSize, asked: str) -> None:
    for field in ("width", "depth"):
        got, wanted = getattr(decoder, field), getattr(size.llama, field)
        if got != wanted:
            raise WeightsError(
                f"{path}: its LLM has {field} {got}, but --size={asked} has {wanted}; "
                "leave --size out, or name the other LLM"
            )


def _size_by_width(widths: dict[Path, int], llm: str) -> VideoLlamaSize:
    """Of a set without an LLM: the named size that its projections are for."""
    for path, width in widths.items():
        for (name, kind), decoder in DECODERS.items():
            if (decoder.width, kind) == (width, llm):
                return video_llama_size(name, llm)
        raise WeightsError(
            f"{path}: this projection is for a {width}-wide LLM, which no named size has; "
            "name the LLM's folder, too"
        )
    return video_llama_size(llm=llm)


def _dtype(rule: Rule, tensors: Tensors, size: VideoLlamaSize, asked: str) -> np.dtype:
    """What the parameter is stored in. Raises WeightsError where sources don't fit the size."""
    shape = expected(size)[rule.name].shape
    kinds = set()
    for i, name in enumerate(rule.sources):
        info = tensors.info(name)
        if not jnp.issubdtype(info.dtype, np.floating):
            raise WeightsError(f"{info.file}: {name} is {info.dtype}, expected floating point")
        kinds.add(info.dtype)
        piece = rule.piece(lambda name: _hollow(tensors.info(name)), i).shape
        if piece != (shape[1:] if rule.stacked else shape):
            raise WeightsError(
                f"{info.file}: {name} is {info.shape}, which does not make {rule.name} {shape} of "
                f"size {size.name}; choose the size that it was trained with"
            )
    if asked != "keep":
        return jnp.dtype(asked)
    if len(kinds) > 1:
        raise WeightsError(
            f"{rule.name}: its layers are {', '.join(sorted(map(str, kinds)))}; choose one with "
            "--dtype"
        )
    return kinds.pop()


def _hollow(info: TensorInfo) -> np.ndarray:
    """An array of this shape that takes no memory."""
    return np.broadcast_to(np.zeros((), info.dtype), info.shape)


def require_complete(plan: Plan) -> None:
    """Raises WeightsError unless every tensor was known, and every part that is there is whole."""
    for path, coverage in plan.coverage.items():
        if coverage.unexpected or coverage.missing:
            raise WeightsError(
                f"{path}: {len(coverage.missing)} tensors are missing and "
                f"{len(coverage.unexpected)} unexpected; see above, and check --size"
            )


def report(plan: Plan) -> str:
    """The coverage, both ways: a line a file, names of what is wrong, parts that are absent."""
    lines = []
    for i, source in enumerate(plan.sources):
        coverage = plan.coverage[source.path]
        counts = (
            f"{len(coverage.loaded)} loaded, {len(coverage.dropped)} known to be dropped, "
            f"{len(coverage.unexpected)} unexpected, {len(coverage.missing)} missing"
        )
        for later in plan.sources[i + 1 :]:
            if both := later.tensors.keys() & coverage.loaded:
                counts += f"; {len(both)} replaced by {later.path.name}"
        lines.append(f"{source.path.name} ({source.layout.title}): {counts}")
        for what in ("unexpected", "missing"):
            names = getattr(coverage, what)
            lines += [f"  {what}: {name}" for name in names[:20]]
            lines += [f"  {what}: {len(names) - 20} more"] if len(names) > 20 else []
    absent = [unit for unit in UNITS if unit not in plan.units]
    lines.append(f"parts: {', '.join(plan.units)}; absent: {', '.join(absent) or 'none'}")
    return "\n".join(lines)
