"""Torch files, safetensors and folders give the arrays that were saved, lazily and safely."""

import collections
import io
import json
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from vljax.convert import torch_files
from vljax.convert.readers import joined, open_tensors
from vljax.convert.torch_writer import _dict, _tensor, save_torch
from vljax.store import WeightsError

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([1.5, -2], np.float16),
    "bf16": np.array([[0.1]], ml_dtypes.bfloat16),
    "number": np.array(3.0, np.float32),
    "ids": np.arange(4),
    "nothing": np.zeros((0, 3), np.float32),
}


def same(x: np.ndarray, y: np.ndarray) -> bool:
    return (x.shape, x.dtype, x.tobytes()) == (y.shape, y.dtype, y.tobytes())


def legacy(arrays: dict[str, np.ndarray]) -> bytes:
    """The format from before torch's zips: pickles, then each storage behind its length."""
    content = _dict([(n, _tensor(str(i), x)) for i, (n, x) in enumerate(arrays.items())])
    heads = (torch_files.MAGIC, torch_files.PROTOCOL, {"little_endian": True})
    out = b"".join(pickle.dumps(head, 2) for head in heads)
    out += pickle.PROTO + b"\2" + content + pickle.STOP
    out += pickle.dumps([str(i) for i in range(len(arrays))], 2)
    return out + b"".join(struct.pack("<q", x.size) + x.tobytes() for x in arrays.values())


def test_zip_written_here_is_read_back(tmp_path):
    save_torch(tmp_path / "a.pth", ARRAYS.items())
    tensors = open_tensors(tmp_path / "a.pth")
    assert list(tensors) == list(ARRAYS)
    for name, x in ARRAYS.items():
        assert same(tensors[name], x), name
        assert tensors.info(name) == (x.shape, x.dtype, tmp_path / "a.pth")


def test_legacy_file(tmp_path):
    (tmp_path / "a.pth").write_bytes(legacy(ARRAYS))
    tensors = open_tensors(tmp_path / "a.pth")
    assert all(same(tensors[name], x) for name, x in ARRAYS.items())


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_agrees(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    a = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    saved = {
        "a": a,
        "turned": a.t(),
        "part": a[1:3, 2:5],
        "parameter": torch.nn.Parameter(a[:1].clone()),
        "bf16": a.bfloat16(),
    }
    whole = {"model": saved, "epoch": 3, "optimizer": {"state": {0: {"m": a}}}, "config": {"x": []}}
    torch.save(whole, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    tensors = open_tensors(tmp_path / "a.pth")
    assert tensors.metadata["epoch"] == 3
    assert set(tensors) == set(saved)
    for name, x in saved.items():
        assert np.array_equal(tensors[name].astype(np.float32), x.detach().float().numpy()), name


def test_torch_reads_what_is_written_here(tmp_path):
    torch = pytest.importorskip("torch")
    save_torch(tmp_path / "a.pth", ARRAYS.items())
    for mapped in (False, True):
        read = torch.load(tmp_path / "a.pth", weights_only=True, mmap=mapped)["model"]
        assert list(read) == list(ARRAYS)
        for name, x in ARRAYS.items():
            got = read[name].float().numpy()
            assert np.array_equal(got, x.astype(np.float32)), name
            assert got.shape == x.shape


class Evil:
    """What runs a command when it is unpickled."""

    def __reduce__(self):
        return print, ("it ran",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_calls_functions_is_refused_by_name(tmp_path, capsys, zipped):
    evil = pickle.dumps({"model": {"a": Evil()}}, 2)
    if zipped:
        with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
            archive.writestr("archive/data.pkl", evil)
    else:
        heads = (torch_files.MAGIC, torch_files.PROTOCOL, {})
        data = b"".join(pickle.dumps(head, 2) for head in heads) + evil
        (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(WeightsError, match=r"a\.pth: its pickle asks for __builtin__\.print"):
        open_tensors(tmp_path / "a.pth")
    assert "it ran" not in capsys.readouterr().out


def test_a_tensor_outside_of_its_storage_is_refused(tmp_path):
    huge = np.broadcast_to(np.zeros((), np.float32), (10**6, 10**6))
    content = _dict(
        [("a", _tensor("0", huge).replace(struct.pack("<q", 10**12), b"\1" + b"\0" * 7))]
    )
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.PROTO + b"\2" + content + pickle.STOP)
        archive.writestr("archive/data/0", b"\0" * 4)
    with pytest.raises(WeightsError, match="outside its storage"):
        open_tensors(tmp_path / "a.pth")


def damaged() -> dict[str, tuple[bytes, str]]:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([1], 2))
    big = io.BytesIO()
    with zipfile.ZipFile(big, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/byteorder", b"big")
    return {
        "cut off": (legacy(ARRAYS)[:-9], "ends within a tensor"),
        "cut off early": (legacy(ARRAYS)[:200], "can't be read as a torch file"),
        "half a zip": (zipped.getvalue()[:40], "a zip without an end"),
        "a list": (zipped.getvalue(), "got a list, expected named tensors"),
        "big-endian": (big.getvalue(), "big-endian"),
        "stub": (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs stub"),
        "text": (b"<html>", "a file of another kind"),
        "empty": (b"", "a file of another kind"),
        "other pickle": (pickle.dumps(5, 2), "can't be read|did not write"),
    }


@pytest.mark.parametrize("case", damaged())
def test_damage_is_told_in_a_sentence(tmp_path, case):
    data, told = damaged()[case]
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(WeightsError, match=told) as caught:
        open_tensors(tmp_path / "a.pth")
    assert str(tmp_path / "a.pth") in str(caught.value)


def test_safetensors_keep_their_dtypes(tmp_path):
    from safetensors.numpy import save_file

    save_file({n: np.ascontiguousarray(x) for n, x in ARRAYS.items()}, tmp_path / "a.safetensors")
    tensors = open_tensors(tmp_path / "a.safetensors")
    for name in ("a", "half", "bf16", "ids"):
        assert same(tensors[name], ARRAYS[name]), name
        assert tensors.info(name)[:2] == (ARRAYS[name].shape, ARRAYS[name].dtype)
    (tmp_path / "a.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match="can't be read as safetensors"):
        open_tensors(tmp_path / "a.safetensors")


def folder_of_shards(folder, where: dict[str, str]) -> None:
    by_file = collections.defaultdict(dict)
    for name, file in where.items():
        by_file[file][name] = ARRAYS[name]
    for file, arrays in by_file.items():
        save_torch(folder / file, arrays.items(), None)
    (folder / "config.json").write_text('{"hidden_size": 3}')
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))


def test_folder_of_shards(tmp_path):
    folder_of_shards(tmp_path, {"a": "x.bin", "half": "y.bin"})
    tensors = open_tensors(tmp_path)
    assert set(tensors) == {"a", "half"}
    assert tensors.info("half").file == tmp_path / "y.bin"
    assert tensors.metadata["config"] == {"hidden_size": 3}
    assert same(tensors["half"], ARRAYS["half"])
    (tmp_path / "y.bin").unlink()
    with pytest.raises(WeightsError, match=r"names y\.bin, which is not beside it"):
        open_tensors(tmp_path)
    save_torch(tmp_path / "y.bin", [("a", ARRAYS["a"])], None)
    with pytest.raises(WeightsError, match=r"y\.bin: lacks half"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("shards", [True, False])
def test_the_index_of_a_format_that_was_not_downloaded_is_let_pass(tmp_path, shards):
    if shards:
        folder_of_shards(tmp_path, {"a": "x.bin", "half": "y.bin"})
    else:
        save_torch(tmp_path / "pytorch_model.bin", [("a", ARRAYS["a"])], None)
    index = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert same(open_tensors(tmp_path)["a"], ARRAYS["a"])


def test_an_index_cannot_point_out_of_its_folder(tmp_path):
    (tmp_path / "in").mkdir()
    folder_of_shards(tmp_path, {"a": "x.bin"})
    index = json.dumps({"weight_map": {"a": "../x.bin"}})
    (tmp_path / "in" / "pytorch_model.bin.index.json").write_text(index)
    with pytest.raises(WeightsError, match="not beside it"):
        open_tensors(tmp_path / "in")


def test_nothing_to_read(tmp_path):
    with pytest.raises(WeightsError, match="name a folder that holds"):
        open_tensors(tmp_path)
    with pytest.raises(WeightsError, match="no such file"):
        open_tensors(tmp_path / "none.pth")


def test_tensors_are_read_when_looked_up_and_not_kept(tmp_path, monkeypatch):
    save_torch(tmp_path / "a.pth", ARRAYS.items())
    reads = []
    read = torch_files.StoredTensor.read
    monkeypatch.setattr(
        torch_files.StoredTensor, "read", lambda self: reads.append(self.shape) or read(self)
    )
    tensors = open_tensors(tmp_path / "a.pth").renamed("x.")
    assert "x.a" in tensors and "a" not in tensors and tensors.info("x.a").shape == (2, 3)
    assert reads == []
    tensors["x.a"], tensors["x.a"]
    assert reads == [(2, 3), (2, 3)]


def test_the_last_of_several_wins(tmp_path):
    save_torch(tmp_path / "a.pth", [("a", ARRAYS["a"]), ("half", ARRAYS["half"])])
    save_torch(tmp_path / "b.pth", [("a", ARRAYS["a"] + 1)])
    both = joined([open_tensors(tmp_path / "a.pth"), open_tensors(tmp_path / "b.pth")])
    assert same(both["a"], ARRAYS["a"] + 1) and same(both["half"], ARRAYS["half"])
    assert both.files == (tmp_path / "a.pth", tmp_path / "b.pth")
