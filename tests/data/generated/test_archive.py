import re
import tracemalloc
import zipfile

import numpy as np
import pytest
import sampled
import torch

from robustguide.data.generated import open_samples, write_samples

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_file_of_adms_evaluator(tmp_path, save):
    save(tmp_path / "a.npz", IMAGES, np.array([3, 1, 4, 1, 5, 9, 2]))
    samples = open_samples(tmp_path / "a.npz")
    assert samples.shape == (3, 4, 5) and samples.made == {"kind": "npz"}
    for size in (1, 3, 100):
        found = sampled.together(samples, size)
        assert torch.equal(found.pixels, torch.from_numpy(IMAGES).permute(0, 3, 1, 2))
        assert found.pixels.is_contiguous() and found.y.tolist() == [3, 1, 4, 1, 5, 9, 2]
        assert found.index.tolist() == found.seed.tolist() == list(range(7))
    save(tmp_path / "b.npz", IMAGES)
    assert sampled.together(open_samples(tmp_path / "b.npz")).y is None


def test_numpy_reads_what_is_written(tmp_path):
    samples = sampled.Held()
    write_samples(samples, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays.files[0] == "arr_0" and arrays["arr_0"].dtype == np.uint8
        assert np.array_equal(arrays["arr_0"], samples.pixels.permute(0, 2, 3, 1).numpy())
        assert arrays["arr_1"].tolist() == samples.y.tolist()
        assert arrays["seeds"].tolist() == samples.seed.tolist()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_is_read_as_a_stream(tmp_path, save):
    """Of 60 MB of images no more than a batch and its copy is in memory at a time."""
    save(tmp_path / "a.npz", np.zeros((5000, 64, 64, 3), np.uint8))
    samples = open_samples(tmp_path / "a.npz")
    tracemalloc.start()
    count = sum(len(batch.index) for batch in samples.batches(50))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 5000 and peak < 3e6


def floats(low, high):
    return np.linspace(low, high, IMAGES.size, dtype=np.float32).reshape(IMAGES.shape)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (
            {"arr_0": floats(0, 1)},
            r"float32, .* from 0 to 1: .* save \(images \* 255\)\.round\(\)\.clip\(0, 255\)",
        ),
        ({"arr_0": floats(-1, 1)}, r"from -1 to 1: .* save \(\(images \+ 1\) \* 127\.5\)\.round"),
        ({"arr_0": floats(-3.5, 255)}, r"from -3\.5 to 255: .* from 0 to 255, save images\.round"),
        ({"arr_0": IMAGES.astype(np.int64)}, "is int64, expected uint8 .*images.astype"),
        ({"arr_0": IMAGES.transpose(0, 3, 1, 2)}, r"\[7, 3, 4, 5\]; expected \(n, h, w, c\)"),
        ({"arr_0": IMAGES[..., 0]}, r"\[7, 4, 5\]; .* grey ones from images\[\.\.\., None\]"),
        ({"arr_0": IMAGES[:0]}, "holds no images"),
        ({"arr_0": IMAGES, "arr_1": np.arange(6)}, r"arr_1 .* int64 of shape \[6\]; .* 7 images"),
        ({"arr_0": IMAGES, "arr_1": np.ones(7)}, r"arr_1 .* is float64 .* a whole number for"),
        ({"arr_0": IMAGES, "arr_1": np.arange(-1, 6)}, "arr_1 in .* holds -1; expected 0 or"),
        ({"arr_0": IMAGES, "index": np.arange(7) // 2}, "holds two samples of number 0"),
        ({"arr_0": IMAGES, "index": np.arange(7)[::-1]}, "sample 5 comes after sample 6"),
        ({"arr_0": IMAGES, "about": np.array("{}")}, "about in .* is not what `robustguide"),
        ({"mu": np.ones(3), "sigma": np.eye(3)}, "holds mu, sigma; .* statistics as --reference"),
        ({"images": IMAGES}, r"holds images; expected arr_0, .*: save images as arr_0"),
        ({"arr_0": np.array([[None]])}, "is of type object, which can hold code"),
        ({"arr_0": np.asfortranarray(IMAGES)}, "is not stored row after row; save it again"),
    ],
)
def test_arrays_that_are_no_samples(tmp_path, arrays, said):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError) as raised:
        list(open_samples(tmp_path / "a.npz").batches(2))
    assert re.search(said, str(raised.value)), raised.value


@pytest.mark.parametrize("kept", [0, 30, 200, 450, -1])
def test_a_file_that_was_cut_short(tmp_path, kept):
    write_samples(sampled.Held(), tmp_path / "a.npz")
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[:kept])
    with pytest.raises(
        ValueError, match=r"the archive in .*a\.npz \(.*: it is cut short or damaged"
    ):
        open_samples(tmp_path / "a.npz")


def test_a_byte_that_changed(tmp_path):
    write_samples(sampled.Held(), tmp_path / "a.npz")
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[300] ^= 1  # among the images
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"Cannot read arr_0 in .* \(Bad CRC-32 .*: it is cut"):
        sampled.together(open_samples(tmp_path / "a.npz"))


def test_a_header_that_claims_more(tmp_path):
    """A shape whose images would not fit into memory."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file, file.open("arr_0.npy", "w") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**4, 10**4, 3)}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(bytes(100))
    with pytest.raises(ValueError, match=r"100 bytes for shape .*: it is cut short or damaged"):
        open_samples(tmp_path / "a.npz")
