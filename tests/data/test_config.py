"""Configuration files name sources, crops and label rules by class."""

import yaml
from jsonargparse import ArgumentParser
from lightning import LightningDataModule

from robustguide.data import CropAndFlip, Digits, Folder, Images, SeedData

IMAGES = """
data:
  class_path: robustguide.data.Images
  init_args:
    source: {class_path: robustguide.data.Folder, init_args: {root: pictures, size: 64}}
    augment: {class_path: robustguide.data.CropAndFlip, init_args: {min_fraction: 0.9}}
"""
SEEDS = """
data:
  class_path: robustguide.data.SeedData
  init_args:
    count: 4
    num_classes: 10
    labels: {class_path: robustguide.data.Listed, init_args: {labels: [3, 1]}}
    reference: {class_path: robustguide.data.Digits, init_args: {fold: [0, 3]}}
"""


def build(text, *arguments):
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(LightningDataModule, "data")
    plain = yaml.safe_dump(yaml.safe_load(text))
    return parser.instantiate(parser.parse_args([f"--config={plain}", *arguments])).data


def test_images():
    data = build(IMAGES, "--data.batch_size=7", "--data.source.size=32")
    assert isinstance(data, Images) and isinstance(data.source, Folder)
    assert data.shape == (3, 32, 32) and data.batch_size == data.eval_batch_size == 7
    assert isinstance(data.augment, CropAndFlip) and data.augment.min_fraction == 0.9
    assert isinstance(build("{}", "--data=robustguide.data.Images").source, Digits)


def test_seeds():
    data = build(SEEDS)
    assert isinstance(data, SeedData) and data.y.tolist() == [3, 1, 3, 1]
    assert 418 <= len(data.reference) <= 421
    assert build(SEEDS, "--data.labels=Balanced").y.tolist() == [0, 1, 2, 3]
