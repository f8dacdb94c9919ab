"""Stretched position tables, and the memory in which neighbours are merged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.models.memory import blank, remember, stretched

TABLE = jnp.array([[0.0, 8.0], [1.0, 4.0], [4.0, 0.0]])
add = jax.jit(remember)


@pytest.mark.parametrize(
    ("count", "first"),
    [
        (3, [0, 1, 4]),
        (6, [0, 0.5, 1, 2.5, 4, 4]),
        (4, [0, 0.75, 2.5, 4]),
        (2, [0, 2.5]),
        (1, [0]),
    ],
)
def test_positions_between_rows(count, first):
    got = stretched(TABLE, count)
    assert got.shape == (count, 2)
    np.testing.assert_allclose(got[:, 0], first)


def test_a_table_drawn_out_to_its_own_length_is_itself():
    table = jax.random.normal(jax.random.key(0), (8, 5))
    np.testing.assert_array_equal(stretched(table, 8), table)
    np.testing.assert_array_equal(stretched(table, 32)[::4], table)
    np.testing.assert_array_equal(stretched(table[:1], 3), table[jnp.zeros(3, int)])


def turned(*degrees: float) -> np.ndarray:
    """Frames of one token in the plane, so that angles tell how alike they are."""
    a = np.radians(degrees)
    return np.stack([np.cos(a), np.sin(a)], -1)[:, None].astype(np.float32)


def fill(places: int, frames: np.ndarray, valid: np.ndarray | None = None):
    times = np.arange(len(frames), dtype=np.float32)
    valid = np.ones(len(frames), bool) if valid is None else valid
    return add(blank(places, *frames.shape[1:]), frames, times, valid)


def test_what_fits_is_kept_as_it_is():
    frames = turned(0, 50, 90)
    memory = fill(4, frames)
    np.testing.assert_array_equal(memory.entries[:3], frames)
    assert memory.weights.tolist() == [1, 1, 1, 0]
    assert memory.times[:3].tolist() == [0, 1, 2]


def test_the_likest_neighbours_become_one():
    memory = fill(3, turned(0, 50, 60, 180))
    assert memory.weights.tolist() == [1, 2, 1]
    assert memory.times.tolist() == [0, 1.5, 3]
    np.testing.assert_allclose(memory.entries[1], turned(50, 60).mean(0), rtol=1e-6)


def test_equals_that_are_no_neighbours_stay_apart():
    assert fill(4, turned(0, 90, 0, 90, 91)).weights.tolist() == [1, 1, 1, 2]


def test_a_rare_frame_outlives_many_alike():
    """Nine of one kind before and after one that differs."""
    frames = turned(*[0, 1] * 5, 120, *[0, 1] * 5)
    memory = fill(3, frames)
    assert round(float(np.degrees(np.arctan2(*memory.entries[1, 0, ::-1])))) == 120
    assert memory.weights.tolist() == [10, 1, 10]
    assert memory.times.tolist() == [4.5, 10, 15.5]


def test_entries_are_the_means_of_all_frames_in_order():
    frames = np.random.default_rng(0).normal(size=(40, 3, 4)).astype(np.float32)
    memory = fill(6, frames)
    assert memory.weights.sum() == 40
    bounds = np.cumsum(np.asarray(memory.weights).astype(int))[:-1]
    for entry, time, part, at in zip(
        memory.entries,
        memory.times,
        np.split(frames, bounds),
        np.split(np.arange(40), bounds),
        strict=True,
    ):
        np.testing.assert_allclose(entry, part.mean(0), rtol=1e-4, atol=1e-5)
        assert float(time) == pytest.approx(at.mean(), rel=1e-5)


def test_chunks_and_what_fills_them_up_change_nothing():
    frames = np.random.default_rng(1).normal(size=(12, 2, 4)).astype(np.float32)
    whole = fill(4, frames)
    memory = blank(4, 2, 4)
    for start in range(0, 12, 3):
        times = np.r_[np.arange(start, start + 3), 99.0].astype(np.float32)
        part = np.concatenate([frames[start : start + 3], np.full((1, 2, 4), 7, np.float32)])
        memory = add(memory, part, times, np.array([True, True, True, False]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), memory, whole)
