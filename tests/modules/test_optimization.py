"""Rates and freezing, and the fine-tuning of networks that others made."""

import pytest
import tiny
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from PIL import Image
from torch import nn

from robustguide import load_classifier
from robustguide.checkpoints import build
from robustguide.data import Images
from robustguide.interfaces import Classifier
from robustguide.modules import RobustClassification
from robustguide.modules.optimization import optimization
from robustguide.noise import LogNormal

# Lightning remarks on what is frozen on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode at the start")


class Staged(Classifier):
    """Two stages with batch statistics, and a head."""

    num_classes = 10

    def __init__(self):
        super().__init__()
        self.stage1 = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.5))
        self.stage2 = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16))
        self.head = nn.Linear(16, 10)

    def forward(self, x, sigma):
        return self.head(self.stage2(self.stage1(x.flatten(1)).relu()).relu())


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


def rates_of(network, made):
    names = {parameter: name for name, parameter in network.named_parameters()}
    return {names[p]: group["lr"] for group in made.param_groups for p in group["params"]}


def test_the_longest_prefix_decides():
    network = Staged()
    rates = {"stage": 0.1, "stage1": 0, "stage1.1": 0.5, "stage2.0.weight": 2}
    found = rates_of(network, optimization(network, sgd, None, rates))
    assert found == {
        "stage1.1.weight": 0.25,
        "stage1.1.bias": 0.25,
        "stage2.0.weight": 1.0,
        "stage2.0.bias": 0.05,
        "stage2.1.weight": 0.05,
        "stage2.1.bias": 0.05,
        "head.weight": 0.5,
        "head.bias": 0.5,
    }
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"stage1.0.weight", "stage1.0.bias"}
    resting = {name for name, module in network.named_modules() if not module.training}
    assert resting == {"stage1", "stage1.0", "stage1.2"}


def test_without_rates_there_is_one_group():
    made = optimization(Staged(), sgd, None)
    assert [len(group["params"]) for group in made.param_groups] == [10]


def test_a_schedule_counts_steps(tmp_path):
    """Linear to 0 over four steps: the rates of every group at the steps taken."""
    network, seen = Staged(), []

    def schedule(optimizer):
        return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=4)

    class Watching(RobustClassification):
        def on_before_optimizer_step(self, optimizer):
            seen.append([group["lr"] for group in optimizer.param_groups])

    module = Watching(network, LogNormal(), None, sgd, schedule, {"stage1": 0.1})
    trainer = tiny.trainer(tmp_path, max_steps=4)
    trainer.fit(module, datamodule=Images(batch_size=64, eval_limit=10))
    expected = [[0.05 * left, 0.5 * left] for left in (1.0, 0.75, 0.5, 0.25)]
    for found, wanted in zip(seen, expected, strict=True):
        assert found == pytest.approx(wanted)


def test_frozen_parts_keep_their_statistics_through_validations(tmp_path):
    network = Staged()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    module = RobustClassification(network, LogNormal(), None, sgd, rates={"stage1": 0})
    trainer = tiny.trainer(
        tmp_path, max_steps=6, val_check_interval=2, check_val_every_n_epoch=None
    )
    trainer.fit(module, datamodule=Images(batch_size=64, eval_limit=10))
    changed = {
        name
        for name, value in network.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {name for name in before if not name.startswith("stage1")}
    assert int(network.stage2[1].num_batches_tracked) == 6 and network.stage2[1].training


def test_a_loaded_network_is_thawed_before_processes_are_joined(tmp_path):
    """DDP looks at what needs a gradient when it wraps the module, before optimizers are made."""
    network = Staged().eval().requires_grad_(False)
    module = RobustClassification(network, LogNormal(), rates={"head": 0})
    seen = []

    def wrapped(self, trainer):
        seen.extend(name for name, p in network.named_parameters() if p.requires_grad)
        raise KeyError("enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SingleDeviceStrategy, "setup", wrapped)
        with pytest.raises(KeyError, match="enough"):
            tiny.trainer(tmp_path).fit(module, datamodule=Images(batch_size=64))
    assert seen == [name for name, _ in network.named_parameters() if not name.startswith("head")]


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"stem": 0.1}, r"No parameter starts with 'stem'; they are stage1\.0\.weight, "),
        ({"stage": 0, "head": 0}, r"freeze every parameter; leave some to train"),
        ({"": 0}, r"freeze every parameter"),
        ({"head": -1.0}, r"multiples of the learning rate, 0 or more, got \{'head': -1\.0\}"),
        ({"head": float("nan")}, r"multiples of the learning rate"),
    ],
)
def test_rates_that_cannot_be(rates, message):
    with pytest.raises(ValueError, match=message):
        optimization(Staged(), sgd, None, rates)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Noise in two classes of colour images."""
    root = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 8), ("test", 4)):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 255, (12, 12, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return tiny.spec("data.Folder", root=str(root), size=8)


def finetuning(classifier, **init_args):
    config = tiny.classification(classifier=classifier, levels=[0.5], **init_args)
    trainer = {"max_steps": 2, "val_check_interval": 2, "log_every_n_steps": 1}
    return tiny.merged(config, {"trainer": trainer | {"enable_checkpointing": False}})


def check_export(folder, cli):
    """The exported file alone makes the network that was trained."""
    found = load_classifier(str(folder / "classifier.safetensors"))
    trained = cli.model.classifier.eval()
    state = trained.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.state_dict().items())
    x = torch.randn(2, *cli.datamodule.shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.3, 2.0])
    torch.testing.assert_close(found(x, sigma), trained(x, sigma))
    return found


def test_a_network_of_torchvision(pictures, tmp_path):
    """Told the noise, with frozen first layers, on a folder of images."""
    net = {"class_path": "torchvision.models.resnet18", "init_args": {"num_classes": 2}}
    shelf = tiny.spec("classifiers.OffTheShelf", net=net, num_classes=2, size=16)
    classifier = tiny.spec(
        "classifiers.NoiseConditioned",
        classifier=shelf,
        levels=tiny.LEVELS,
        layers={"net.layer1": 64, "net.layer4": 512},
        width=8,
    )
    rates = {"classifier": 0.1, "classifier.net.conv1": 0, "classifier.net.bn1": 0}
    config = finetuning(classifier, rates=rates, attack=tiny.pgd())
    config["data"] = tiny.spec("data.Images", source=pictures, batch_size=4)
    cli = tiny.run(tmp_path / "run", "fit", config)
    found = check_export(tmp_path / "run", cli)
    assert found.metadata.class_names == ("cat", "dog") and found.metadata.shape == (3, 8, 8)
    assert found.metadata.conditioning == "t"
    net = cli.model.classifier.classifier.net
    assert (
        int(net.bn1.num_batches_tracked) == 0 and int(net.layer1[0].bn1.num_batches_tracked) == 2
    )
    groups = [group["lr"] for group in cli.trainer.optimizers[0].param_groups]
    assert sorted(groups) == pytest.approx([0.001, 0.01])


def test_a_network_of_timm(tmp_path):
    net = {
        "class_path": "timm.create_model",
        "init_args": {"model_name": "resnet10t", "pretrained": False},
        "dict_kwargs": {"num_classes": 10, "in_chans": 1},
    }
    classifier = tiny.spec(
        "classifiers.OffTheShelf", net=net, num_classes=10, mean=[0.5], std=[0.5], size=32
    )
    config = finetuning(classifier, rates={"net.conv1": 0, "net.bn1": 0})
    config = tiny.merged(config, {"data": tiny.spec("data.Images", batch_size=8, eval_limit=8)})
    cli = tiny.run(tmp_path / "run", "fit", config)
    assert check_export(tmp_path / "run", cli).metadata.conditioning == "none"


def test_a_fine_tuned_network_stands_alone(runs, tmp_path):
    """What it was made from may be deleted."""
    source = tmp_path / "source.safetensors"
    source.write_bytes((runs / "classifier/classifier.safetensors").read_bytes())
    config = finetuning(
        tiny.loaded("classifier", source), rates={"net.embed": 0, "net.enter": 0.1}
    )
    cli = tiny.run(tmp_path / "run", "fit", config)
    before = load_classifier(str(source)).state_dict()
    source.unlink()
    after = check_export(tmp_path / "run", cli).state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith("net.embed")}
    assert build(tiny.classifier()).state_dict().keys() == after.keys()
