import io
import json
import re

import numpy as np
import pytest
import sampled
import torch
from PIL import Image

from robustguide.data import DataError
from robustguide.data.generated import open_samples, write_samples
from robustguide.data.generated.base import png_pixels


def save(path, value=0, shape=(4, 5), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, np.uint8)).convert(mode).save(path)


def values(samples):
    """The first pixel of each image."""
    return sampled.together(samples).pixels[:, 0, 0, 0].tolist()


def test_files_are_in_natural_order(tmp_path):
    for value, name in enumerate(("a2", "a10", "a1", "b1")):
        save(tmp_path / f"{name}.png", value)
    (tmp_path / ".a3.png.1.part").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("of another tool")
    samples = open_samples(tmp_path)
    assert values(samples) == [2, 0, 1, 3]
    assert samples.shape == (1, 4, 5) and samples.made == {"kind": "folder"}
    found = sampled.together(samples)
    assert found.y is None and samples.class_names is None
    assert found.index.tolist() == found.seed.tolist() == [0, 1, 2, 3]


def test_names_that_are_numbers_are_seeds(tmp_path):
    for seed in (50010, 7, 123):
        save(tmp_path / f"{seed:06d}.png", seed % 256)
    found = sampled.together(open_samples(tmp_path))
    assert found.seed.tolist() == [7, 123, 50010] and found.index.tolist() == [0, 1, 2]
    save(tmp_path / "last.png")
    assert sampled.together(open_samples(tmp_path)).seed.tolist() == [0, 1, 2, 3]


def test_subfolders_are_classes(tmp_path):
    for value, (name, number) in enumerate((("n10", 0), ("n2", 1), ("n2", 0), ("n2", 10))):
        save(tmp_path / name / f"{number}.png", value)
    samples = open_samples(tmp_path)
    assert samples.class_names == ["n10", "n2"]
    assert values(samples) == [2, 1, 3, 0]
    assert sampled.together(samples).y.tolist() == [1, 1, 1, 0]
    save(tmp_path / "own.png")
    with pytest.raises(DataError, match="has images of its own and images in subfolders"):
        open_samples(tmp_path)


def test_blocks_of_a_thousand_seeds_are_no_classes(tmp_path):
    for seed in (3000, 17, 999, 1000):
        save(tmp_path / f"{seed - seed % 1000:06d}" / f"{seed:06d}.png", seed % 256)
    samples = open_samples(tmp_path)
    found = sampled.together(samples)
    assert samples.class_names is None and found.y is None
    assert found.seed.tolist() == [17, 999, 1000, 3000]


def test_a_run_is_opened_by_either_folder(tmp_path):
    write_samples(sampled.Held(), tmp_path / "run")
    save(tmp_path / "run/grid.png")  # a run has other figures
    for path in (tmp_path / "run", tmp_path / "run/images"):
        sampled.assert_same(open_samples(path), sampled.Held())


def test_runs_of_an_array_are_one_set(tmp_path):
    write_samples(sampled.Held(8), tmp_path / "all")
    lines = (tmp_path / "all/samples.jsonl").read_text().splitlines(keepends=True)
    for task, rows in (("10", slice(3)), ("2", slice(3, 8))):
        for line in lines[rows]:
            file = json.loads(line)["file"]
            new = tmp_path / "array" / task / file
            new.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "all" / file).rename(new)
        (tmp_path / "array" / task / "samples.jsonl").write_text("".join(lines[rows]))
    sampled.assert_same(open_samples(tmp_path / "array"), sampled.Held(8))


def test_classes_by_name_alone(tmp_path):
    lines = []
    for index, name in enumerate(("dog", "cat", "dog")):
        save(tmp_path / f"{index}.png", index)
        lines.append(json.dumps({"index": index, "file": f"{index}.png", "class": name}))
    (tmp_path / "samples.jsonl").write_text("\n".join(lines) + "\n")
    samples = open_samples(tmp_path)
    assert samples.class_names == ["cat", "dog"]
    found = sampled.together(samples)
    assert found.y.tolist() == [1, 0, 1] and found.seed.tolist() == [0, 1, 2]


def edit(line, **changes):
    told = {**json.loads(line), **changes}
    return json.dumps({key: value for key, value in told.items() if value is not None})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[:-1], "holds 1 images of which samples.jsonl tells nothing, such as"),
        (
            lambda lines: [*lines, edit(lines[0], index=99, file=None)],
            "tells of 8 images, of which 1 are not there, such as .*00000099.png",
        ),
        (lambda lines: [*lines[:-1], edit(lines[-1], index=3)], "two samples of number 3;"),
        (lambda lines: [*lines, edit(lines[0], index=99)], "00000003.png twice; give each image"),
        (lambda lines: ["half a li", *lines[1:]], "Line 1 of .* is no JSON"),
        (lambda lines: ["[1]", *lines[1:]], "Line 1 of .* expected whole numbers"),
        (lambda lines: [edit(lines[0], index=None), *lines[1:]], "Line 1 .* must be there"),
        (lambda lines: [edit(lines[0], y=-1), *lines[1:]], "Line 1 .* of 0 or more"),
        (lambda lines: [edit(lines[0], seed=1.5), *lines[1:]], "Line 1 .* whole numbers"),
        (lambda lines: [edit(lines[0], y=None), *lines[1:]], "has 6 labels for 7 samples"),
        (
            lambda lines: [*lines[:-1], edit(lines[-1], **{"class": "cow"})],
            "names class 0 'cat' and 'cow'; give each class one name",
        ),
        (
            lambda lines: [*lines[:-1], edit(lines[-1], method="plain")],
            'made in 2 ways: number 3 by .*"robust".* number 15 by .*"plain"',
        ),
        (lambda lines: [], "holds no samples; expected PNG files"),
    ],
)
def test_lines_that_do_not_fit_the_images(tmp_path, change, said):
    write_samples(sampled.Held(), tmp_path / "run")
    path = tmp_path / "run/samples.jsonl"
    path.write_text("".join(line + "\n" for line in change(path.read_text().splitlines())))
    with pytest.raises(DataError) as raised:
        open_samples(tmp_path / "run")
    assert re.search(said, str(raised.value).replace("\n", " ")), raised.value


def test_a_run_that_was_stopped(tmp_path):
    save(tmp_path / "images/00000004.png", 4)
    (tmp_path / "images/made_from.json").write_text("{}")
    with pytest.raises(DataError, match=r"did not come to its end. Give its command again"):
        open_samples(tmp_path)
    assert sampled.together(open_samples(tmp_path / "images")).seed.tolist() == [4]


@pytest.mark.parametrize("suffix", ["jpg", "webp", "bmp"])
def test_what_loses_something_is_refused(tmp_path, suffix):
    save(tmp_path / "a.png")
    save(tmp_path / f"b.{suffix}")
    with pytest.raises(DataError, match=rf"1 images that are no PNG, such as b\.{suffix}; only"):
        open_samples(tmp_path)


def test_images_of_two_sizes(tmp_path):
    for place in range(3):
        save(tmp_path / f"{place}.png", shape=(4, 5 + place // 2))
    samples = open_samples(tmp_path)
    with pytest.raises(DataError, match=r"2\.png is of shape \[1, 4, 6\], .*0\.png of \[1, 4"):
        list(samples.batches(2))
    with pytest.raises(ValueError, match="batch size is 0; expected 1 or more"):
        next(samples.batches(0))


def test_no_images(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="holds no samples; expected PNG files"):
        open_samples(tmp_path / "a")


def png(image, **options):
    file = io.BytesIO()
    image.save(file, "png", **options)
    return file.getvalue()


def test_a_png_is_its_bytes():
    colour = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    image = Image.fromarray(colour)
    opaque = image.convert("RGBA")
    few = Image.fromarray(colour // 8 * 8).quantize(256)
    for content, expected in (
        (png(image), colour),
        (png(opaque), colour),
        (png(few), np.asarray(few.convert("RGB"))),
        (png(Image.fromarray(colour[..., 0])), colour[..., :1]),
        (png(Image.fromarray(colour[..., 0] > 30)), np.uint8(255) * (colour[..., :1] > 30)),
    ):
        assert np.array_equal(png_pixels(content, "a"), expected.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda image: png(image)[:45], "Cannot read the image a: "),
        (lambda image: b"", "Cannot read the image a: "),
        (lambda image: b"\xff\xd8\xff\xe0" + bytes(40), "a is a JPEG file; only PNG is read"),
        (lambda image: b"GIF89a" + bytes(40), "a is no PNG file; only PNG is read"),
        (
            lambda image: png(Image.fromarray(np.zeros((4, 5), np.uint16))),
            "a has 16 bits a channel; save it again with 8 bits",
        ),
        (lambda image: png(image, transparency=(0, 0, 0)), "a is transparent; save it again"),
    ],
)
def test_a_png_that_cannot_be_used(content, said):
    image = Image.fromarray(np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(DataError, match=said):
        png_pixels(content(image), "a")


def test_an_unreadable_image_is_named(tmp_path):
    write_samples(sampled.Held(), tmp_path / "run")
    file = tmp_path / "run/images/00000007.png"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match=r"Cannot read the image .*00000007\.png"):
        sampled.together(open_samples(tmp_path / "run"))
    assert torch.equal(open_samples(tmp_path / "run").seeds(), sampled.Held().seed)
