import zipfile

import numpy as np
import pytest

from robustguide.checkpoints.arrays import Arrays

ARRAYS = {
    "numbers": np.arange(12, dtype=">f8").reshape(3, 4),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "text": np.array("über"),
    "one": np.float32(2.5),
    "none": np.zeros((0, 3), np.uint8),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_what_numpy_reads(tmp_path, save):
    save(tmp_path / "a.npz", **ARRAYS)
    arrays = Arrays(tmp_path / "a.npz")
    assert arrays.names == list(ARRAYS)
    for name, array in ARRAYS.items():
        found = arrays.read(name)
        assert np.array_equal(found, array) and found.shape == np.shape(array)
        assert found.dtype.isnative and arrays.header(name).shape == np.shape(array)
    for size in (1, 2, 5):
        rows = list(arrays.rows("numbers", size))
        assert [len(part) for part in rows] == {1: [1, 1, 1], 2: [2, 1], 5: [3]}[size]
        assert np.array_equal(np.concatenate(rows), ARRAYS["numbers"])
    assert list(arrays.rows("none", 2)) == []


def test_a_newer_header(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file, file.open("a.npy", "w") as stream:
        np.lib.format.write_array(stream, np.arange(3), version=(2, 0))
    assert Arrays(tmp_path / "a.npz").read("a").tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array([{"a": 1}]), "is of type object, which can hold code"),
        (np.zeros(2, [("a", "f4")]), "which can hold code; save it again as numbers"),
    ],
)
def test_arrays_that_are_refused(tmp_path, array, said):
    np.savez(tmp_path / "a.npz", a=array)
    with pytest.raises(ValueError, match=said):
        Arrays(tmp_path / "a.npz").read("a")


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.npz does not exist"):
        Arrays(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", mu=np.ones(2), sigma=np.eye(2))
    with pytest.raises(ValueError, match=r"has no arr_0; it has mu, sigma\."):
        Arrays(tmp_path / "a.npz").read("arr_0")


def test_damage(tmp_path):
    """Every byte of a small file changed in turn: the same numbers, or one clear error."""
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.arange(5))
    whole, errors = path.read_bytes(), 0
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x55
        path.write_bytes(changed)
        try:
            arrays = Arrays(path)
            found = arrays.read(arrays.names[0]) if arrays.names else None
        except ValueError as error:
            errors += str(path) in str(error)
        else:
            assert found is None or found.tolist() == list(range(5))
    assert errors > len(whole) / 3
