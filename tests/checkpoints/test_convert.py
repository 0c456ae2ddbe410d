"""Published files, read by their cards: the numbers of the implementation that they came from."""

from dataclasses import replace

import pytest
import torch
from golden_files import FOLDER, load, tolerance
from safetensors import safe_open

from robustguide.__main__ import main
from robustguide.cards import cards
from robustguide.checkpoints import load_classifier, load_denoiser, read_metadata, sha256_of
from robustguide.checkpoints.convert import convert
from robustguide.checkpoints.keys import original
from robustguide.checkpoints.opening import open_tensors


def specification(class_path, **arguments):
    return {"class_path": f"robustguide.{class_path}", "init_args": arguments}


def edm(constructor):
    changes = dict(constructor)
    del changes["model_type"]
    changes["in_channels"] = changes["out_channels"] = changes.pop("img_channels")
    count, size = constructor["label_dim"], constructor["img_resolution"]
    net = specification("nets.DhariwalUNet", **changes)
    return specification(
        "denoisers.EDMDenoiser", net=net, num_classes=count, shape=[3, size, size], has_null=False
    )


def edm2(constructor):
    changes = {k: v for k, v in constructor.items() if k != "logvar_channels"}
    count, size = constructor["label_dim"], constructor["img_resolution"]
    net = specification("nets.EDM2UNet", **changes)
    return specification(
        "denoisers.EDM2Denoiser", net=net, num_classes=count, shape=[3, size, size],
        has_null=False, logvar_channels=constructor["logvar_channels"],
    )  # fmt: skip


def small_card(golden, like, make):
    """A card of a golden's network, after that of a published one of its family."""
    description, _ = load(golden)
    described = make(description["constructor"])
    shape = tuple(described["init_args"]["shape"])
    return replace(
        cards()[like], name=golden, file=f"{golden}.pkl", url=None, specification=described,
        shape=shape, parameters=description["n_params"], classes=None,
    )  # fmt: skip


@pytest.fixture
def known(monkeypatch):
    """Cards of the two snapshots, among the others."""
    small = {
        "edm_pickle": small_card("edm_pickle", "edm-imagenet-64x64-cond-adm", edm),
        "edm2_pickle": small_card("edm2_pickle", "edm2-img512-xs", edm2),
    }
    for name, card in small.items():
        monkeypatch.setitem(cards(), name, card)
    return small


def labels(tensors):
    return tensors["in.labels_onehot"].argmax(-1)


@pytest.mark.parametrize(
    ("golden", "key"), [("edm_pickle", "out.D"), ("edm2_pickle", "out.D_f16_module")]
)
def test_a_snapshot_gives_the_numbers_of_its_makers(known, golden, key):
    """As the file is: EDM2's is of float16, and so is the network that its makers run."""
    description, tensors = load(golden)
    denoiser = load_denoiser(str(FOLDER / f"{golden}.pkl"))
    assert denoiser.metadata.extra["card"] == golden
    denoised = denoiser(tensors["in.x"], tensors["in.sigma"], labels(tensors))
    torch.testing.assert_close(denoised, tensors[key], **tolerance(description, key))


@pytest.mark.parametrize("golden", ["edm_pickle", "edm2_pickle"])
def test_conversion_and_back_is_bit_equal(known, golden, tmp_path, capsys):
    source, target = FOLDER / f"{golden}.pkl", tmp_path / "new" / "converted.safetensors"
    main(["convert", golden, str(source), "--output", str(target)])
    assert f"card {golden}" in capsys.readouterr().out
    theirs = open_tensors(source, "ema").tensors
    with safe_open(target, framework="pt") as file:
        ours = {name: file.get_tensor(name) for name in file.keys()}
    back = original(known[golden], ours)
    assert sorted(back) == sorted(theirs)
    for name, tensor in theirs.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    _, recorded = load(golden)
    for key, tensor in recorded.items():
        if key.startswith("model."):
            assert torch.equal(back[key.removeprefix("model.")], tensor)


def test_the_converted_file_describes_itself(known, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTGUIDE_CHECKPOINTS", str(tmp_path))
    source = FOLDER / "edm_pickle.pkl"
    written = convert(known["edm_pickle"], source)
    assert written == tmp_path / "edm_pickle.safetensors"
    metadata = read_metadata(written)
    assert metadata.extra["file_sha256"] == sha256_of(source)
    assert metadata.extra["licence"] == "CC-BY-NC-SA-4.0"
    assert metadata.shape == (3, 8, 8)
    _, tensors = load("edm_pickle")
    inputs = tensors["in.x"], tensors["in.sigma"], labels(tensors)
    direct = load_denoiser(str(source))(*inputs)
    monkeypatch.delitem(cards(), "edm_pickle")  # the file needs no card any more
    assert torch.equal(load_denoiser(str(written))(*inputs), direct)
    monkeypatch.setitem(cards(), "edm_pickle", known["edm_pickle"])
    assert torch.equal(load_denoiser(card="edm_pickle")(*inputs), direct)


def test_a_file_of_another_network_is_refused(known, tmp_path):
    source = str(FOLDER / "edm_pickle.pkl")
    with pytest.raises(ValueError, match=r"is not what card 'edm2_pickle' describes"):
        convert(known["edm2_pickle"], source, tmp_path / "a.safetensors")
    with pytest.raises(
        ValueError, match=r"do not fit the card 'edm-imagenet-64x64-cond-adm'.*Name another"
    ):
        load_denoiser(source, card="edm-imagenet-64x64-cond-adm")
    with pytest.raises(ValueError, match="a classifier was asked for"):
        load_classifier(source)
    assert list(tmp_path.iterdir()) == []


def test_a_training_scripts_file_is_the_network(tmp_path, monkeypatch):
    """`model{step}.pt` of the robust classifiers: a bare state dict under the card's names."""
    from robustguide.checkpoints import build

    described = specification(
        "classifiers.Timed",
        net=specification("nets.MLP", shape=[1, 4, 4], num_logits=3, width=8),
        levels=specification("noise.linear_levels"),
        num_classes=3,
    )
    of = replace(
        cards()["kawar-cifar10-classifier"], name="mine", file="mine*.pt", shape=(1, 4, 4),
        specification=described, parameters=None, classes=None,
    )  # fmt: skip
    monkeypatch.setitem(cards(), "mine", of)
    classifier = build(described).eval()
    torch.save(classifier.net.state_dict(), tmp_path / "mine000010.pt")
    loaded = load_classifier(str(tmp_path / "mine000010.pt"))
    x, sigma = torch.randn(2, 1, 4, 4), torch.ones(2)
    assert torch.equal(loaded(x, sigma), classifier(x, sigma))
    assert loaded.metadata.conditioning == "t"
