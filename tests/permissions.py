"""Folders that may not be written to, for the administrator also."""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def read_only_folder():
    """A folder that nobody may write to."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    try:
        yield folder
    finally:
        folder.chmod(0o755)
        folder.rmdir()


@contextmanager
def no_administrator():
    """Without the right to write everywhere."""
    user = os.geteuid()
    if not user:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
