"""Checkpoints of a trainer that are whole or not there."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the final name, onto the disk, and renames.

    Lightning's own goes through the system's temporary folder; where that is another file system,
    as on most clusters, the copy from there is cut if the process is killed. It also holds the
    file in memory, which this does not.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Saves a local file; what is no local path goes Lightning's way.

        Raises:
            OSError: If it cannot be written; an older file of the name is untouched.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        part = part_of(final)
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(final)
        except (OSError, RuntimeError) as error:
            # torch ends its file even after a fault of the system, and complains of that alone
            fault = error if isinstance(error, OSError) else error.__context__
            if not isinstance(fault, OSError):
                raise
            message = f"Cannot save a checkpoint ({fault.strerror})"
            raise OSError(fault.errno, message, str(final)) from error
        finally:
            part.unlink(missing_ok=True)


def part_of(final: Path) -> Path:
    """The temporary name, of which one process at a time writes.

    Lightning takes every name with `hpc_ckpt_` for a checkpoint to resume from.
    """
    return final.with_name(f".{final.name.replace('ckpt', 'checkpoint')}.part")


def remove_parts(folders: list[Path]) -> None:
    """Removes what processes that were killed have left half written."""
    for folder in folders:
        for part in folder.glob(".*.checkpoint.part"):
            part.unlink(missing_ok=True)
