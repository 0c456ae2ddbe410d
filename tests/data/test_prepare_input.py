"""Preparation with bad input: one clear error each, and nothing half written."""

import resource

import photographs
import pytest
from permissions import no_administrator, read_only_folder
from photographs import write

from robustguide.data import DataError, Digits, write_shards
from robustguide.files import LOCK


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photographs.thirty(tmp_path_factory.mktemp("photos"))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"per_shard": 0}, "per_shard is 0; expected 1 or more"),
        ({"limit": 1.5}, "a share from 0 to 1"),
        ({"num_workers": -1}, "num_workers is -1"),
    ],
)
def test_impossible_numbers_are_refused(photos, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write(photos, tmp_path / "shards", **options)
    assert not list(tmp_path.iterdir())


def test_a_file_in_place_of_the_folder(photos, tmp_path):
    (tmp_path / "file").write_text("text")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"Cannot write \(.*\); choose another folder.*file"):
            write(photos, place)
    assert photographs.contents(tmp_path) == {"file": b"text"}


def test_nothing_is_made_of_a_bad_source(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no subfolder a class"):
        write(tmp_path / "empty", tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


@pytest.fixture
def small_disk():
    """No file may have more than 9,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, before[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_full_disk_leaves_no_half_file(photos, tmp_path, small_disk, num_workers):
    with pytest.raises(OSError, match=r"Cannot write \(File too large\); free space.*0.tar"):
        write(photos, tmp_path / "shards", num_workers=num_workers)
    small_disk()
    names = {path.name for path in (tmp_path / "shards").rglob("*") if path.is_file()}
    assert names == {LOCK, "settings.json"}
    write(photos, tmp_path / "shards")
    write(photos, tmp_path / "unbroken")
    assert photographs.contents(tmp_path / "shards") == photographs.contents(tmp_path / "unbroken")


def test_a_read_only_folder_is_named():
    source = Digits(fold=(0, 40))
    assert len(source.split("train")) == 32
    with read_only_folder() as folder:
        for place in (folder, folder / "shards"):
            with (
                no_administrator(),
                pytest.raises(PermissionError, match=f"Cannot write .Permission denied.*{place}"),
            ):
                write_shards(source, str(place))
        assert not list(folder.iterdir())
