"""Features of frozen towers: written once, trained from as from the media, never mistaken."""

import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests.cli.small import SIZE, random_weights
from vljax import store
from vljax.cli import main as cli
from vljax.cli.train import encoder_hashes, make_run, make_sources, train_one
from vljax.config import AUDIO, VISION, default, source
from vljax.data.features import Store
from vljax.data.quarantine import Quarantine, Reader
from vljax.data.world.files import write_clip

ROOT = Path(__file__).parent.parent.parent
TOKENIZER = ROOT / "tests" / "golden" / "tokenizer.model"
CLIPS, IMAGES = 14, 8
VIEWS = CLIPS + IMAGES + 1  # with the black frame


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr("vljax.cli.train.video_llama_size", lambda size, llm: SIZE)


@pytest.fixture(scope="module", autouse=True)
def fast_compiles():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """Clips, some shorter than eight frames, one twice; images; all annotated."""
    root = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    (root / "videos" / "0").mkdir(parents=True)
    (root / "image").mkdir()
    for i in range(CLIPS - 1):
        frames = rng.integers(0, 256, (3 + i % 9, 48, 64, 3), np.uint8)
        sound = rng.uniform(-0.5, 0.5, 16000).astype(np.float32) if i % 3 else None
        write_clip(root / "videos" / "0" / f"{i}.mp4", frames, sound)
    shutil.copy(root / "videos" / "0" / "0.mp4", root / "videos" / "0" / f"{CLIPS - 1}.mp4")
    rows = [{"video": f"0/{i}.mp4", "QA": [{"q": "What?", "a": "A dog."}]} for i in range(CLIPS)]
    (root / "chat.json").write_text(json.dumps(rows))
    for i in range(IMAGES):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(root / f"image/{i}.jpg")
    rows = [{"image_id": str(i), "caption": "a cat"} for i in range(IMAGES)]
    (root / "cap.json").write_text(json.dumps({"annotations": rows}))
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> list[Path]:
    """Two models of the same shapes; their sights differ and their sounds do not."""
    return [random_weights(tmp_path_factory.mktemp("weights"), seed) for seed in (0, 1)]


@pytest.fixture
def make(media, weights, tmp_path):
    """A config of a branch, with changes to its fields and to those of its clips' source."""

    def config(branch: str = "vision", clips: dict | None = None, **fields) -> ConfigDict:
        c = default("tiny", "vicuna", "dp")
        c.update(name="small", template="tiny", tokenizer=str(TOKENIZER), steps=6, log_every=1)
        c.optimizer.update(peak_lr=1e-3, steps_per_epoch=6, warmup_steps=1)
        c.trainable = VISION if branch == "vision" else AUDIO
        c.objective.name = branch
        if branch == "audio":
            c.objective.update(feature_noise=0.5, distract=True)
        c.start = (str(weights[0]),)
        c.workdir = str(tmp_path / "run")
        same = {"media_tokens": 8, "limit": 64, "size": 16, "augment": False}
        places = {
            "clips": ("videochat", "chat.json", "videos"),
            "images": ("filter_cap", "cap.json", "image"),
        }
        for name, (family, table, folder) in places.items():
            place = (family, str(media / table), str(media / folder))
            c.sources[name] = source(*place, 1, 8, **same)
        c.sources.clips.update(clips or {})
        c.update(fields)
        return c

    return config


@pytest.fixture
def encode(monkeypatch, tmp_path, capsys):
    """``vljax encode`` of a config: (exit code, stdout, last line of stderr)."""

    def call(config: ConfigDict, *flags: str) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            patch.setattr("vljax.cli.configs.load_config", lambda path, rest: config)
            capsys.readouterr()
            try:
                code = cli.main(["encode", "--config=c.py", f"--out={tmp_path / 'out'}", *flags])
            except SystemExit as stop:
                code = stop.code
        out, err = capsys.readouterr()
        return code, out, (err.strip().splitlines() or [""])[-1]

    return call


def losses(config: ConfigDict, workdir: Path) -> list[float]:
    config.workdir = str(workdir)
    train_one(config)
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["loss"] for row in rows]


@pytest.fixture
def make_broken(make, media, tmp_path):
    """As ``make``, of media two of whose clips can't be read, and are skipped."""
    mine = shutil.copytree(media, tmp_path / "media")
    (mine / "videos/0/4.mp4").write_text("no clip")
    (mine / "videos/0/7.mp4").unlink()

    def config(branch: str = "vision", clips: dict | None = None, **fields) -> ConfigDict:
        made = make(branch, {"on_bad": "skip", "max_bad": 0.2} | (clips or {}), **fields)
        return ConfigDict(json.loads(made.to_json().replace(str(media), str(mine))))

    return config


def quarantined(workdir: Path) -> dict[str, str]:
    """Reasons by name."""
    rows = (workdir / "quarantine.jsonl").read_text().splitlines()
    return {Path(json.loads(r)["path"]).name: json.loads(r)["reason"] for r in rows}


@pytest.mark.slow
@pytest.mark.parametrize("branch", ["vision", "audio"])
def test_training_from_features_is_training_from_media(make_broken, encode, tmp_path, branch):
    code, out, err = encode(make_broken(branch))
    assert (code, out) == (0, f"{tmp_path / 'out'}\n")
    assert "2 files can't be read and have no features" in err
    live = losses(make_broken(branch), tmp_path / "live")
    read = losses(make_broken(branch, features=str(tmp_path / "out")), tmp_path / "read")
    assert len(set(live)) == 6
    np.testing.assert_allclose(read, live, rtol=0, atol=1e-5)
    consumed = store.read_manifest(tmp_path / "read" / "weights")["consumed"]
    assert "field/frames" not in consumed
    assert consumed["field/frame_tokens"] == 48
    lost = quarantined(tmp_path / "live")
    assert lost.keys() == quarantined(tmp_path / "read").keys() == {"4.mp4", "7.mp4"}
    skipped = store.read_manifest(tmp_path / "live" / "weights")["consumed"]["skipped/clips"]
    assert 0 < skipped == consumed["skipped/clips"]
    if branch == "vision":  # and one source alone
        mixed = losses(make_broken(clips={"features": str(tmp_path / "out")}), tmp_path / "mixed")
        np.testing.assert_allclose(mixed, live, rtol=0, atol=1e-5)
        consumed = store.read_manifest(tmp_path / "mixed" / "weights")["consumed"]
        of_clips = consumed["source/clips"] + consumed["skipped/clips"]
        assert 0 < consumed["field/frame_tokens"] == of_clips < 48
        assert consumed["field/frames"] == 48 - of_clips


def test_half_precision_is_kept_as_it_is(make, encode, tmp_path):
    assert encode(make(dtype="bfloat16"))[0] == 0
    kept = Store(tmp_path / "out" / "frame_tokens")
    assert kept.facts["dtype"] == "bfloat16"
    clips = sources(make(dtype="bfloat16", features=str(tmp_path / "out")))["clips"]
    batch = clips.batch(np.arange(3), np.random.default_rng(0))
    assert batch["frame_tokens"].dtype == np.float32
    exact = batch["frame_tokens"].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(batch["frame_tokens"], exact)
    assert batch["frame_mask"].sum(1).tolist() == [3, 4, 5]
    black = batch["frame_tokens"][0, 3]
    assert (batch["frame_tokens"][~batch["frame_mask"]] == black).all()
    assert (batch["frame_tokens"][batch["frame_mask"]] != black).any((1, 2)).all()


def test_what_is_kept(make, encode, media, tmp_path):
    assert encode(make("audio"), "--sound")[0] == 0
    stores = {n: Store(tmp_path / "out" / n) for n in ("frame_tokens", "sight_features")}
    sound = Store(tmp_path / "out" / "sound_features")
    assert stores["frame_tokens"].facts["shape"] == [2, 16]
    assert len({s.facts["encoder"] for s in (*stores.values(), sound)}) == 3
    for kept in stores.values():
        assert len(kept.rows) == VIEWS - 1  # one clip is there twice
        first, again = (
            kept.find(media / f"videos/0/{i}.mp4", "8 frames, uniform, 16 px") for i in (0, 13)
        )
        assert first == again
        assert first.count == 3
        assert first.message.startswith("The video contains 3 frames sampled at 0.0, ")
        assert kept.find(media / "image/0.jpg", "image, 16 px").count == 1
    lengths = np.linalg.norm(stores["sight_features"].read(first), axis=-1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    view = "8 sounds of 1.0 s, 32 x 96 mel at 16000 Hz"
    counts = [sound.find(media / f"videos/0/{i}.mp4", view).count for i in (0, 1)]
    assert counts == [0, 8]  # the first clip is silent
    assert sound.find(media / "image/0.jpg", view) is None


def sources(config: ConfigDict) -> dict:
    """A config's sources with their features."""
    run = make_run(config)
    made = make_sources(config, run.problem.size, encoder_hashes(config, run.start))
    return {s.name: s for s in made}


def refused(config: ConfigDict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        train_one(config)


def test_other_weights_are_refused(make, encode, weights, tmp_path):
    assert encode(make())[0] == 0
    other = make(features=str(tmp_path / "out"), start=(str(weights[1]),))
    sentence = r"frame_tokens: was made by encoder \w{16}, and this run's is \w{16}; encode with"
    refused(other, sentence)
    code, _, err = encode(make(start=(str(weights[1]),)))
    assert code == 1
    assert "was made by encoder" in err


def test_another_frame_policy_is_refused(make, encode, tmp_path):
    assert encode(make())[0] == 0
    refused(
        make(clips={"frames": 4}, features=str(tmp_path / "out")),
        "lacks 14 of 14 records' media, the first .*0.mp4: it was encoded as \"8 frames, uniform, "
        '16 px" and is asked for as "4 frames, uniform, 16 px"; run vljax encode',
    )


def test_other_and_missing_files_are_refused(make, encode, media, tmp_path):
    mine = shutil.copytree(media, tmp_path / "media")
    moved = json.loads(
        make(features=str(tmp_path / "out")).to_json().replace(str(media), str(mine))
    )
    assert encode(make())[0] == 0

    def config() -> ConfigDict:
        return ConfigDict(moved)

    before = sources(config())["clips"].features.read(5)  # the same bytes elsewhere will do
    shutil.copy(mine / "videos/0/2.mp4", mine / "videos/0/5.mp4")
    clips = sources(config())["clips"].features
    np.testing.assert_array_equal(clips.read(5)["frame_tokens"], clips.read(2)["frame_tokens"])
    assert len(clips.read(5)["frame_tokens"]) != len(before["frame_tokens"])
    rng = np.random.default_rng(9)
    write_clip(mine / "videos/0/5.mp4", rng.integers(0, 256, (5, 48, 64, 3), np.uint8), None)
    refused(config(), r"clips: .* lacks 1 of 14 records' media, the first .*5.mp4: it was not enc")
    assert encode(config())[0] == 0
    write_clip(mine / "videos/0/5.mp4", rng.integers(0, 256, (5, 48, 64, 3), np.uint8), None)
    refused(config(), r"5.mp4: it is another file than the one of that name that was encoded; run")
    (mine / "videos/0/5.mp4").unlink()
    refused(config(), r"lacks 1 of 14 .*5.mp4: there is no such file")


def test_what_differs_each_time_is_refused(make, encode, tmp_path):
    config = make(clips={"augment": True, "policy": "headtail"}, features=str(tmp_path / "out"))
    flags = r"--config.sources.clips.augment=False --config.sources.clips.policy=uniform"
    code, _, err = encode(config)
    assert code == 1
    assert err.endswith(f"encode and train with {flags}")
    assert encode(make())[0] == 0
    refused(config, flags)


def test_no_features_and_no_towers_to_read_them_for(make, encode, tmp_path):
    refused(make(features=str(tmp_path / "out")), r"got no facts.json, expected what vljax encode")
    text = make()
    text.objective = ConfigDict({"name": "text", "context_noise": 0.5})
    code, _, err = encode(text)
    assert (code, err) == (
        1,
        "vljax encode: objective: got text, expected one that reads frozen towers: vision or audio",
    )
    text.features = "somewhere"
    refused(text, "features: got a folder for objective text, which reads no frozen tower; leave")


def test_a_tower_that_is_trained_is_refused(make, encode):
    code, _, err = encode(make(trainable=(*VISION, "frame_encoder/qformer/")))
    assert code == 1
    assert "'frame_encoder/qformer/' trains frame_encoder/qformer/" in err


def test_unreadable_files_are_told_and_the_others_kept(make, encode, media, tmp_path):
    mine = shutil.copytree(media, tmp_path / "media")
    (mine / "videos/0/4.mp4").write_text("no clip")
    (mine / "image/2.jpg").unlink()
    config = ConfigDict(json.loads(make().to_json().replace(str(media), str(mine))))
    code, _, err = encode(config)
    listed = tmp_path / "out" / "unreadable-0000.json"
    assert code == 1
    assert err.startswith(
        "vljax encode: 2 files can't be read and have no features, the first: 4.m"
    )
    assert err.endswith(
        f"see {listed}, mend them, leave them out of the annotations, "
        "or set on_bad=skip for source clips"
    )
    assert [Path(x["path"]).name for x in json.loads(listed.read_text())] == ["4.mp4", "2.jpg"]
    config.features = str(tmp_path / "out")
    refused(config, r"clips: .* lacks 1 of 14 records' media, the first .*4.mp4")


def test_what_cannot_be_read_is_skipped_as_when_live(make_broken, encode, tmp_path):
    code, _, err = encode(make_broken(clips={"max_bad": 0.1}))
    assert code == 1
    assert err.endswith(
        "source clips has 2 in 14 records, expected at most 10.00%; mend them or raise max_bad"
    )
    code, _, err = encode(make_broken())
    assert code == 0
    assert err.startswith("2 files can't be read and have no features, the first: 4.mp4 is not a")
    listed = json.loads((tmp_path / "out" / "unreadable-0000.json").read_text())
    assert [Path(x["path"]).name for x in listed] == ["4.mp4", "7.mp4"]

    kept = make_broken(features=str(tmp_path / "out"))

    def batch(config: ConfigDict) -> dict:
        name = "read" if config.features else "live"
        (tmp_path / name).mkdir(exist_ok=True)
        read = Reader(quarantine=Quarantine(tmp_path / name))
        return sources(config)["clips"].batch(np.arange(14), np.random.default_rng(0), read=read)

    a, b = batch(kept), batch(make_broken())
    for name in ("missing", "tokens", "labels", "mask", "frame_mask"):
        np.testing.assert_array_equal(a[name], b[name], name)
    assert np.flatnonzero(a["missing"]).tolist() == [4, 7]
    assert (a["frame_tokens"][4] == a["frame_tokens"][0, 3]).all()  # what is made of a black frame
    lost = quarantined(tmp_path / "read")
    assert lost.keys() == quarantined(tmp_path / "live").keys() == {"4.mp4", "7.mp4"}
    assert lost["4.mp4"] == quarantined(tmp_path / "live")["4.mp4"] == listed[0]["reason"]

    strict = make_broken(clips={"on_bad": "raise"}, features=str(tmp_path / "out"))
    refused(strict, "4.mp4: it could not be read when it was encoded: 4.mp4 is not a readable")
    mended, noise = tmp_path / "media/videos/0/4.mp4", np.random.default_rng(9)
    write_clip(mended, noise.integers(0, 256, (5, 48, 64, 3), np.uint8), None)
    refused(kept, "4.mp4: it is another file than the one of that name that was encoded; run")
    assert encode(make_broken())[0] == 0
    (tmp_path / "read/quarantine.jsonl").unlink()
    assert np.flatnonzero(batch(kept)["missing"]).tolist() == [7]


def test_prepared_records_have_the_features_of_their_files(make_broken, encode, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    from vljax.data.tfds_builders import Origin, prepare

    mine = tmp_path / "media"
    (mine / "videos/0/7.mp4").write_bytes((mine / "videos/0/6.mp4").read_bytes())
    prepare(Origin("videochat", f"{mine}/chat.json", f"{mine}/videos"), tmp_path / "records")

    def batch(features: str, **clips) -> dict:
        config = make_broken(clips=clips | {"features": str(tmp_path / features)})
        if not (tmp_path / features).is_dir():
            assert encode(config)[0] == 0
            shutil.move(tmp_path / "out", tmp_path / features)
        return sources(config)["clips"].batch(np.arange(CLIPS), np.random.default_rng(0))

    stored = {"records": str(tmp_path / "records")}
    wanted = batch("of_files")
    assert np.flatnonzero(wanted["missing"]).tolist() == [4]
    for folder, clips in (("of_files", stored), ("of_records", stored), ("of_records", {})):
        got = batch(folder, **clips)
        assert got.keys() == wanted.keys()
        for name in wanted:
            np.testing.assert_array_equal(got[name], wanted[name], name)


def contents(folder: Path) -> dict:
    kept = Store(folder)
    return {key: kept.read(rows).tolist() for key, rows in kept.rows.items()}


@pytest.fixture
def opened(monkeypatch):
    """The names of the files that are decoded; the one at ``die_at`` takes the process down."""
    names: list[str] = []

    class Log(list):
        die_at = None

    names = Log()

    class Here(contextlib.nullcontext):
        """Decodes in this process."""

        def __init__(self, workers, seconds):
            super().__init__(self)

        def submit(self, load, item):
            names.append("black" if item.record is None else item.record.path.name)
            if len(names) == names.die_at:
                raise SystemExit(137)
            done = concurrent.futures.Future()
            done.set_result(load(item))
            return done

    monkeypatch.setattr("vljax.train.features.Decoders", Here)
    return names


def test_killed_and_given_again(make, encode, tmp_path, opened):
    small = ("--shard-mb=0.001", "--batch=8")
    opened.die_at = 18
    assert encode(make(), *small)[0] == 137
    shards = sorted((tmp_path / "out" / "frame_tokens").glob("*.npy"))
    assert len(shards) >= 2
    before = {p: p.read_bytes() for p in shards}
    (tmp_path / "out" / "frame_tokens" / "0000-000099.npy.1.part").write_bytes(b"half a shard")

    opened.clear()
    opened.die_at = None
    code, _, err = encode(make(), *small)
    assert code == 0
    assert f"views encoded {VIEWS}/{VIEWS}" in err
    assert VIEWS - 18 < len(opened) < VIEWS
    assert {p: p.read_bytes() for p in shards} == before
    resumed = contents(tmp_path / "out" / "frame_tokens")

    opened.clear()
    assert encode(make(), *small)[0] == 0
    assert opened == []
    shutil.move(tmp_path / "out", tmp_path / "first")
    assert encode(make(), *small)[0] == 0
    whole = contents(tmp_path / "out" / "frame_tokens")
    assert resumed.keys() == whole.keys()
    for key, rows in whole.items():
        np.testing.assert_allclose(resumed[key], rows, atol=1e-5)


ENCODE = """
import json, sys
from ml_collections import ConfigDict
from tests.cli.small import SIZE
from vljax.cli import configs, main, train

train.video_llama_size = lambda size, llm: SIZE
configs.load_config = lambda path, rest: ConfigDict(json.load(open(path)))
sys.exit(main.main(sys.argv[1:]))
"""


def test_a_process_that_is_killed_loses_nothing_but_time(make, encode, media, tmp_path):
    """SIGKILL in the middle: the same command finishes, and makes what one run makes."""
    mine = shutil.copytree(media, tmp_path / "media")
    rows = json.loads((mine / "chat.json").read_text())
    for i in range(150):  # so that there is a middle: images follow
        (mine / f"videos/0/again{i}.mp4").hardlink_to(mine / "videos/0/3.mp4")
        rows.append(rows[0] | {"video": f"0/again{i}.mp4"})
    (mine / "chat.json").write_text(json.dumps(rows))
    config = ConfigDict(json.loads(make().to_json().replace(str(media), str(mine))))
    (tmp_path / "c.json").write_text(config.to_json())
    flags = ("--shard-mb=0.001", "--batch=8")
    killed = tmp_path / "killed"
    argv = ["encode", f"--config={tmp_path}/c.json", f"--out={killed}", *flags]
    process = subprocess.Popen(
        [sys.executable, "-c", ENCODE, *argv],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        stderr=subprocess.DEVNULL,
    )
    while len(list(killed.glob("frame_tokens/*.json"))) < 3:  # the facts and two shards
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = set(Store(killed / "frame_tokens").rows)
    assert encode(config, *flags)[0] == 0
    whole = contents((tmp_path / "out").rename(tmp_path / "whole") / "frame_tokens")
    assert 0 < len(before) < len(whole) == VIEWS - 1
    killed.rename(tmp_path / "out")
    assert encode(config, *flags)[0] == 0
    resumed = contents(tmp_path / "out" / "frame_tokens")
    assert before < resumed.keys() == whole.keys()
    for key, features in whole.items():
        np.testing.assert_allclose(resumed[key], features, rtol=0, atol=1e-6)
    config.features = str(tmp_path / "out")
    assert len(sources(config)["clips"].records) == CLIPS + 150


def test_hosts_share_the_work(make, encode, tmp_path, opened):
    for i in (1, 0, 2):
        assert encode(make(), f"--process={i}/3")[0] == 0
        assert len(opened) == (8, 8, 7)[i]
        opened.clear()
    assert encode(make(), "--process=0/1")[0] == 0
    assert opened == []
    assert len(sources(make(features=str(tmp_path / "out")))) == 2


@pytest.mark.parametrize("flag", ["3/3", "1", "-1/2", "0/0"])
def test_a_process_that_is_none(make, encode, flag):
    code, _, err = encode(make(), f"--process={flag}")
    assert code == 1
    assert f"--process: got {flag}, expected I/N such as 0/4" in err


def test_a_config_of_several_stages(capsys):
    config = f"--config={ROOT}/configs/tiny.py:stage=all"
    assert cli.main(["encode", config, "--out=nowhere"]) == 1
    assert "got all stages, expected one of text, image, " in capsys.readouterr().err
