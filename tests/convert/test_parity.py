"""The golden set passes array by array, and any number that is changed is noticed."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from vljax.cli.main import main
from vljax.convert.parity import Report, compare_set
from vljax.convert.parity import compare as comparing
from vljax.convert.parity.compare import Check, Tolerance, compare, flatten_json
from vljax.convert.parity.golden import GoldenSet
from vljax.convert.parity.preprocessing import RAW_MEL
from vljax.convert.parity.report import as_markdown
from vljax.convert.parity.run import FILES, OPTIONAL

GOLDEN = Path(__file__).parent.parent / "golden"
BIASES = "self.key.bias"


class Compared(NamedTuple):
    """What was compared with what."""

    file: str
    name: str
    got: Any
    want: Any
    tolerance: Tolerance


class Whole(NamedTuple):
    report: Report
    compared: list[Compared]


@pytest.fixture(scope="module")
def whole() -> Whole:
    """One comparison of everything, and what went into it."""
    compared: list[Compared] = []

    def record(*arguments):
        compared.append(Compared(*arguments))
        return compare(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "compare", record)
        return Whole(compare_set(GOLDEN), compared)


@pytest.mark.slow
def test_every_array_is_close_enough(whole):
    bad = [row for row in whole.report.rows if not row.ok]
    assert not bad
    assert whole.report.ok
    assert {row.file for row in whole.report.rows} == set(FILES) - set(OPTIONAL)


@pytest.mark.slow
def test_only_inputs_and_noise_are_left_out(whole):
    for file, name, why in whole.report.not_compared:
        assert why == "an input" or "buffer" in why or name.endswith(BIASES), (file, name, why)


@pytest.mark.slow
def test_every_array_has_a_row_or_is_named_as_left_out(whole):
    told = {(row.file, row.name) for row in whole.report.rows}
    told |= {(x.file, x.name) for x in whole.report.not_compared}
    assert len(told) == len(whole.report.rows) + len(whole.report.not_compared)
    for path in GOLDEN.glob("*.npz"):
        with np.load(path) as file:
            assert {n for f, n in told if f == path.name} == set(file)


def moved(want: Any, rng: np.random.Generator) -> Any:
    """With one number off by a hundredth of the largest, or one element of a text or list."""
    if isinstance(want, str):
        return want + "."
    if isinstance(want, list) and not all(isinstance(x, int | float) for x in want):
        return want[1:]
    array = np.array(want)
    index = tuple(rng.integers(n) for n in array.shape)
    if array.dtype.kind in "iub":
        array[index] = 1 - array[index] if array.dtype == np.int8 else array[index] + 1
    else:
        array[index] += max(0.01 * float(np.abs(array).max()), 0.1 if array.max() == 0 else 0)
    return array


@pytest.mark.slow
def test_one_changed_number_fails_any_row(whole):
    rng = np.random.default_rng(0)
    for file, name, got, want, tolerance in whole.compared:
        if np.size(want) and tolerance is not RAW_MEL:
            assert not compare(file, name, got, moved(want, rng), tolerance).ok, (file, name)


def change(folder: Path, file: str, name: str, to: Any = None) -> None:
    """Writes ``file`` anew with one number of ``name`` moved, or ``name`` set ``to`` something."""
    rng = np.random.default_rng(0)
    if file.endswith(".npz"):
        with np.load(folder / file) as old:
            arrays = dict(old)
        arrays[name] = moved(arrays[name], rng) if to is None else to
        np.savez(folder / file, **arrays)
        return
    tree = node = json.loads((folder / file).read_text())
    rest = name
    while True:  # keys may hold slashes
        keys = range(len(node)) if isinstance(node, list) else node
        key = next(k for k in keys if f"{rest}/".startswith(f"{k}/"))
        rest = rest.removeprefix(str(key)).removeprefix("/")
        if not rest:
            break
        node = node[key]
    node[key] = np.asarray(moved(node[key], rng)).tolist() if to is None else to
    (folder / file).write_text(json.dumps(tree))


@pytest.fixture
def copied(tmp_path) -> Path:
    shutil.copytree(GOLDEN, tmp_path / "set")
    return tmp_path / "set"


CHANGES = [
    ("config.json", "image_here_id"),
    ("config.json", "frames"),
    ("vision_forward.npz", "qformer_layer_1"),
    ("vision_forward.npz", "video_u8"),
    ("audio_imagebind.npz", "clip0/head_ln"),
    ("audio_prep.npz", "sweep/mel_clips_0_3_7"),
    ("audio_prep.npz", "clip_table/start_sample_8_clips"),
    ("audio_prep.npz", "noise_short/clip_end_s"),
    ("video_image_prep.npz", "train_hard_edges_1/out"),
    ("video_image_prep.npz", "eval/frames_thwc_u8"),
    ("lr_schedule.npz", "audio_stage2/lr"),
    ("frame_sampling.json", "headtail/3/indices"),
    ("frame_sampling.json", "uniform/5/message"),
    ("frame_sampling.json", "uniform/9/num_frames"),
    ("caption_cleaning.json", "3/out"),
    ("text_cases.json", "conversations/video_vicuna/0/n_query"),
    ("text_cases.json", "inference/audiovideo_vicuna/n_media"),
    ("text_cases.json", "caption/template_llama2"),
]
SLOW = [
    ("audio_imagebind.npz", "vision/frame_feature_final"),
    ("vision_forward.npz", "video"),
    ("llm.npz", "caption_vicuna/labels"),
    ("llm.npz", "gen_video_llama2/beam3_lp0_score"),
    ("llm.npz", "gen_image_two_turns_vicuna/greedy_until_stop_ids"),
    ("llm.npz", "gen_video_vicuna/stop_ids"),
    ("train_vision_caption.npz", "grad/llama_proj.bias"),
    ("train_vision_instruct.npz", "param_after/video_query_tokens"),
    ("train_audio_caption.npz", "loss_after_step"),
]


@pytest.mark.parametrize(
    ("file", "name"), [*CHANGES, *(pytest.param(*x, marks=pytest.mark.slow) for x in SLOW)]
)
def test_a_changed_copy_fails(copied, file, name):
    change(copied, file, name)
    report = compare_set(copied, files=[file])
    assert not report.ok
    assert any(not row.ok for row in report.rows)


def test_a_changed_weight_fails(copied):
    name = "visual_encoder.blocks.1.attn.qkv.weight"
    with np.load(copied / "weights.npz") as file:
        changed = file[name].copy()
    changed[3, 5] += 1
    change(copied, "weights.npz", name, changed)
    assert not compare_set(copied, files=["vision_forward.npz"]).ok


def test_unknown_arrays_and_files_are_listed(copied):
    change(copied, "lr_schedule.npz", "third_stage/rates", np.ones(3))
    change(copied, "lr_schedule.npz", "third_stage/lr", np.ones(3))
    np.savez(copied / "later.npz", a=np.ones(2))
    (copied / "notes.json").write_text('{"b": {"c": [1, 2]}}')
    report = compare_set(copied, files=["lr_schedule.npz", "later.npz", "notes.json"])
    assert report.ok
    listed = {(x.file, x.name) for x in report.not_compared if x.why == "unknown"}
    assert listed == {
        ("lr_schedule.npz", "third_stage/rates"),
        ("lr_schedule.npz", "third_stage/lr"),
        ("later.npz", "a"),
        ("notes.json", "b/c"),
    }


def test_a_missing_file_is_listed(copied):
    (copied / "lr_schedule.npz").unlink()
    report = compare_set(copied, files=["lr_schedule.npz", "caption_cleaning.json"])
    assert [x for x in report.not_compared if x.why != "an input"] == [
        ("lr_schedule.npz", "", "not in this set")
    ]


def test_real_sound_is_compared_where_a_set_has_it(copied):
    with np.load(GOLDEN / "audio_prep.npz") as file:
        real = {f"real/{n.split('/')[1]}": file[n] for n in file if n.startswith("sweep/")}
    np.savez(copied / "audio_prep_real.npz", **real)
    report = compare_set(copied, files=["audio_prep_real.npz"])
    assert report.ok
    assert {x.name for x in report.not_compared} == {"real/pcm_int16", "real/sample_rate"}
    assert len(report.rows) == len(real) - 2
    change(copied, "audio_prep_real.npz", "real/mel_clips_0_3_7")
    assert not compare_set(copied, files=["audio_prep_real.npz"]).ok


def test_what_cannot_be_computed_is_a_failed_row(copied):
    change(copied, "text_cases.json", "conversations/image_vicuna/1/sources", [])
    report = compare_set(copied, files=["text_cases.json"])
    (bad,) = [row for row in report.rows if not row.ok]
    assert bad.name == "conversations/image_vicuna/1 (error)"
    assert bad.note.startswith("IndexError")


@pytest.mark.parametrize(
    ("change_it", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"config\.json: not there"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json: is not JSON"),
        (lambda f: (f / "config.json").write_text("{}"), r"config\.json: lacks the field"),
        (lambda f: (f / "weights.npz").write_bytes(b"PK"), r"weights\.npz: is not a whole npz"),
        (lambda f: np.savez(f / "weights.npz", a=np.ones(1)), r"weights\.npz: lacks \d+ tensors"),
        (lambda f: change(f, "config.json", "vit_width", 60), "expected .* for size golden"),
    ],
)
def test_a_folder_that_is_no_golden_set_is_refused(copied, change_it, message):
    change_it(copied)
    with pytest.raises(ValueError, match=message):
        GoldenSet(copied)


def test_the_command_tells_the_verdict_as_text_and_as_json(copied, capsys):
    for path in copied.iterdir():
        if path.name not in ("config.json", "weights.npz", "caption_cleaning.json"):
            path.unlink()
    shutil.copy(GOLDEN / "tokenizer.model", copied)
    assert main(["parity", str(copied)]) == 0
    text = capsys.readouterr().out
    assert "caption_cleaning.json" in text and "not in this set" in text
    assert "all are close enough" in text.splitlines()[-1]

    change(copied, "caption_cleaning.json", "0/out")
    assert main(["parity", str(copied), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert set(answer) == {"ok", "rows", "not_compared"}
    assert {frozenset(row) for row in answer["rows"]} == {
        frozenset(("file", "name", "max_abs", "max_rel", "tolerance", "ok"))
    }
    (bad,) = [row for row in answer["rows"] if not row["ok"]]
    assert (bad["file"], bad["name"], bad["max_abs"]) == ("caption_cleaning.json", "0/out", None)


@pytest.mark.slow
def test_the_published_page_has_every_row(whole):
    page = (GOLDEN.parent.parent / "docs" / "parity.md").read_text()

    def names(text: str) -> list[str]:
        lines = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
        return [line for line in lines if "---" not in line]

    assert names(page) == names(as_markdown(whole.report))
    assert "FAIL" not in page


def test_the_command_refuses_a_folder_without_a_set(tmp_path, capsys):
    assert main(["parity", str(tmp_path)]) == 1
    assert "config.json: not there; name the folder of a golden set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("got", "want", "ok"),
    [
        (np.ones(2), np.ones(2), True),
        (np.ones((1, 2)), np.ones(2), False),
        (np.ones(2), np.array([1.0, np.nan]), False),
        (np.array([np.inf, 1]), np.ones(2), False),
        (np.zeros(2), np.zeros(2), True),
        (np.full(2, 1e-9), np.zeros(2), False),
        (np.zeros((0, 2)), np.zeros((0, 2)), True),
        ("a", "a", True),
        ("a", "b", False),
        (["a"], ["a", "b"], False),
    ],
)
def test_verdicts(got, want, ok):
    row = compare("file", "name", got, want, Tolerance(1e-4, "relative"))
    assert row.ok is ok
    assert json.loads(json.dumps(row.as_json(), allow_nan=False))["ok"] is ok


def test_an_error_does_not_hide_other_arrays():
    check = Check("file", {"a": np.ones(1), "b": np.ones(1)})
    with check.attempt("a"):
        raise KeyError("c")
    check("b", np.ones(1))
    rows, skipped = check.finish()
    assert [(row.name, row.ok) for row in rows] == [("a (error)", False), ("b", True)]
    assert [x.name for x in skipped] == ["a"]


def test_flattened_json():
    tree = {"a": [1, 2], "b": [{"c": "x"}, {"c": []}], "d": {}, "e": None}
    assert flatten_json(tree) == {"a": [1, 2], "b/0/c": "x", "b/1/c": [], "e": None}
