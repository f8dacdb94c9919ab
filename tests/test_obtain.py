"""Weights by name: folders, published files that are converted once, and what is neither."""

from pathlib import Path

import pytest

import vljax
from vljax import obtain as module
from vljax.cli.asking import names
from vljax.convert import published as layouts
from vljax.generate.chat import TINY_WEIGHTS
from vljax.generate.engine import Request
from vljax.generate.sampling import Sampling
from vljax.models.sizes import TINY, LlamaSize
from vljax.obtain import obtain, published
from vljax.store import WeightsError

HERE = Path(__file__).parent
TOKENIZER = HERE / "golden" / "tokenizer.model"


@pytest.fixture
def llama(tmp_path) -> Path:
    """A folder in which a small LLaMA lies as the hub has them."""
    import sentencepiece

    vocab = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER)).vocab_size()
    size = layouts.dataclasses.replace(
        TINY, llama=LlamaSize(vocab=vocab, width=32, depth=2, heads=2, kv_heads=2, mlp=64)
    )
    weights = layouts.random_weights(size)
    part = {n: weights[n] for n in weights if n.startswith("llama_model.")}
    return layouts.write_published(tmp_path / "files", part, size, TOKENIZER, shards=2)["llama"]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_published_files_are_converted_once(llama, home, monkeypatch):
    told = []
    folder = obtain(llama, tell=told.append)
    assert folder.parent == home / ".cache" / "vljax" / "converted"
    assert {f.name for f in folder.parent.iterdir()} == {folder.name, folder.name + ".lock"}
    assert "converting, this once: llama" in told[0]
    model = vljax.load(llama)  # no other conversion
    assert (model.folder, model.name) == (folder, str(llama))
    assert model.generate([Request("Who?")], Sampling(max_new_tokens=3))
    monkeypatch.setattr(module, "_convert", None)
    assert obtain([llama]) == folder
    assert obtain(llama.parent) == folder  # which holds nothing else
    (llama / "config.json").write_text((llama / "config.json").read_text() + " ")
    with pytest.raises(TypeError, match="NoneType"):  # it is another model now
        obtain(llama)


def test_what_is_wrong_with_files_is_told_and_nothing_left(llama, home):
    shard = llama / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.raises(WeightsError, match="model-00002-of-00002"):
        obtain(llama)
    assert [f.suffix for f in (home / ".cache/vljax/converted").iterdir()] == [".lock"]


def test_folders_of_ours_are_used_as_they_are(tmp_path):
    assert obtain("tiny") == obtain(TINY_WEIGHTS) == TINY_WEIGHTS
    with pytest.raises(WeightsError, match="is no published file or folder of them"):
        obtain([TINY_WEIGHTS, tmp_path])
    with pytest.raises(WeightsError, match=r"got no manifest\.json, expected a folder of weights"):
        vljax.load(tmp_path)
    with pytest.raises(WeightsError, match="there is no such file or folder; check the path"):
        obtain(tmp_path / "no such.pth")
    with pytest.raises(
        WeightsError, match=r"^\.\./weights: there is no such file or folder; check"
    ):
        obtain("../weights")
    with pytest.raises(WeightsError, match="got an empty list"):
        obtain([])


def test_files_of_a_download(tmp_path):
    """As Video-LLaMA-2's repositories hold them: branches, a tower and a LLaMA's folder."""
    for name in (
        "VL_7B.pth",
        "AL_7B.pth",
        "imagebind_huge.pth",
        "notes.txt",
        "training_args.bin",
        "llama/config.json",
        "llama/model-00001-of-00002.safetensors",
        "llama/model-00002-of-00002.safetensors",
        "llama/model.safetensors.index.json",
        "llama/consolidated.00.pth",
        ".cache/old.pth",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(f.relative_to(tmp_path)) for f in published(tmp_path)]
    assert found == ["AL_7B.pth", "VL_7B.pth", "imagebind_huge.pth", "llama"]
    assert published(tmp_path / "VL_7B.pth") == [tmp_path / "VL_7B.pth"]
    assert published(tmp_path / "llama") == [tmp_path / "llama"]


def test_several_names_in_a_flag(tmp_path, monkeypatch):
    assert names("a.pth,b/c") == ["a.pth", "b/c"]
    monkeypatch.chdir(tmp_path)
    Path("a,b").touch()
    assert names("a,b") == ["a,b"]
