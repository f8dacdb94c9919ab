"""lmms-eval's requests to the tiny model: with lmms-eval itself where it is, else a stand-in."""

import abc
import dataclasses
import importlib
import importlib.util
import re
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vljax.data.audio import read_audio
from vljax.data.world import render
from vljax.data.world.files import write_clip
from vljax.data.world.scenes import Scene, Thing
from vljax.data.world.sound import waveform
from vljax.evaluate import lmms_eval as adapter
from vljax.generate.media import read_media
from vljax.generate.sampling import Sampling
from vljax.models.sizes import TINY

SETUP = Path(__file__).parents[2] / "setup.py"
SCENE = Scene("one", (Thing("kettle", "blue", "right"),), ("siren",), 2.0, 0.5, 3)
GREEDY = {"max_new_tokens": 12, "temperature": 0, "until": ["\n\n"], "do_sample": False}


def stand_in() -> dict[str, types.ModuleType]:
    """What of lmms-eval 0.7.3 an outside model meets, as it is there."""

    class lmms(abc.ABC):
        is_simple = True

        def __init__(self):
            self._rank, self._world_size = 0, 1
            self.cache_hook, self.task_dict = CacheHook(), {}

        @abc.abstractmethod
        def loglikelihood(self, requests): ...
        @abc.abstractmethod
        def generate_until(self, requests): ...
        @abc.abstractmethod
        def generate_until_multi_round(self, requests): ...

        @classmethod
        def create_from_arg_string(cls, arg_string, additional_config=None):
            args = dict(x.split("=") for x in arg_string.split(","))
            more = {k: v for k, v in (additional_config or {}).items() if v is not None}
            return cls(**args, **more)

    class CacheHook:
        def add_partial(self, attr, req, res): ...

    @dataclasses.dataclass
    class GenerationResult:
        text: str
        token_counts: object = None

    @dataclasses.dataclass
    class Instance:
        request_type: str
        arguments: tuple
        idx: int
        metadata: dict

        @property
        def args(self):
            return self.arguments

    def unwrap_generation_output(output):
        if isinstance(output, GenerationResult):
            return output.text, output.token_counts
        if isinstance(output, str):
            return output, None
        if isinstance(output, list) and all(isinstance(x, str) for x in output):
            return output, None
        return str(output), None

    @dataclasses.dataclass(frozen=True)
    class ModelManifest:
        model_id: str
        simple_class_path: str | None = None
        chat_class_path: str | None = None
        aliases: tuple[str, ...] = ()

    class ModelRegistryV2:
        def register_manifest(self, manifest, *, overwrite=False):
            self.manifests = {manifest.model_id: manifest}

        def get_model_class(self, name, force_simple=False):
            module, cls = self.manifests[name].simple_class_path.rsplit(".", 1)
            found = getattr(importlib.import_module(module), cls)
            assert issubclass(found, lmms) and found.is_simple
            return found

    members = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": lmms},
        "lmms_eval.api.instance": {
            "Instance": Instance,
            "GenerationResult": GenerationResult,
            "unwrap_generation_output": unwrap_generation_output,
        },
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {
            "ModelManifest": ModelManifest,
            "ModelRegistryV2": ModelRegistryV2,
        },
    }
    modules = {name: types.ModuleType(name) for name in members}
    for name, what in members.items():
        vars(modules[name]).update(what)
    return modules


@pytest.fixture(scope="module")
def package():
    """Imports a module of lmms-eval."""
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("lmms_eval") is None:
            for name, module in stand_in().items():
                patch.setitem(sys.modules, name, module)
        yield importlib.import_module
    adapter._model_class.cache_clear()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, render.frames(SCENE), waveform(SCENE))
    return path


def declared() -> EntryPoint:
    """The entry point that setup.py declares; what is installed may be older."""
    (found,) = re.findall(r'"(lmms_eval\.models)": \["(.*)=(.*)"\]', SETUP.read_text())
    group, name, value = found
    return EntryPoint(name, value, group)


@pytest.fixture(scope="module")
def model(package, clip):
    """As lmms-eval finds and makes it."""
    registry = package("lmms_eval.models.registry_v2").ModelRegistryV2()
    registry.register_manifest(declared().load()())
    cls = registry.get_model_class("vljax")
    config = {"batch_size": 1, "device": None, "max_batch_size": None}
    made = cls.create_from_arg_string("pretrained=tiny", config)
    made.task_dict = {"task": {"test": [{"video": str(clip)}]}}
    return made


def visual(doc):
    return [doc["video"]]


def instances(package, kind, *arguments):
    """``arguments`` of each, without task and split."""
    Instance = package("lmms_eval.api.instance").Instance
    about = {"task": "task", "doc_id": 0, "repeats": 1}
    return [Instance(kind, (*a, "task", "test"), i, about) for i, a in enumerate(arguments)]


def test_generate_until(package, model):
    asked = instances(
        package,
        "generate_until",
        ("<video>\nWhat is shown?", GREEDY, visual, 0),
        ("What do you hear?", GREEDY, visual, 0),
        ("What colour is it?", GREEDY | {"until": "u"}, visual, 0),
    )
    assert model.generate_until(asked) == ["A kettle.", "A siren.", "Bl"]
    assert model._media([]) is None  # of a task without pictures


def test_the_likeliest_choice_has_the_least_loss(package, model):
    unwrap = package("lmms_eval.api.instance").unwrap_generation_output
    words = ["What is shown?"] * 3
    choices = [" A bell.", " A kettle.", lambda doc: "A car."]
    found = model.loglikelihood(
        instances(
            package,
            "loglikelihood",
            *((w, c, visual, 0) for w, c in zip(words, choices, strict=True)),
        )
    )
    losses = [loss for loss, _ in found]
    assert np.argmin(losses) == 1 and min(losses) >= 0
    assert [greedy for _, greedy in found] == [False, True, False]
    # The evaluator gets the pairs, not texts of them.
    assert [unwrap(pair)[0] for pair in found] == found
    assert type(unwrap(found[0])[0]) is tuple


def test_placeholders_are_no_words_of_a_choice_either(package, model):
    with_one, without = "<video>\nWhat is shown?", "What is shown?"
    asked = [(words, "A bell.", visual, 0) for words in (with_one, without)]
    first, second = model.loglikelihood(instances(package, "loglikelihood", *asked))
    assert first == second


def test_a_task_says_what_the_next_round_asks(package, model):
    def then(doc, previous_output, round_idx, previous_round_info):
        assert len(previous_output) == round_idx
        if round_idx == 1:
            assert previous_round_info is None
            return visual(doc), "What do you hear?", False, previous_output, "info"
        assert previous_round_info == "info"
        return None, None, True, previous_output, None

    (answers,) = model.generate_until_multi_round(
        instances(
            package, "generate_until_multi_round", ("What is shown?", GREEDY, visual, then, 0)
        )
    )
    assert answers == ["A kettle.", "A siren."]


def test_visuals_as_tasks_give_them(clip):
    both = True, True
    frames = render.frames(SCENE)
    pictures = [Image.fromarray(f) for f in frames]
    media = adapter.as_media(pictures, TINY, both)
    assert media.frames.shape == (8, TINY.vit.image, TINY.vit.image, 3) and media.mel is None
    assert adapter.as_media(pictures[:1], TINY, both).still
    samples, rate = read_audio(clip)
    sound = {"array": samples[0], "sampling_rate": rate}
    heard = adapter.as_media([sound], TINY, both)
    np.testing.assert_array_equal(heard.mel, read_media(clip, TINY).mel)
    assert heard.frames is None
    together = adapter.as_media([pictures[0], sound], TINY, both)
    assert together.sees and together.hears
    assert adapter.as_media([str(clip)], TINY, (True, False)).mel is None
    with pytest.raises(ValueError, match=r"visuals: got 2 \(str\), expected one file"):
        adapter.as_media([str(clip), str(clip)], TINY, both)


@pytest.mark.parametrize(
    ("flags", "sampling"),
    [
        ({}, Sampling(top_p=1.0, max_new_tokens=128)),
        (
            GREEDY | {"top_p": None, "num_beams": 3},
            Sampling(0, top_p=1.0, max_new_tokens=12, beams=3),
        ),
        ({"temperature": 0.7, "top_p": 0.5}, Sampling(0.7, top_p=0.5, max_new_tokens=128)),
        ({"temperature": 0.7, "do_sample": False}, Sampling(top_p=1.0, max_new_tokens=128)),
        ({"max_new_tokens": 32768}, Sampling(top_p=1.0, max_new_tokens=1024)),
    ],
)
def test_generation_flags(flags, sampling):
    assert adapter.sampling_of(flags) == sampling


def test_without_lmms_eval_nothing_is_lost():
    assert adapter.cut("a b. c", (".", "b")) == "a "
    assert adapter.until_of({"until": None}) == ()
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        adapter.Other  # noqa: B018
