"""Looks weights over before anyone converts or loads them, and says in sentences what is wrong."""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vljax.convert import damage, pairing
from vljax.convert.converted import (
    is_converted,
    manifest_of,
    of_converted,
    open_converted,
)
from vljax.convert.decoder import Model, Readable
from vljax.convert.findings import Finding
from vljax.convert.readers import TensorInfo, open_tensors
from vljax.data.text import TEMPLATES
from vljax.store import WeightsError

Show = Callable[[int, int], None]  # (bytes looked at, bytes in all)
# What trainers leave beside weights: pickles of other things.
NOT_WEIGHTS = r"(training_args|optimizer|scheduler|rng_state.*)\.(bin|pt|pth)"


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found, in how many files and tensors."""

    findings: tuple[Finding, ...]
    files: int
    tensors: int

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings are let pass."""
        return all(f.severity != "error" for f in self.findings)


@dataclasses.dataclass
class Patient:
    """All that was given: files, and what of them could be opened.

    Attributes:
      files: every file. sick: those not worth opening. converted: folders that vljax wrote.
      opened: file, or converted folder, -> its tensors.
    """

    files: list[Path]
    converted: list[Path]
    sick: set[Path] = dataclasses.field(default_factory=set)
    opened: dict[Path, Readable] = dataclasses.field(default_factory=dict)

    def sound(self, path: Path) -> bool:
        return path in self.files and path not in self.sick

    def within_converted(self, path: Path) -> bool:
        return any(folder in path.parents for folder in self.converted)


def examine(
    paths: Sequence[str | Path],
    template: str | None = None,
    deep: bool = True,
    progress: Show | None = None,
    paired: bool = True,
) -> list[Finding]:
    """The findings of ``diagnose``."""
    return list(diagnose(paths, template, deep, progress, paired).findings)


def diagnose(
    paths: Sequence[str | Path],
    template: str | None = None,
    deep: bool = True,
    progress: Show | None = None,
    paired: bool = True,
) -> Report:
    """Looks at files, at all files of folders, and at whether they belong together.

    ``template``: the prompt template that they are to be used with, a key of ``TEMPLATES``.
    ``deep`` reads every tensor, one in memory at a time, for zeros and NaN. ``paired`` asks
    whether all belong together and make a model, which a delta by itself does not. Nothing in a
    file is executed. Raises ValueError for a path that does not exist and an unknown template.
    """
    if template is not None and template not in TEMPLATES:
        raise ValueError(f"template: got {template!r}, expected one of {', '.join(TEMPLATES)}")
    patient = gather([Path(p) for p in paths])
    findings = [
        *of_files(patient),
        *opening(patient),
        *damage.of_shards(patient.files, {p: list(t) for p, t in patient.opened.items()}),
        *(of_pairs(patient, template) if paired else ()),
    ]
    if deep:
        findings += of_values(patient, progress)
    tensors = sum(len(t) for t in patient.opened.values())
    if not tensors and all(f.severity != "error" for f in findings):
        names = ", ".join(map(str, paths))
        text = f"{names}: got no weights, expected {', '.join(damage.WEIGHTS)} or a vljax folder"
        findings.append(Finding(Path(paths[0]), "no-weights", f"{text}; check the path"))
    return Report(tuple(dict.fromkeys(findings)), len(patient.files), tensors)


def gather(paths: Sequence[Path]) -> Patient:
    """Every file under ``paths``, hidden ones left out. Raises ValueError for one that is not."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ValueError(
                f"{path}: got no such file or folder, expected weights; check the path"
            )
        inside = sorted(p for p in path.rglob("*") if p.is_file())
        files += [p for p in inside if not re.search(r"/\.", f"/{p.relative_to(path)}")]
        files += [path] if path.is_file() else []
    files = list(dict.fromkeys(files))
    folders = {path for path in paths if path.is_dir()} | {p for f in files for p in f.parents}
    given = [f for f in folders if any(f == p or p in f.parents for p in paths)]
    return Patient(files, sorted(f for f in given if is_converted(f)))


def of_files(patient: Patient) -> Iterator[Finding]:
    for path in patient.files:
        if finding := damage.of_file(path):
            patient.sick.add(path)
            yield finding


def opening(patient: Patient) -> Iterator[Finding]:
    """Opens what is sound; a sentence for each that can't be opened all the same."""
    for folder in patient.converted:
        params = folder / "params"
        tensors = None
        if not any(params in path.parents for path in patient.sick):
            try:
                tensors = patient.opened[params] = open_converted(folder)
            except WeightsError as error:
                yield Finding(params, "unreadable", str(error))
        yield from of_converted(folder, tensors)
    for path in patient.files:
        if not (patient.sound(path) and path.suffix in damage.WEIGHTS):
            continue
        if re.fullmatch(NOT_WEIGHTS, path.name) or patient.within_converted(path):
            continue
        try:
            patient.opened[path] = open_tensors(path)
        except Exception as error:  # a damaged file can raise anything
            yield Finding(path, "unreadable", unreadable(path, error))


def unreadable(path: Path, error: Exception) -> str:
    """The reader's own sentence, if it is one."""
    if isinstance(error, WeightsError) and str(path) in str(error):
        return str(error)
    reason = (str(error).splitlines() or [""])[0]
    return (
        f"{path}: can't be read ({type(error).__name__}: {reason}), expected weights; download it"
        " anew"
    )


def of_values(patient: Patient, progress: Show | None) -> Iterator[Finding]:
    """Zeros, NaN, and what breaks off while it is read."""
    total = sum(nbytes(t.info(n)) for t in patient.opened.values() for n in t)
    done = 0
    for path, tensors in patient.opened.items():
        seen: dict[str, list[str]] = collections.defaultdict(list)
        for name in tensors:
            try:
                for what, text in damage.of_tensor(name, tensors[name]):
                    seen[what].append(text)
            except Exception as error:  # a damaged file can raise anything
                yield Finding(path, "unreadable", f"{name} of {unreadable(path, error)}")
                break
            done += nbytes(tensors.info(name))
            if progress:
                progress(done, total)
        yield from damage.of_values(path, seen)


def nbytes(info: TensorInfo) -> int:
    return math.prod(info.shape) * info.dtype.itemsize


def of_pairs(patient: Patient, template: str | None) -> Iterator[Finding]:
    """What does not belong together."""
    sound = set(patient.files) - patient.sick
    models = [Model.of(place, sound, patient.opened) for place in places(patient)]
    projections = [
        pairing.Number(path, name, pairing.out_width(name, tensors.info(name).shape))
        for path, tensors in patient.opened.items()
        for name in tensors
        if re.search(pairing.PROJECTION, name) and len(tensors.info(name).shape) == 2
    ]
    yield from pairing.of_widths([w for m in models for w in m.widths()], projections)
    for model in models:
        yield from model.findings()
    yield from of_templates(patient, template, models, projections)


def places(patient: Patient) -> list[Path]:
    """Folders that hold a language model, or its config.json or tokenizer alone."""
    found = [
        path.parent
        for path, tensors in patient.opened.items()
        if any(re.search(pairing.EMBEDDING, n) or re.search(pairing.NORM, n) for n in tensors)
    ]
    configs = [p.parent for p in patient.files if p.name == "config.json" and patient.sound(p)]
    return list(dict.fromkeys([*found, *configs]))


def of_templates(
    patient: Patient,
    template: str | None,
    models: Sequence[Model],
    projections: Sequence[pairing.Number],
) -> Iterator[Finding]:
    """Folders of Hugging Face by their marks, converted ones by manifest, files by their names."""
    decoders = [c for m in models if m.place not in patient.converted and (c := m.claim())]
    others: list[pairing.Claim] = []
    for folder in patient.converted:
        made_for = manifest_of(folder).get("template")
        family = TEMPLATES[made_for].family if made_for in TEMPLATES else None
        if family is not None:
            path = folder / "manifest.json"
            others.append(pairing.Claim(path, family, f"its template is {made_for!r}"))
    for path in dict.fromkeys(p.file for p in projections):
        if path.is_file() and (named := pairing.family_of_name(path.name)):
            others.append(pairing.Claim(path, named, "by its name", sure=False))
    yield from pairing.of_templates(template, decoders, others)
