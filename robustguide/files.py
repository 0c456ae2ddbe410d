"""Files that are whole or not there, and folders that one run at a time writes into."""

import errno
import fcntl
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCK = "lock"
PART = "part.json"  # in the folder of a part of a generation, where the part is whole


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary name in the same folder; what was written there then takes the final name.

    Makes the folder if need be. When writing fails, nothing stays under either name, and an older
    file of the final name is untouched.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    part = final.with_name(f".{final.name}.{os.getpid()}.part")
    try:
        yield part
        open_to_others(part)
        os.replace(part, final)
    finally:
        part.unlink(missing_ok=True)


def open_to_others(path: Path) -> None:
    """Gives a file that only its owner may read the permissions that the umask gives any new one.

    safetensors writes its files for the owner alone; a group that shares a folder could not read
    the networks of one another.
    """
    if not path.is_file() or path.stat().st_mode & 0o077:
        return
    usual = path.with_name(f"{path.name}.usual")
    try:
        usual.touch()
        path.chmod(usual.stat().st_mode & 0o777)
    finally:
        usual.unlink(missing_ok=True)


@contextmanager
def alone(
    folder: str | os.PathLike[str],
    repair: str = "give this run a trainer.default_root_dir of its own",
) -> Iterator[None]:
    """Keeps other runs out of a folder, until this process ends in whatever way.

    The system holds the lock for the process, so none is left behind by one that was killed; data
    workers that outlive it do not have it. The file `lock` stays, and tells who had it last. On a
    network file system this keeps out other nodes if that has POSIX locks (NFS with its lock
    service, Lustre with `-o flock`, GPFS); where it has none, a warning says so. If a whole node
    is lost its lock may stay for a while: a job that SLURM has requeued does not wait for its own
    former start, which SLURM has ended before.

    Args:
        folder: Made if need be.
        repair: What the error advises beside waiting.

    Raises:
        ValueError: When another run is in the folder.
        OSError: If nothing can be written there.
    """
    path = Path(folder) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    # One descriptor only: closing any other of this file would give the lock away.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    mine = owner(os.environ)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            theirs = noted(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                reason = f"The file system of {folder} has no locks ({error.strerror})"
                warnings.warn(f"{reason}; nothing keeps a second run out of it.", stacklevel=3)
            elif not comes_after(mine, theirs):
                raise ValueError(
                    f"{folder} is in use by {described(theirs)}. Wait for its end or stop it, or "
                    f"{repair}."
                ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(mine).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def owner(environment: Mapping[str, str]) -> dict[str, Any]:
    """Who this process is."""
    job = environment.get("SLURM_ARRAY_JOB_ID") or environment.get("SLURM_JOB_ID")
    task = environment.get("SLURM_ARRAY_TASK_ID")
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "job": f"{job}_{task}" if job and task else job,
        "starts": int(environment.get("SLURM_RESTART_COUNT") or 0),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def noted(descriptor: int) -> dict[str, Any]:
    """Who has a lock; nothing, where that is not written yet."""
    try:
        facts = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def comes_after(mine: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether the owner is a former start of the same job, which SLURM has ended."""
    is_same = mine["job"] is not None and mine["job"] == theirs.get("job")
    return is_same and mine["starts"] > theirs.get("starts", 0)


def described(facts: dict[str, Any]) -> str:
    """An owner in words."""
    if not facts:
        return "another run"
    job = f" (SLURM job {facts['job']})" if facts.get("job") else ""
    return f"process {facts['process']} on {facts['host']}{job} since {facts['since']}"
