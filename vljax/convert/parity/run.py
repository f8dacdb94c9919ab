"""All files of a golden set, each by the function that knows it."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import jax

from vljax.convert.parity import media, preprocessing, texts, training
from vljax.convert.parity.compare import Check, Compare, Report, Row, Skipped, flatten_json
from vljax.convert.parity.generation import generation
from vljax.convert.parity.golden import GoldenSet
from vljax.convert.parity.language import language


def _language_model(golden: GoldenSet, check: Check) -> None:
    language(golden, check)
    generation(golden, check)


FILES: dict[str, Compare] = {
    "config.json": texts.config,
    "weights.npz": texts.weights,
    "vision_forward.npz": media.vision_forward,
    "audio_imagebind.npz": media.audio_imagebind,
    "llm.npz": _language_model,
    **{
        f"train_{case}.npz": functools.partial(training.training, case=case)
        for case in training.BATCHES
    },
    "audio_prep.npz": preprocessing.audio_prep,
    "audio_prep_real.npz": preprocessing.audio_prep,
    "video_image_prep.npz": preprocessing.video_image_prep,
    "frame_sampling.json": preprocessing.frame_sampling,
    "lr_schedule.npz": texts.lr_schedule,
    "caption_cleaning.json": texts.caption_cleaning,
    "text_cases.json": texts.text_cases,
}
OPTIONAL = ("audio_prep_real.npz",)


def compare_set(
    folder: str | Path,
    files: Iterable[str] | None = None,
    show: Callable[[str], None] = lambda file: None,
) -> Report:
    """Compares the arrays of a golden set, in full float32 precision.

    Args:
      files: names of some of its files; all of them if None.
      show: told each file's name as its turn comes.

    Raises ValueError for a folder that is no golden set. What can't be computed is a failed row.
    """
    golden = GoldenSet(folder)
    report = Report([], [])
    here = sorted(p.name for p in golden.folder.iterdir() if p.suffix in (".npz", ".json"))
    with jax.default_matmul_precision("highest"):
        for file in [*FILES, *(name for name in here if name not in FILES)]:
            if files is not None and file not in files:
                continue
            show(file)
            rows, skipped = _compare_file(golden, file) if file in here else _absent(file)
            report.rows.extend(rows)
            report.not_compared.extend(skipped)
    return report


def _compare_file(golden: GoldenSet, file: str) -> tuple[list[Row], list[Skipped]]:
    stem = Path(file).stem
    if file.endswith(".json"):
        wants = flatten_json(golden.json(stem))
    else:
        wants = golden.arrays(stem)
    check = Check(file, wants)
    if file in FILES:
        with check.attempt(stem):
            FILES[file](golden, check)
    return check.finish()


def _absent(file: str) -> tuple[list[Row], list[Skipped]]:
    return [], [] if file in OPTIONAL else [Skipped(file, "", "not in this set")]
