"""Position tables are resized as torch resizes them."""

import numpy as np
import pytest

from vljax.convert.adjust import cubic_weights, resize_positions, with_positions
from vljax.convert.readers import open_tensors
from vljax.convert.torch_writer import save_torch
from vljax.store import WeightsError


def table(grid: int, width: int = 3, dtype: type = np.float16) -> np.ndarray:
    return np.random.default_rng(grid).normal(size=(1, 1 + grid**2, width)).astype(dtype)


@pytest.mark.parametrize(("old", "new"), [(16, 24), (16, 7), (4, 5), (5, 1)])
def test_against_torch(old, new):
    torch = pytest.importorskip("torch")
    x = table(old)
    grid = torch.tensor(x[0, 1:].astype(np.float32)).reshape(1, old, old, -1).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    want = want.permute(0, 2, 3, 1).reshape(new * new, -1).numpy()
    got = resize_positions(x, 1 + new**2)
    assert got.dtype == np.float32
    assert np.array_equal(got[0, 0], x[0, 0].astype(np.float32))  # the class row
    np.testing.assert_allclose(got[0, 1:], want, atol=1e-5)


def test_known_weights():
    """Twice as fine: each new point lies a quarter of a pixel from the nearest old one."""
    near, far = 0.87890625, 0.26171875
    weights = cubic_weights(6, 12)
    np.testing.assert_allclose(weights[4, 0:4], [-0.03515625, far, near, -0.10546875])
    np.testing.assert_allclose(weights[5, 1:5], [-0.10546875, near, far, -0.03515625])
    np.testing.assert_allclose(weights.sum(1), 1)
    assert np.array_equal(cubic_weights(5, 5), np.eye(5))


def test_a_table_of_the_right_size_is_left_alone(tmp_path):
    save_torch(tmp_path / "a.pth", [("pos_embed", table(4))])
    tensors = open_tensors(tmp_path / "a.pth")
    assert with_positions(tensors, "pos_embed", 17) is tensors
    assert with_positions(tensors, "other", 5) is tensors
    resized = with_positions(tensors, "pos_embed", 26)
    assert resized.info("pos_embed")[:2] == ((1, 26, 3), np.float32)
    assert resized["pos_embed"].shape == (1, 26, 3)


def test_a_table_that_is_no_square_is_refused():
    with pytest.raises(WeightsError, match="got 8 rows"):
        resize_positions(np.zeros((1, 8, 2), np.float32), 17)
