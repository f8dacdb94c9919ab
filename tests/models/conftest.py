"""Golden numbers of the original model, and random weights large enough to make errors visible."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from vljax.convert.parity import size_from_config
from vljax.convert.towers import expected, to_vljax
from vljax.models.sizes import VideoLlamaSize
from vljax.models.video_llama import VideoLlama

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


class Golden:
    """One golden set: its sizes, our model of them, and the original's weights as our params."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = json.loads((folder / "config.json").read_text())
        self.size = size_from_config(self.config)
        self.model = VideoLlama(self.size)
        self.weights = self.arrays("weights")
        self.params, self.coverage = to_vljax(self.weights, self.size)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"{name}.npz") as file:
            return dict(file)

    def apply(self, *arguments: object, method: Callable) -> tuple:
        """-> (outputs, intermediates)."""
        run = functools.partial(self.model.apply, method=method, mutable=["intermediates"])
        out, state = jax.jit(run)({"params": self.params}, *arguments)
        return out, state.get("intermediates", {})


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden(GOLDEN)


def random_params(size: VideoLlamaSize, seed: int = 0) -> dict:
    """Numpy params: norm scales near 1, all else N(0, about 1/sqrt(fan in)), biases included."""
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith("/scale"):
            return rng.normal(1.0, 0.2, shape)
        # A kernel keeps the scale of its input; the rest is comparable with normed activations.
        std = shape[-2] ** -0.5 if name.endswith("/kernel") else 0.5
        return rng.normal(0.0, std, shape)

    flat = {name: draw(name, x.shape).astype(np.float32) for name, x in expected(size).items()}
    return unflatten_dict(flat, sep="/")


@pytest.fixture(scope="session")
def randomly() -> object:
    """The function ``random_params``."""
    return random_params
