"""Folders that are written to, and the cluster that jobs are sent to."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from robustguide.machine.finding import Finding

GIGABYTE = 1e9


def folders(runs: str) -> Iterator[Finding]:
    """Where runs and caches are written."""
    yield writable("runs", Path(runs))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    finding = writable("cache", cache)
    repair = finding.repair and f"{finding.repair}, or set XDG_CACHE_HOME"
    yield Finding(finding.topic, finding.name, finding.value, repair, is_needed=False)


def writable(name: str, folder: Path) -> Finding:
    """Writes a file there and removes it, or in the folder above that exists."""
    there = next(
        place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()
    )
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"robustguide")
        free = shutil.disk_usage(there).free / GIGABYTE
    except OSError as error:
        return Finding(
            "folders", name, f"{folder}: {error}", f"make {there} a folder that can be written to"
        )
    new = "" if there == folder.absolute() else ", will be made"
    repair = "" if free >= 1 else f"free some space on the disk of {there}"
    return Finding("folders", name, f"{folder}, {free:.0f} GB free{new}", repair)


def slurm() -> Iterator[Finding]:
    """Whether jobs can be sent from here."""
    if shutil.which("scontrol") is None:
        yield Finding("SLURM", "scontrol", "not installed (for clusters only)")
        return
    try:
        answer = subprocess.run(
            ["scontrol", "ping"], capture_output=True, text=True, timeout=10, check=False
        )
        text = (answer.stdout or answer.stderr).strip().splitlines()[-1]
        is_up = answer.returncode == 0 and " is UP" in answer.stdout
    except (OSError, subprocess.TimeoutExpired, IndexError) as error:
        text, is_up = f"no answer: {error}", False
    repair = "" if is_up else "set SLURM_CONF to the cluster's slurm.conf, or ask who runs it"
    yield Finding("SLURM", "scontrol", text, repair, is_needed=False)
    if "SLURM_JOB_ID" in os.environ:
        yield Finding("SLURM", "this job", os.environ["SLURM_JOB_ID"])
