"""The weights in the package: what they are, what made them, and that they answer."""

import importlib.util
import json
from pathlib import Path

import pytest

from vljax.evaluate.world import evaluate_world
from vljax.generate.chat import SAMPLE, TINY_WEIGHTS, load

ROOT = Path(__file__).parent.parent
AUDIO = ("audio_pretrain", "audio_finetune")


@pytest.fixture(scope="module")
def manifest():
    return json.loads((TINY_WEIGHTS / "manifest.json").read_text())


@pytest.fixture(scope="module")
def model():
    return load("tiny")


def test_they_are_small():
    size = sum(f.stat().st_size for f in Path(TINY_WEIGHTS).rglob("*") if f.is_file())
    assert size < 8 * 2**20


def test_the_manifest_tells_how_to_make_them_again(manifest):
    assert manifest["size"] == "tiny"
    assert f"--config.seed={manifest['seed']}" in manifest["command"]
    assert "stage=all" in manifest["command"]


def test_they_were_made_by_the_config_as_it_is(manifest):
    spec = importlib.util.spec_from_file_location("tiny", ROOT / "configs" / "tiny.py")
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    stages = tiny.get_config("stage=all").stages
    assert list(stages) == list(manifest["consumed"])
    for name, stage in stages.items():
        (batch,) = {source.batch_size for source in stage.sources.values()}
        seen = sum(n for k, n in manifest["consumed"][name].items() if k.startswith("source/"))
        assert seen == stage.steps * batch, name


def test_no_step_of_the_audio_branch_ever_met_a_sound(manifest):
    consumed = manifest["consumed"]
    for stage in AUDIO:
        assert consumed[stage]["field/frames"] > 0
        assert "field/mel" not in consumed[stage]
    assert [s for s, fields in consumed.items() if "field/mel" in fields] == ["imagebind"]


def test_the_sample_is_answered_rightly(model):
    answer = model.chat(SAMPLE, "What happens, and what do you hear?")
    assert answer == "A green car moves left, and I hear a drum."


def test_several_turns_see_the_same_clip(model):
    talk = model.conversation(SAMPLE, listen=False)
    assert talk.ask("What colour is it?") == "Green."
    assert talk.ask("What do you hear?") == "I can't tell: there is no sound."
    assert talk.ask("What is shown?") == "A car."


def test_answers_to_unseen_combinations(model):
    """A small exam, far below the published figures, so that chance can't fail it."""
    report = evaluate_world(model.engine, seed=12345, n=24)
    least = {"object": 0.8, "colour": 0.8, "motion": 0.8, "caption": 0.65, "sound": 0.8}
    for topic, bound in least.items():
        assert report[topic]["accuracy"] >= bound, (topic, report[topic])
    ablations = report["ablations"]
    assert ablations["frames_reversed_gives_opposite"]["accuracy"] >= 0.8
    assert ablations["frame_positions_zeroed_motion"]["accuracy"] <= 0.75
    assert ablations["blank_object"]["accuracy"] <= 0.4
    assert ablations["swapped_sound_is_heard"]["accuracy"] >= 0.8
    assert ablations["muted_changes_sound_answer"]["accuracy"] >= 0.8
