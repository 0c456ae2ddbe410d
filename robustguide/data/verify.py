"""Whether shards are those of their manifest."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import file_digest
from pathlib import Path

from robustguide.data.errors import DataError
from robustguide.data.manifest import Manifest, Shard, count_samples, text_of


def faults(
    folder: str, num_workers: int = 0, tell: Callable[[int], None] = lambda count: None
) -> Iterator[str]:
    """What is wrong with each shard that differs from the manifest, and files that it lacks.

    Args:
        folder: Of the shards.
        num_workers: Threads that read them.
        tell: Called with the number of samples of each shard that was read.

    Raises:
        DataError: If there is no manifest, or it is of latents.
    """
    root = Path(folder)
    manifest = Manifest.parse(root, text_of(root))
    if manifest.encoding is not None:
        raise DataError(f"{folder} holds latents; only shards of images are verified.")
    shards = [shard for split in manifest.shards.values() for shard in split]
    with ThreadPoolExecutor(max(1, num_workers)) as threads:
        for shard, fault in zip(shards, threads.map(fault_of, shards), strict=True):
            tell(shard.count)
            if fault is not None:
                yield f"{shard.path.name}: {fault}"
    known = {shard.path.name for shard in shards}
    for path in sorted(root.glob("*.tar")):
        if path.name not in known:
            yield f"{path.name}: is not in the manifest"


def fault_of(shard: Shard) -> str | None:
    """What is wrong with a shard; its checksum and size are looked at where they are known."""
    try:
        size = shard.path.stat().st_size
        if shard.size is not None and size != shard.size:
            return f"has {size} bytes; the manifest says {shard.size}"
        with shard.path.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        if shard.sha256 is not None and digest != shard.sha256:
            return f"has the checksum {digest}; the manifest says {shard.sha256}"
        count = count_samples(shard.path)
    except FileNotFoundError:
        return "is missing"
    except (DataError, OSError) as error:
        return f"cannot be read: {error.__cause__ or error}"
    if count != shard.count:
        return f"holds {count} samples; the manifest says {shard.count}"
    return None
