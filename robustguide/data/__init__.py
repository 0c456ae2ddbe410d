"""Images, shards of images or latents, and seeds of samples, as Lightning data modules."""

from robustguide.data.crops import Augment, CropAndFlip
from robustguide.data.encode import LatentWriter, fingerprint
from robustguide.data.errors import DataError
from robustguide.data.folder import Folder
from robustguide.data.held_out import HeldOut
from robustguide.data.images import ImageSource, Samples, Split
from robustguide.data.latents import ENCODING, LatentShards
from robustguide.data.manifest import Encoding, Manifest, index_shards
from robustguide.data.module import Images
from robustguide.data.prepare import ImageWriter, write_shards
from robustguide.data.seeds import Balanced, Labels, Listed, Random, SeedData
from robustguide.data.shards import ShardImages
from robustguide.data.sources import Digits, FashionMNIST
from robustguide.data.torchvision_sets import Torchvision

__all__ = [
    "ENCODING",
    "Augment",
    "Balanced",
    "CropAndFlip",
    "DataError",
    "Digits",
    "Encoding",
    "FashionMNIST",
    "Folder",
    "HeldOut",
    "ImageSource",
    "ImageWriter",
    "Images",
    "Labels",
    "LatentShards",
    "LatentWriter",
    "Listed",
    "Manifest",
    "Random",
    "Samples",
    "SeedData",
    "ShardImages",
    "Split",
    "Torchvision",
    "fingerprint",
    "index_shards",
    "write_shards",
]
