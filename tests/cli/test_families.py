"""Every family from its own layout: checked, prepared, trained on from files and from records."""

import hashlib
import json
from pathlib import Path

import jax
import pytest

from tests.cli.small import SIZE, random_weights
from tests.data.layouts import LAYOUTS, write_layouts
from vljax import store
from vljax.cli import main as cli
from vljax.train.metrics import read_metrics

TOKENIZER = Path(__file__).parent.parent / "golden" / "tokenizer.model"
STEPS = 170  # of which every family has 20 or more
CONFIG = """
from vljax.config import VISION, default, source

LAYOUTS, ROOT = {layouts!r}, {root!r}


def get_config(arg=None):
    config = default("tiny", "vicuna", "dp")
    config.update(name="families", template="tiny", tokenizer={tokenizer!r}, start=({start!r},))
    config.update(steps={steps}, log_every=1, trainable=VISION)
    config.optimizer.update(peak_lr=1e-3, steps_per_epoch={steps}, warmup_steps=1)
    config.objective.name = "vision"
    same = dict(media_tokens=8, limit=64, size=16)
    for name, (family, annotations, media, options) in LAYOUTS.items():
        place = family, f"{{ROOT}}/{{annotations}}", f"{{ROOT}}/{{media}}"
        config.sources[name] = source(*place, 1, 8, options=options, **same)
    return config
"""


@pytest.fixture
def run(monkeypatch, capsys):
    """-> (exit code, stdout, stderr) of ``vljax ...``, with the small model."""
    for module in ("vljax.cli.train", "vljax.models.sizes"):
        monkeypatch.setattr(f"{module}.video_llama_size", lambda size, llm: SIZE)

    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        line = [str(a) for a in argv]
        monkeypatch.setattr("sys.argv", ["vljax", *line])  # where ml_collections looks
        code = cli.main(line)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def seen(monkeypatch) -> list[tuple]:
    """(source, field, type, shape, hash) of all arrays that training is given."""
    from vljax.data import pipeline

    fields, batches = [], pipeline.batches

    def noted(*args, **kwargs):
        for name, batch in batches(*args, **kwargs):
            for field, x in sorted(batch.items()):
                digest = hashlib.sha256(x.tobytes()).hexdigest()
                fields.append((name, field, x.dtype.name, x.shape, digest))
            yield name, batch

    monkeypatch.setattr(pipeline, "batches", noted)
    return fields


@pytest.fixture
def fast_compiles():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.slow
def test_each_family_is_checked_prepared_and_trained_on(run, seen, tmp_path, fast_compiles):
    """All in one run, whose steps are compiled once: 20 steps or more of each."""
    pytest.importorskip("tensorflow_datasets")
    root = tmp_path / "data"
    write_layouts(root, 9)
    start = str(random_weights(tmp_path / "start"))
    facts = {"layouts": LAYOUTS, "root": str(root), "tokenizer": str(TOKENIZER), "start": start}
    (tmp_path / "families.py").write_text(CONFIG.format(**facts, steps=STEPS))
    config = f"--config={tmp_path}/families.py"

    code, out, err = run("data", "check", config, "--json")
    assert code == 0, err
    checked = json.loads(out)["sources"]
    assert {s["name"]: s["looked"] for s in checked} == dict.fromkeys(LAYOUTS, 9)
    code, out, err = run("data", "prepare", config, "--out", tmp_path / "records")
    assert (code, len(out.splitlines())) == (0, len(LAYOUTS)), err

    records = [f"--config.sources.{n}.records={tmp_path}/records/{n}" for n in LAYOUTS]
    given, losses = {}, {}
    for name, flags in {"files": [], "records": records}.items():
        seen.clear()
        code, _, err = run("train", config, f"--config.workdir={tmp_path}/{name}", *flags)
        assert code == 0, err
        given[name] = list(seen)
        losses[name] = [row["loss"] for row in read_metrics(tmp_path / name)]
        consumed = store.read_manifest(tmp_path / name / "weights")["consumed"]
        assert all(consumed[f"source/{n}"] >= 20 * 8 for n in LAYOUTS)
    assert given["files"] == given["records"]
    assert losses["files"] == losses["records"]
    assert len(set(losses["files"])) > STEPS - 5
