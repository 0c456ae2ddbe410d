"""`fit` reads the validation split, all of it and nothing else."""

from itertools import chain

import pytest
import torch

from robustguide.data import CropAndFlip, Digits, HeldOut, Images, batches, held_out, loaders

DIGITS = Digits()


class Guarded(Digits):
    """Opens the validation split alone."""

    def open(self, name):
        if name != "validation":
            raise AssertionError(f"the {name} split was opened")
        return super().open(name)


def indices(loader):
    return [index.tolist() for _, _, index in loader]


def test_each_validation_image_once_and_in_order():
    data, split = HeldOut(batch_size=50), Digits().split("validation")
    found = list(data.train_dataloader())
    assert [len(y) for _, y, _ in found] == [50, 50, 50, len(split) - 150]
    images, y, index = (torch.cat(parts) for parts in zip(*found, strict=True))
    assert index.tolist() == list(range(len(split)))
    for row in (0, 77, len(split) - 1):
        x_0, label, _ = split[row]
        assert torch.equal(images[row], x_0) and y[row] == label
    again = torch.cat([index for _, _, index in data.train_dataloader()])
    assert torch.equal(again, index)  # every pass is the same


def test_nothing_is_validated_and_tests_are_those_of_images():
    data = HeldOut(batch_size=100)
    assert data.val_dataloader() == []
    assert indices(data.test_dataloader()) == indices(Images(batch_size=100).test_dataloader())


def test_no_other_split_is_opened():
    data = HeldOut(Guarded(), batch_size=64)
    assert sum(map(len, indices(data.train_dataloader()))) == len(data.split("validation"))
    with pytest.raises(AssertionError, match="the test split"):
        data.test_dataloader()


def test_a_limit_is_spread_as_in_evaluation():
    held = indices(HeldOut(eval_limit=20, eval_batch_size=8).train_dataloader())
    assert held == indices(Images(eval_limit=20, eval_batch_size=8).val_dataloader())
    assert sum(map(len, held)) == 20


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("limit", [4, 5, 11, 12, 21])
def test_processes_share_the_images_in_as_many_batches(world, batch_size, limit, monkeypatch):
    """Lightning's processes meet at every batch of training."""
    data, shares = HeldOut(DIGITS, batch_size=batch_size, eval_limit=limit), []
    for rank in range(world):
        for module in (held_out, loaders):
            monkeypatch.setattr(module, "place", lambda trainer, rank=rank: (rank, world))
        shares.append(data.train_dataloader().batches)
    assert len({len(share) for share in shares}) == 1
    seen = sorted(chain.from_iterable(chain.from_iterable(shares)))
    assert seen == batches.spread(len(DIGITS.split("validation")), limit)
    sizes = {len(batch) for share in shares for batch in share}
    assert min(sizes) >= 1 and max(sizes) <= max(batch_size, 2)


def test_nothing_is_changed_at_random():
    with pytest.raises(ValueError, match="augment is CropAndFlip; set"):
        HeldOut(augment=CropAndFlip())
