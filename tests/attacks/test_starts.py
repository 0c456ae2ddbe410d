import torch

from robustguide.attacks.starts import Starts


def test_offsets_come_back_by_number():
    starts, like = Starts(), torch.zeros(3, 1, 2, 2)
    assert torch.equal(starts.of([4, 7, 9], like), like)
    offsets = torch.randn(3, 1, 2, 2)
    starts.keep([4, 7, 9], offsets)
    starts.keep([7], offsets[:1])
    want = offsets[[0, 2, 0]].half().float()
    assert torch.equal(starts.of([7, 9, 4], like), want)
    assert torch.equal(starts.of([8, 9], like[:2])[0], like[0])
    assert starts.of([], like[:0]).shape == (0, 1, 2, 2)
    assert starts.of([4], torch.zeros(1, 1, 3, 3)).sum() == 0  # images of another size


def test_a_batch_is_not_kept_alive():
    starts = Starts()
    starts.keep(range(8), torch.randn(8, 1, 2, 2))
    assert {each.untyped_storage().nbytes() for each in starts.offsets.values()} == {8}
