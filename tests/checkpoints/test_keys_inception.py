"""The Inception network, from a file in the published layout."""

import torch

from robustguide.checkpoints import load_classifier
from robustguide.checkpoints.keys_inception import to_official, to_ours
from robustguide.interfaces import from_pixels
from robustguide.metrics.features import ClassifierFeatures
from robustguide.nets import FIDInception


def test_files_with_and_without_counts_of_batches():
    with torch.device("meta"):
        state = FIDInception().state_dict()
    bare = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    assert len(bare) == 94 * 5 + 2
    for published in (state, bare):
        ours = to_ours(published)
        assert set(to_official(ours)) == set(state)
        assert all(ours[f"net.{name}"] is tensor for name, tensor in published.items())
    assert to_ours(bare, prefix="")["Conv2d_1a_3x3.bn.num_batches_tracked"].item() == 0


@torch.no_grad()
def test_the_published_file_gives_features_of_the_graphs_range(tmp_path):
    """Found by its name; the features are the input of the layer that computes the logits."""
    torch.manual_seed(0)
    net = FIDInception().eval()
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(net.state_dict(), path)
    classifier = load_classifier(str(path))
    assert classifier.metadata.extra["card"] == "inception-fid"
    pixels = torch.randint(256, (2, 3, 299, 299), dtype=torch.uint8)
    want = net.features((pixels.float() - 128) / 128)
    got = ClassifierFeatures(classifier, "inception")(pixels)["features"]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert classifier(from_pixels(pixels), torch.zeros(2)).shape == (2, 1008)
    assert not classifier.reads((3, 256, 256))
