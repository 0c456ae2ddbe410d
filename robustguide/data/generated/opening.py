"""Which reader and which writer samples need."""

import os
from collections.abc import Callable
from pathlib import Path

from robustguide.data.errors import DataError
from robustguide.data.generated.archive import SampleArchive, write_archive
from robustguide.data.generated.base import Generated
from robustguide.data.generated.folder import IMAGES, SampleFolder, write_folder
from robustguide.data.generated.lines import NAME
from robustguide.data.generated.shards import PER_SHARD, SampleShards, write_shards

KINDS = ("folder", "npz", "shards")
RESULTS = "results.json"  # of a run
EXPECTED = (
    "expected a folder of PNG files (that of a run, with samples.jsonl), an .npz file with arr_0, "
    "or WebDataset shards (a .tar file, a folder of them, a pattern)"
)


def open_samples(path: str | os.PathLike[str]) -> Generated:
    """Samples of any tool, in any of three forms.

    Args:
        path: A folder, be it of a run, an .npz file, a tar file, or a pattern of tar files.

    Raises:
        FileNotFoundError: There is nothing.
        ValueError: It is something else, or damaged.
    """
    place = Path(path)
    if place.is_dir():
        place = samples_in(place)
    if place.is_dir():
        has_tars = any(place.glob("*.tar"))
        return SampleShards(place) if has_tars else SampleFolder(place)
    if place.suffix == ".tar" and (place.is_file() or set(str(path)) & set("*?[{")):
        return SampleShards(path)
    if not place.exists():
        raise FileNotFoundError(f"{path} does not exist (from {Path.cwd()}); {EXPECTED}.")
    if place.suffix == ".npz":
        return SampleArchive(place)
    raise DataError(f"{path} holds no samples; {EXPECTED}.")


def samples_in(folder: Path) -> Path:
    """Where the samples of a folder are: in itself, or at the one place in a run's that has some.

    Raises:
        DataError: For the folder of a run that has none, or several.
    """
    if not (folder / RESULTS).is_file() or has_samples(folder):
        return folder
    below = sorted(each for each in folder.iterdir() if each.is_dir() and has_samples(each))
    below += sorted(folder.glob("*.npz"))
    if len(below) == 1:
        return below[0]
    if below:
        raise DataError(
            f"{folder} is the folder of a run that holds {len(below)} sets of samples; give one, "
            f"such as {below[0]}."
        )
    raise DataError(
        f"{folder} is the folder of a run, and holds no samples: its PNG files are figures, and "
        "`robustguide test` measures images and keeps a few of them. Give the same "
        "configuration to `robustguide predict`, with --trainer.callbacks="
        "robustguide.callbacks.SampleWriter and a --trainer.default_root_dir of its own, and "
        "score that folder."
    )


def has_samples(folder: Path) -> bool:
    """Whether a folder holds images that were listed, a folder of them, or shards."""
    is_listed = (folder / NAME).is_file() or (folder / IMAGES).is_dir()
    return is_listed or any(folder.glob("*.tar"))


def kind_of(path: Path, kind: str | None = None) -> str:
    """The form that a new place of samples has; by its name, unless it is given.

    Raises:
        ValueError: If the name tells none, or another one.
    """
    by_name = {".npz": "npz", ".tar": "shards", "": "folder"}.get(path.suffix)
    if kind is None:
        if by_name is None:
            raise ValueError(
                f"{path} tells no form of samples; end it in .npz or .tar, name a folder without "
                f"a suffix, or give --kind, one of {', '.join(KINDS)}."
            )
        return by_name
    if kind not in KINDS:
        raise ValueError(f"There is no kind {kind!r} of samples; there are {', '.join(KINDS)}.")
    if (by_name in ("npz", "shards") and kind != by_name) or kind == "npz" != by_name:
        raise ValueError(
            f"{path} is no name for samples of kind {kind}; npz ends in .npz, a folder in neither "
            ".npz nor .tar, shards in .tar for one file and without for several."
        )
    return kind


def write_samples(
    samples: Generated,
    path: str | os.PathLike[str],
    kind: str | None = None,
    tell: Callable[[int], None] = lambda count: None,
    per_shard: int = PER_SHARD,
) -> None:
    """Writes samples in another form; the place has its name only when all is there.

    Args:
        samples: The images.
        path: A new folder or file.
        kind: "folder", "npz" or "shards"; null by the path's suffix.
        tell: Called with the number of images of each batch.
        per_shard: Samples in a tar file, where there are several.

    Raises:
        FileExistsError: Something is there.
        ValueError: The path does not fit the kind, or a sample cannot be used.
    """
    place = Path(path)
    form = kind_of(place, kind)
    if place.exists():
        raise FileExistsError(f"{path} is there already; name a new one, or remove it.")
    if form == "npz":
        write_archive(samples, place, tell)
    elif form == "shards":
        write_shards(samples, place, tell, per_shard)
    else:
        write_folder(samples, place, tell)
