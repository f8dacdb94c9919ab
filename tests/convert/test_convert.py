"""``vljax convert`` on all published layouts: what the direct way gives, bit for bit."""

import dataclasses
import json
import tracemalloc
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

import vljax
from vljax import store
from vljax.cli.main import main
from vljax.convert import convert as convert_module
from vljax.convert import published
from vljax.convert.parity import relative_error, size_from_config
from vljax.convert.plan import Options, make_plan
from vljax.convert.readers import open_tensors
from vljax.convert.torch_writer import save_torch
from vljax.convert.towers import expected, to_vljax
from vljax.generate.engine import Request
from vljax.models.sizes import TINY, LlamaSize, size_as_dict
from vljax.models.video_llama import VideoLlama

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden"
TOKENIZER = GOLDEN / "tokenizer.model"

SIZE = size_from_config(json.loads((GOLDEN / "config.json").read_text()))


@pytest.fixture(scope="module")
def weights():
    return published.random_weights(SIZE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("published")


@pytest.fixture(scope="module")
def files(folder, weights):
    (folder / "size.json").write_text(json.dumps(size_as_dict(SIZE)))
    return published.write_published(folder, weights, SIZE, TOKENIZER)


@pytest.fixture
def run(folder, files, tmp_path, capsys):
    """-> (exit code, folder, stderr) of converting ``given``, by default all files."""

    def call(*given: object, size: bool = True) -> tuple[int, Path, str]:
        capsys.readouterr()
        given = given or tuple(files.values())
        named = ["--size", folder / "size.json"] if size else []
        code = main(["convert", *map(str, [*given, "--out", tmp_path / "out", *named])])
        return code, tmp_path / "out", capsys.readouterr().err

    return call


def assert_same(params: dict, want: dict) -> None:
    got, want = store.flatten(params), store.flatten(want)
    assert got.keys() == want.keys()
    for name, x in want.items():
        assert (got[name].dtype, got[name].shape) == (x.dtype, x.shape), name
        assert got[name].tobytes() == np.ascontiguousarray(x).tobytes(), name


@pytest.fixture(scope="module")
def direct(weights):
    """What the tables make of the same tensors without any file."""
    return to_vljax(weights, SIZE)[0]


@pytest.mark.parametrize("sliced", [store.SLICED, 0])
def test_all_files_together(run, direct, monkeypatch, sliced):
    monkeypatch.setattr(store, "SLICED", sliced)
    monkeypatch.setattr(store.Writer, "HELD", 10**5)
    code, out, said = run()
    assert code == 0, said
    params, manifest = store.load(out, None)
    assert_same(params, direct)
    assert "absent: none" in said
    assert manifest["dtype"] == "keep"
    assert manifest["compute"] == "float32"
    assert manifest["model"] == json.loads(json.dumps(size_as_dict(SIZE)))
    kinds = [source["kind"] for source in manifest["sources"]]
    assert kinds[-3:] == ["imagebind", "video_llama_vl", "video_llama_al"]
    assert all(len(source["sha256"]) == 64 for source in manifest["sources"])


@pytest.mark.parametrize(
    ("file", "counts", "parts"),
    [
        ("eva_vit_g.pth", "43 loaded, 2 known to be dropped", {"frame_encoder/vit"}),
        (
            "blip2.pth",
            "73 loaded, 3 known to be dropped",
            {"frame_encoder/ln_vision", "frame_encoder/qformer"},
        ),
        ("imagebind_huge.pth", "68 loaded, 1 known to be dropped", {"imagebind"}),
        ("llama", "21 loaded, 0 known to be dropped", {"llama"}),
        ("minigpt4.pth", "2 loaded", {"video_proj"}),
        ("vl.pth", "58 loaded", {"frame_position", "video_qformer", "video_proj"}),
        ("al.pth", "58 loaded", {"audio_position", "audio_qformer", "audio_proj"}),
    ],
)
def test_each_file_alone(run, files, weights, direct, file, counts, parts):
    code, out, said = run(files[file])
    assert code == 0, said
    assert counts in said
    params, manifest = store.load(out, None)
    assert set(manifest["parts"]) == parts
    want = {n: x for n, x in store.flatten(direct).items() if store.is_under(n, tuple(parts))}
    if file == "minigpt4.pth":
        want = {n: x * 2 for n, x in want.items()}
    assert_same(params, store.unflatten(want))


def test_files_of_training_runs_hold_buffers_of_all_towers(run, files, direct, tmp_path):
    loudness = np.log(np.float32(SIZE.imagebind.sound.norm))
    buffers = {
        "Qformer.bert.embeddings.position_ids": np.arange(4)[None],
        "video_Qformer.bert.embeddings.position_ids": np.arange(4)[None],
        "audio_Qformer.bert.embeddings.position_ids": np.arange(4)[None],
        "llama_model.model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
        "audio_encoder.modality_preprocessors.text.mask": np.triu(
            np.full((4, 4), -np.inf, np.float32), 1
        ),
        "audio_encoder.modality_postprocessors.text.1.log_logit_scale": np.float32(4.6),
        "audio_encoder.modality_postprocessors.audio.1.log_logit_scale": loudness,
    }
    given = dict(files)
    for name in ("minigpt4.pth", "vl.pth", "al.pth"):
        given[name] = tmp_path / name
        save_torch(given[name], [*buffers.items(), *open_tensors(files[name]).items()])
    code, out, said = run(*given.values())
    assert code == 0, said
    assert "58 loaded, 7 known to be dropped, 0 unexpected, 0 missing" in said
    assert_same(store.load(out, None)[0], direct)


def test_later_files_win_whatever_their_order(run, files, weights):
    _, out, said = run(files["vl.pth"], files["minigpt4.pth"])
    assert "0 missing; 2 replaced by vl.pth\nvl.pth (" in said
    assert said.count("replaced") == 1
    kernel = store.load(out)[0]["video_proj"]["kernel"]
    assert np.array_equal(kernel, weights["llama_proj.weight"].T)


def test_golden_weights_give_the_golden_logits(folder, run, tmp_path):
    with np.load(GOLDEN / "weights.npz") as file:
        golden = dict(file)
    given = published.write_published(tmp_path / "golden", golden, SIZE, TOKENIZER, kind="bin")
    code, out, said = run(*given.values())
    assert code == 0, said
    assert_same(store.load(out, None)[0], to_vljax(golden, SIZE)[0])
    with np.load(GOLDEN / "llm.npz") as file:
        llm = dict(file)
    case = next(name.removesuffix("/logits") for name in llm if name.endswith("/logits"))
    engine = vljax.load(out).engine

    def logits(model: VideoLlama, embeddings: jax.Array, mask: jax.Array) -> jax.Array:
        return model.llama.logits(model.llama(embeddings, mask)[0])

    with jax.default_matmul_precision("highest"):
        given = llm[f"{case}/inputs_embeds"], llm[f"{case}/attention_mask"]
        got = engine.model.apply({"params": engine.params}, *given, method=logits)
    assert relative_error(got, llm[f"{case}/logits"]) < 1e-4


@pytest.mark.slow
def test_a_converted_folder_answers(run, files):
    _, out, _ = run()
    sample = HERE.parent.parent / "vljax/samples/sample.mp4"
    answer = vljax.load(out).chat(sample, "What?")
    assert answer == vljax.load(out, "float32").chat(sample, "What?")  # what it says it is for


def test_a_set_without_sound_sees_and_a_bare_llm_only_talks(run, files, tmp_path, caplog):
    sample = HERE.parent.parent / "vljax/samples/sample.mp4"
    seeing = [files[n] for n in ("eva_vit_g.pth", "blip2.pth", "llama", "vl.pth")]
    _, out, _ = run(*seeing)
    vljax.load(out).chat(sample, "What?")
    assert "no audio branch" in caplog.text
    out.rename(tmp_path / "seeing")
    _, out, _ = run(files["llama"])
    model = vljax.load(out)
    assert len(model.generate([Request("Hello?")])) == 1
    with pytest.raises(store.WeightsError, match="neither see nor hear"):
        model.chat(sample, "What?")


def test_branches_without_an_llm_do_not_answer(run, files):
    _, out, _ = run(files["minigpt4.pth"])
    with pytest.raises(store.WeightsError, match="holds video_proj, expected a language model"):
        vljax.load(out)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"template": "mine"}))
    with pytest.raises(store.WeightsError, match="template is 'mine', expected one of vicuna"):
        vljax.load(out)


def test_a_branch_without_its_encoder_does_not_see(run, files, caplog):
    given = [p for n, p in files.items() if n != "blip2.pth"]
    _, out, _ = run(*given)
    assert vljax.load(out).engine.senses() == (False, True)
    assert "no vision branch" in caplog.text


@pytest.mark.parametrize(("kind", "shards"), [("safetensors", 3), ("bin", 3), ("bin", 1)])
def test_shards(run, weights, direct, tmp_path, kind, shards):
    only = {n: weights[n] for n in weights if n.startswith("llama_model.")}
    given = published.write_published(tmp_path / "p", only, SIZE, TOKENIZER, kind, shards)
    code, out, said = run(given["llama"])
    assert code == 0, said
    assert_same(store.load(out, None)[0], {"llama": direct["llama"]})
    assert (out / "tokenizer.model").read_bytes() == TOKENIZER.read_bytes()


@pytest.mark.parametrize("asked", ["bfloat16", "float16", "float32"])
def test_dtypes(run, files, direct, asked):
    dtype = np.dtype(ml_dtypes.bfloat16 if asked == "bfloat16" else asked)
    code, out, _ = run(files["llama"], "--dtype", asked)
    assert code == 0
    params, manifest = store.load(out, None)
    assert_same(params, jax.tree.map(lambda x: x.astype(dtype), {"llama": direct["llama"]}))
    assert manifest["compute"] == ("float32" if asked == "float32" else "bfloat16")


def test_half_precision_that_overflows_is_refused(run, tmp_path, weights):
    big = {n: weights[n] * 1e6 for n in weights if n.startswith("llama_proj")}
    given = published.write_published(tmp_path / "p", big, SIZE)
    code, out, said = run(given["minigpt4.pth"], "--dtype", "float16")
    assert code == 1
    assert "beyond float16's" in said
    assert not out.exists()


def llama_with(folder: Path, weights, size: LlamaSize, **changed: np.ndarray) -> Path:
    """A LLaMA folder of ``weights`` whose tensors by short name are ``changed``."""
    named = {n: weights[n] for n in weights if n.startswith("llama_model.")}
    named |= {f"llama_model.{n}": x for n, x in changed.items()}
    whole = dataclasses.replace(SIZE, llama=size)
    return published.write_published(folder, named, whole, TOKENIZER)["llama"]


@pytest.mark.parametrize("pad", [False, True])
def test_delta_is_added_in_float32(run, tmp_path, weights, pad):
    size, half = SIZE.llama, ml_dtypes.bfloat16
    ours = published.random_weights(SIZE, half, seed=1)
    base = llama_with(tmp_path / "base", ours, size)
    theirs = published.random_weights(SIZE, half, seed=2)
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    row = np.full((1, size.width), 0.5, half)
    changed = {n: np.concatenate([theirs[f"llama_model.{n}"], row]) for n in tables} if pad else {}
    rows = size.vocab + pad
    delta = llama_with(tmp_path / "delta", theirs, dataclasses.replace(size, vocab=rows), **changed)
    delta = delta.rename(tmp_path / "a-delta")
    code, out, said = run(base, "--delta", delta, size=False)
    assert code == 0, said
    params, manifest = store.load(out, None)
    name = "llama_model.model.layers.1.mlp.up_proj.weight"
    want = (ours[name].astype(np.float32) + theirs[name].astype(np.float32)).astype(half)
    assert np.array_equal(params["llama"]["layers"]["mlp"]["up"]["kernel"][1], want.T)
    table = params["llama"]["tokens"]["embedding"]
    assert len(table) == rows == manifest["model"]["llama"]["vocab"]
    paths = [source["path"] for source in manifest["sources"]]
    assert paths == ["llama/model.safetensors", "a-delta/model.safetensors"]
    added = out / "added_tokens.json"
    assert (json.loads(added.read_text()) if added.exists() else {}) == (
        {"[PAD]": size.vocab} if pad else {}
    )
    if pad:  # a row that the base has not: zeros, plus the delta's
        assert np.array_equal(table[-1], row[0])
        model = vljax.load(out)
        assert model.engine.tokenizer.image_here == rows  # not the row of [PAD]
        assert len(model.generate([Request("Hello?")])) == 1


def test_a_delta_for_another_base_is_refused(run, tmp_path, weights, files):
    other = {"model.norm.weight": np.zeros(3, np.float32)}
    delta = llama_with(tmp_path / "delta", weights, SIZE.llama, **other)
    code, _, said = run(files["llama"], "--delta", delta, "--quick")
    assert code == 1
    assert "made for this base" in said


def test_missing_and_unexpected_are_named(run, tmp_path, weights):
    names = [n for n in weights if n.startswith(("video_", "llama_proj"))]
    vl = {n: weights[n] for n in names if n != "llama_proj.bias"}
    vl["video_Qformer.bert.more"] = np.ones(3, np.float32)
    save_torch(tmp_path / "vl.pth", vl.items())
    code, out, said = run(tmp_path / "vl.pth")
    assert code == 1
    assert "missing: llama_proj.bias" in said
    assert "unexpected: video_Qformer.bert.more" in said
    assert not out.exists()


def test_a_projection_for_another_llm_is_refused(run, tmp_path, weights, files):
    wide = {
        "llama_proj.weight": np.ones((5120, SIZE.qformer.width), np.float32),
        "llama_proj.bias": np.ones(5120, np.float32),
    }
    save_torch(tmp_path / "minigpt4.pth", wide.items())
    code, _, said = run(tmp_path / "minigpt4.pth", files["llama"], size=False)
    assert code == 1
    assert "5120" in said
    assert str(SIZE.llama.width) in said


def test_a_size_that_the_llm_has_not_is_refused(files, tmp_path, capsys):
    code = main(["convert", str(files["llama"]), "--out", str(tmp_path / "o"), "--size", "13b"])
    assert code == 1
    assert "its LLM has width 64, but --size=13b has 5120" in capsys.readouterr().err


def test_a_file_of_another_size_is_refused_before_anything_is_written(run, tmp_path, weights):
    small = {n: weights[n] for n in weights if n.startswith(("video_", "llama_proj"))}
    name = "video_Qformer.bert.encoder.layer.1.output_query.dense.weight"
    small[name] = small[name][:, :-1]
    save_torch(tmp_path / "vl.pth", small.items())
    code, out, said = run(tmp_path / "vl.pth")
    assert code == 1
    assert f"vl.pth: {name} is" in said
    assert not out.parent.joinpath("out.partial").exists()


def test_two_files_of_one_kind_are_refused(run, files, tmp_path, weights):
    al = {n: weights[n] for n in weights if n.startswith(("audio_Q", "audio_q", "audio_p"))}
    save_torch(tmp_path / "other.pth", al.items())
    code, _, said = run(files["al.pth"], tmp_path / "other.pth")
    assert code == 1
    assert "both are Video-LLaMA's audio branch" in said


def test_what_is_none_of_the_files_is_refused(run, tmp_path):
    save_torch(tmp_path / "a.pth", [("classifier.weight", np.ones((2, 2), np.float32))])
    code, _, said = run(tmp_path / "a.pth")
    assert code == 1
    assert "got tensors such as classifier.weight" in said


def test_an_existing_folder_is_left_alone(run, files, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    code, out, said = run(files["minigpt4.pth"])
    assert code == 1
    assert "is there already" in said
    assert "MB" not in said  # before the doctor reads anything
    assert [p.name for p in out.iterdir()] == ["mine"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_conversion_leaves_nothing(run, files, tmp_path, monkeypatch, error):
    write, calls = convert_module.write, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            assert (tmp_path / "out.partial").exists()
            raise error("stopped")
        write(*arguments)

    monkeypatch.setattr(convert_module, "write", stop)
    code, _, _ = run(files["vl.pth"])
    assert code == (130 if error is KeyboardInterrupt else 1)
    assert list(tmp_path.iterdir()) == []


def test_memory_is_near_the_largest_tensor(tmp_path, monkeypatch):
    """16 layers of 256 KiB tensors: no stack of them is ever held."""
    size = dataclasses.replace(
        SIZE,
        llama=LlamaSize(vocab=430, width=256, depth=16, heads=4, kv_heads=4, mlp=512),
    )
    names = published.torch_shapes(size)
    weights = published.Random({n: s for n, s in names.items() if n.startswith("llama_model.")})
    given = published.write_published(tmp_path, weights, size, TOKENIZER)
    monkeypatch.setattr(store, "SLICED", 2**18)
    monkeypatch.setattr(store.Writer, "HELD", 2**18)
    plan = make_plan(list(given.values()), Options())
    largest = 512 * 256 * 4
    convert_module.convert(plan, tmp_path / "warm", Options())  # imports and caches aside
    tracemalloc.start()
    convert_module.convert(plan, tmp_path / "out", Options())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(x.nbytes for x in weights.values()) > 40 * largest
    assert peak < 10 * largest  # sha256 alone reads blocks


def test_a_decoder_of_any_shape_is_in_the_manifest(run, tmp_path, weights):
    """Grouped keys, tied embeddings, another rope: all from config.json."""
    llama = LlamaSize(
        vocab=430,
        width=64,
        depth=1,
        heads=4,
        kv_heads=2,
        mlp=96,
        eps=3e-5,
        rope_base=5e5,
        tied=True,
    )
    size = dataclasses.replace(SIZE, llama=llama)
    shapes = published.torch_shapes(size)
    only = published.Random({n: s for n, s in shapes.items() if n.startswith("llama_model.")})
    given = published.write_published(tmp_path / "p", only, size, TOKENIZER)
    code, out, said = run(given["llama"], size=False)
    assert code == 0, said
    model = vljax.load(out)
    assert model.engine.size.llama == llama
    assert len(model.generate([Request("Hello?")])) == 1


def test_orbax_restores_it_with_shardings(run, files, direct):
    """What is written a slice at a time is an Orbax checkpoint like any other."""
    import orbax.checkpoint as ocp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    _, out, _ = run(files["llama"])
    mesh = Mesh(np.array(jax.devices()[:2]), ("fsdp",))
    shard = NamedSharding(mesh, PartitionSpec("fsdp"))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shard),
        {"llama": {"layers": direct["llama"]["layers"]}},
    )
    reader = ocp.PyTreeCheckpointer()
    arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
    restored = reader.restore(
        out / "params",
        args=ocp.args.PyTreeRestore(abstract, restore_args=arguments, partial_restore=True),
    )
    got = restored["llama"]["layers"]["mlp"]["up"]["kernel"]
    assert got.sharding.is_equivalent_to(shard, got.ndim)
    assert np.array_equal(got, direct["llama"]["layers"]["mlp"]["up"]["kernel"])


@pytest.mark.parametrize("branch", ["vision", "audio"])
def test_export_is_the_file_that_was_converted(run, files, tmp_path, branch):
    _, out, _ = run()
    exported = tmp_path / "back.pth"
    arguments = ["convert", "--export", out, "--out", exported, "--branch", branch]
    assert main([*map(str, arguments)]) == 0
    got = open_tensors(exported)
    want = open_tensors(files["vl.pth" if branch == "vision" else "al.pth"])
    assert set(got) == set(want)
    for name in want:
        assert got[name].tobytes() == want[name].tobytes(), name
    assert main([*map(str, arguments)]) == 1  # it is there already


def test_export_of_what_a_stage_trained(tmp_path):
    branch = ("video_qformer", "frame_position", "video_proj")
    trained = {
        n: np.random.default_rng(i).standard_normal(x.shape, np.float32)
        for i, (n, x) in enumerate(expected(TINY).items())
        if store.is_under(n, branch)
    }
    run = {"run": "vision", "config": {"size": "tiny", "llm": "vicuna"}}
    store.save(tmp_path / "weights", store.unflatten(trained), run)
    arguments = ["convert", "--export", tmp_path / "weights", "--out", tmp_path / "back.pth"]
    assert main([*map(str, arguments)]) == 0
    back, coverage = to_vljax(open_tensors(tmp_path / "back.pth"), TINY, branch)
    assert not (coverage.missing or coverage.unexpected)
    assert_same(back, store.unflatten(trained))


def test_export_of_what_is_not_there(run, files, tmp_path, capsys):
    _, out, _ = run(files["vl.pth"])
    arguments = ["convert", "--export", out, "--out", tmp_path / "b.pth", "--branch", "audio"]
    assert main([*map(str, arguments)]) == 1
    assert "lacks audio_position" in capsys.readouterr().err
