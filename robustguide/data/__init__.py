"""Images, shards of images and seeds of samples, as Lightning data modules."""

from robustguide.data.crops import Augment, CropAndFlip
from robustguide.data.errors import DataError
from robustguide.data.folder import Folder
from robustguide.data.images import ImageSource, Split
from robustguide.data.manifest import Manifest, index_shards, write_shards
from robustguide.data.module import Images
from robustguide.data.seeds import Balanced, Labels, Listed, Random, SeedData
from robustguide.data.shards import ShardImages
from robustguide.data.sources import Digits, FashionMNIST
from robustguide.data.torchvision_sets import Torchvision

__all__ = [
    "Augment",
    "Balanced",
    "CropAndFlip",
    "DataError",
    "Digits",
    "FashionMNIST",
    "Folder",
    "ImageSource",
    "Images",
    "Labels",
    "Listed",
    "Manifest",
    "Random",
    "SeedData",
    "ShardImages",
    "Split",
    "Torchvision",
    "index_shards",
    "write_shards",
]
