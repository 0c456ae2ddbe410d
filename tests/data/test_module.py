"""The data module: classes in checkpoints, and refused settings."""

import pytest
import torch

from robustguide.data import CropAndFlip, Digits, Images


def test_digits_are_the_default():
    data = Images(batch_size=64)
    assert (data.num_classes, data.shape) == (10, (1, 8, 8))
    x_0, y, index = next(iter(data.train_dataloader()))
    assert x_0.shape == (64, 1, 8, 8) and x_0.dtype == torch.float32
    assert y.dtype == index.dtype == torch.int64
    assert len(data.train_dataloader()) == 1259 // 64
    assert len(data.val_dataloader()) == 3 and len(data.test_dataloader()) == 6


def test_classes_of_a_checkpoint_are_compared():
    data = Images()
    state = data.state_dict()
    assert state == {"num_classes": 10, "class_names": list("0123456789")}
    data.load_state_dict(state)
    with pytest.raises(ValueError, match=r"trained on 2 classes \(a, b\), the data has 10 \(0, 1"):
        data.load_state_dict({"num_classes": 2, "class_names": ["a", "b"]})


def test_augmentation_depends_on_seed_epoch_and_image_alone():
    def mirrored(seed, num_workers=0):
        data = Images(seed=seed, augment=CropAndFlip(1.0), num_workers=num_workers)
        loader, split, passes = data.train_dataloader(), data.split("train"), []
        for _ in range(2):
            batches = list(loader)
            x_0, _, index = (torch.cat(part) for part in zip(*batches, strict=True))
            plain = torch.stack([split[i][0] for i in index.tolist()])
            same = (x_0 == plain).flatten(1).all(1)
            flipped = (x_0 == plain.flip(-1)).flatten(1).all(1)
            assert (same | flipped).all()
            passes.append(dict(zip(index.tolist(), flipped.tolist(), strict=True)))
        return passes

    first, second = mirrored(0)
    assert 0.45 < sum(first.values()) / len(first) < 0.55
    both = first.keys() & second.keys()
    assert 0.4 < sum(first[i] != second[i] for i in both) / len(both) < 0.6
    assert mirrored(0, num_workers=2) == [first, second] != mirrored(1)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"eval_limit": 0}, {"seed": -1}])
def test_settings_are_refused(options):
    with pytest.raises(ValueError, match=r"\d"):
        Images(Digits(), **options)


def test_a_split_keeps_its_places_under_a_limit():
    batches = list(Images(eval_limit=7, eval_batch_size=4).test_dataloader())
    assert [index.tolist() for *_, index in batches] == [[0, 51, 102, 153], [205, 256, 307]]
