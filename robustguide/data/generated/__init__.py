"""Samples of any tool, read and written as a folder, an .npz file or shards."""

from robustguide.data.generated.archive import SampleArchive
from robustguide.data.generated.base import Bytes, First, Generated
from robustguide.data.generated.folder import SampleFolder
from robustguide.data.generated.opening import open_samples, write_samples
from robustguide.data.generated.real import Real, RealShards
from robustguide.data.generated.shards import SampleShards

__all__ = [
    "Bytes",
    "First",
    "Generated",
    "Real",
    "RealShards",
    "SampleArchive",
    "SampleFolder",
    "SampleShards",
    "open_samples",
    "write_samples",
]
