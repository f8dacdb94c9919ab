"""How a config's words about data reach the pipeline."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vljax.cli import train
from vljax.data.video import MediaError

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tests" / "golden" / "tokenizer.model"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Forty captioned pictures, one of which is text, and a world that is there already."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (50, 50, 3), np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}")
    (folder / "7.png").write_text("no picture")
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "world.json").write_text("{}")
    shutil.copyfile(MODEL, tmp_path / "world" / "tokenizer.model")
    return folder


def seen(monkeypatch, folder: Path, *overrides: str) -> list:
    """The batches that a run of a config would train on."""
    workdir = f"--config.workdir={folder.parent / 'run'}"
    argv = ["--config.steps=4", workdir, *overrides]
    monkeypatch.setattr(sys, "argv", ["vljax", *argv])  # which ml_collections looks at
    config = train.load_config(f"{ROOT}/configs/tiny.py:stage=vision_pretrain", argv)
    place = {"family": "folder", "annotations": str(folder), "media": str(folder)}
    with config.unlocked():
        config.sources = ConfigDict({"cc595k": config.sources.cc595k.to_dict() | place})
    monkeypatch.setattr(train, "fit", lambda run, batches, manifest: list(batches(0)))
    return train.train_one(config)


def test_a_config_s_skipped_records_stand_in_the_run_s_folder(monkeypatch, folder):
    skip = ["--config.sources.cc595k.on_bad=skip", "--config.sources.cc595k.max_bad=0.05"]
    got = seen(monkeypatch, folder, *skip, "--config.decoding.workers=1")
    assert [name for name, _ in got] == ["cc595k"] * 4
    missing = np.stack([batch["missing"] for _, batch in got])
    assert missing.shape == (4, 32) and 1 <= missing.sum() <= 4
    [row] = (folder.parent / "run" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(row)["path"] == str(folder / "7.png")
    mixed = seen(monkeypatch, folder, *skip, "--config.mixed=True")
    assert [name for name, _ in mixed] == ["mixed"] * 4
    assert 1 <= sum(batch["missing"].sum() for _, batch in mixed) <= 4


def test_a_config_s_default_is_to_raise_and_one_percent(monkeypatch, folder):
    with pytest.raises(MediaError, match=r"record 7\.png of cc595k .* or leave such records out"):
        seen(monkeypatch, folder)
    with pytest.raises(MediaError, match=r"cc595k: got 1 unreadable records, expected at most 1\."):
        seen(monkeypatch, folder, "--config.sources.cc595k.on_bad=skip")


def test_a_config_s_quantised_parts_are_counted_as_they_are_held(monkeypatch):
    def table(*overrides: str) -> dict[str, tuple[int, int]]:
        monkeypatch.setattr(sys, "argv", ["vljax", *overrides])
        config = train.load_config(f"{ROOT}/configs/vision_pretrain.py", overrides)
        return {r.module: (r.parameters, r.bytes) for r in train.parameter_table(config)}

    plain = table()
    small = table("--config.quantise=int4", "--config.quantise_vit=int8")
    assert {m: n for m, (n, _) in small.items()} == {m: n for m, (n, _) in plain.items()}
    smaller = {m: small[m][1] / plain[m][1] for m in plain if small[m][1] != plain[m][1]}
    assert set(smaller) == {"llama", "frame_encoder/vit"}
    assert 0.28 < smaller["llama"] < 0.31
    assert 0.5 < smaller["frame_encoder/vit"] < 0.51
    with pytest.raises(ValueError, match=r"quantise: llama/.* is trained"):
        table("--config.quantise=int8", "--config.trainable=('llama/',)")


def test_which_steps_are_traced():
    assert train.steps_range(None) is None
    assert train.steps_range("10:20") == (10, 20)
    with pytest.raises(ValueError, match="--profile: got '7', expected FROM:TO, such as 3:6"):
        train.steps_range("7")
