"""One tiny model with random weights, which the tests of this folder share."""

import dataclasses

import jax
import numpy as np
import pytest

from vljax.data.text import TEMPLATES
from vljax.data.tokenizer import Tokenizer
from vljax.data.world.files import train_tokenizer
from vljax.generate.engine import Engine
from vljax.models.sizes import TINY
from vljax.models.video_llama import abstract_parameters
from vljax.store import flatten, unflatten

SIZE = dataclasses.replace(TINY, llama=dataclasses.replace(TINY.llama, width=64, depth=2, mlp=96))


@pytest.fixture(scope="session")
def engine(tmp_path_factory) -> Engine:
    """The tiny model with random weights, large enough that answers differ."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(path, np.random.default_rng(0))
    rng = np.random.default_rng(0)

    def one(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if "scale" in name:
            return np.ones(shape, np.float32)
        width = shape[-2] if "kernel" in name else 4
        return rng.normal(0, width**-0.5, shape).astype(np.float32)

    flat = flatten(abstract_parameters(SIZE))
    params = {n.removesuffix("/value"): one(n, x.shape) for n, x in flat.items()}
    return Engine(SIZE, jax.device_put(unflatten(params)), Tokenizer(path), TEMPLATES["tiny"])
