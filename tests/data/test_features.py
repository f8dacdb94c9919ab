"""Stores of features: shards, what a kill leaves, several hosts, damage."""

import numpy as np
import pytest

from vljax.data.features import Features, FeaturesError, Store, Writer, stack_features

VIEW = "8 frames, uniform, 48 px"


def rows(value: float, count: int = 2) -> np.ndarray:
    return np.full((count, 3, 4), value, np.float32)


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{i}.mp4" for i in range(4)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 100)
    return paths


def test_what_is_written_is_read(tmp_path):
    writer = Writer(Store(tmp_path / "s"), "abc", limit=192)  # two items a shard
    for i in range(5):
        writer.add(f"m{i}", VIEW, rows(i), f"at {i} s")
    assert sorted(p.name for p in (tmp_path / "s").glob("*.npy")) == [
        "0000-000000.npy",
        "0000-000001.npy",
    ]
    assert len(Store(tmp_path / "s").rows) == 4  # what was kept only is not there yet
    writer.commit()
    store = Store(tmp_path / "s")
    assert store.facts == {"version": 1, "encoder": "abc", "shape": [3, 4], "dtype": "float32"}
    for i in range(5):
        found = store.rows[f"m{i}", VIEW]
        assert found.message == f"at {i} s"
        np.testing.assert_array_equal(store.read(found), rows(i))


def test_items_may_be_empty(tmp_path):
    writer = Writer(Store(tmp_path / "s"), "abc")
    writer.add("silent", VIEW, rows(0, 0))
    writer.add("loud", VIEW, rows(1, 3))
    writer.commit()
    store = Store(tmp_path / "s")
    assert store.read(store.rows["silent", VIEW]).shape == (0, 3, 4)
    assert (store.read(store.rows["loud", VIEW]) == 1).all()


def test_a_shard_without_its_index_is_not_there_and_is_written_over(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "0000-000000.npy").write_bytes(b"half")
    assert Store(tmp_path / "s").rows == {}
    writer = Writer(Store(tmp_path / "s"), "abc")
    writer.add("m", VIEW, rows(5))
    writer.commit()
    store = Store(tmp_path / "s")
    assert (store.read(store.rows["m", VIEW]) == 5).all()


def test_hosts_write_beside_each_other(tmp_path):
    writers = [Writer(Store(tmp_path / "s"), "abc", host) for host in (0, 1)]
    for i in (1, 0):
        writers[i].add(f"m{i}", VIEW, rows(i))
        writers[i].commit()
    Writer(Store(tmp_path / "s"), "abc", 1).commit()  # nothing to write, nothing written
    store = Store(tmp_path / "s")
    assert {k[0]: r.shard for k, r in store.rows.items()} == {
        "m0": "0000-000000",
        "m1": "0001-000000",
    }
    assert Writer(store, "abc", 1)._next == 1


def test_a_writer_of_another_encoder_is_refused(tmp_path):
    writer = Writer(Store(tmp_path / "s"), "abc")
    writer.add("m", VIEW, rows(0))
    writer.commit()
    with pytest.raises(FeaturesError, match="made by encoder abc, and this run's is xyz; encode"):
        Writer(Store(tmp_path / "s"), "xyz")


def test_files_are_known_by_their_bytes(tmp_path, files):
    from vljax.data.features import file_stamp, media_hash

    writer = Writer(Store(tmp_path / "s"), "abc")
    writer.note(files[0], file_stamp(files[0]), media_hash(files[0]))
    writer.add(media_hash(files[0]), VIEW, rows(0))
    writer.commit()
    store = Store(tmp_path / "s")
    assert store.noted(files[0]) == media_hash(files[0])
    assert store.noted(files[1]) is None
    wanted = store.rows[media_hash(files[0]), VIEW]
    files[1].write_bytes(files[0].read_bytes())
    assert store.find(files[0], VIEW) == store.find(files[1], VIEW) == wanted
    assert store.find(files[0], "image, 48 px") is None
    assert store.why_not(files[0], "image, 48 px").endswith('and is asked for as "image, 48 px"')
    assert store.why_not(files[2], VIEW) == "it was not encoded"
    files[0].write_bytes(b"other")
    assert store.noted(files[0]) is None
    assert store.find(files[0], VIEW) is None
    assert store.why_not(files[0], VIEW).startswith("it is another file than the one of that name")


def test_damage_is_told(tmp_path):
    writer = Writer(Store(tmp_path / "s"), "abc")
    writer.add("m", VIEW, rows(0, 100))
    writer.commit()
    path = tmp_path / "s" / "0000-000000.npy"
    path.write_bytes(path.read_bytes()[:500])
    store = Store(tmp_path / "s")
    with pytest.raises(
        FeaturesError, match=r"0000-000000.npy: can't be read .* delete it with its"
    ):
        store.read(store.rows["m", VIEW])


def test_shorter_clips_are_padded(tmp_path):
    writer = Writer(Store(tmp_path / "s"), "abc")
    for name, count in {"a": 1, "b": 3}.items():
        writer.add(name, VIEW, rows(count, count), f"{count} frames")
    writer.commit()
    store = Store(tmp_path / "s")
    entries = [store.rows[n, VIEW] for n in "ab"]
    features = Features({"x": store}, {"x": entries}, {"x": np.full((3, 4), 9, np.float32)})
    batch = stack_features([features.read(i) for i in (1, 0, 1)], features.padding, 2)
    assert batch["x"][..., 0, 0].tolist() == [[3, 3], [1, 9], [3, 3]]
    assert batch["frame_mask"].tolist() == [[True, True], [True, False], [True, True]]
    assert features.message(1) == "3 frames"
