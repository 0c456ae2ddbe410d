import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustguide.checkpoints import export, load_classifier
from robustguide.checkpoints.assembly import give, is_complete, ties, weightless
from robustguide.checkpoints.load import filled


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.last = nn.Linear(3, 3)
        self.last.weight = self.first.weight
        self.gain = nn.Parameter(torch.ones(3))
        self.register_buffer("table", torch.linspace(0, 1, 3), persistent=False)

    def forward(self, x):
        return self.last(self.norm(self.first(x))) * self.gain * self.table


def test_parameters_have_no_memory_and_buffers_have_their_values():
    with weightless():
        module = Tied()
    assert all(p.is_meta for p in module.parameters())
    assert torch.equal(module.table, torch.tensor([0, 0.5, 1]))
    assert torch.equal(module.norm.running_var, torch.ones(3))
    assert not is_complete(module)
    assert all(not p.is_meta for p in Tied().parameters())  # the block is over


def test_the_random_numbers_of_a_run_stay():
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    with weightless():
        nn.Parameter(torch.rand(7))
    assert torch.equal(torch.rand(3), wanted)


def test_given_tensors_are_the_modules_own():
    """No copy, ties kept, and the same answer as the module that they came from."""
    source = Tied().eval()
    tensors = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    with weightless():
        module = Tied()
    give(module.eval(), tensors)
    assert is_complete(module)
    assert module.last.weight is module.first.weight
    assert ties(module) == [["first.weight", "last.weight"]]
    assert module.first.weight.data_ptr() == tensors["first.weight"].data_ptr()
    x = torch.randn(4, 3)
    assert torch.equal(module(x), source(x))


def test_half_precision_stays():
    """A float16 file is a float16 network: its makers' numbers are those of such a one."""
    tensors = {name: tensor.half() for name, tensor in nn.Linear(2, 2).state_dict().items()}
    linear = {"class_path": "mine.Linear", "init_args": {}}
    with pytest.raises(ValueError, match="was refused"):
        filled(linear, tensors)
    with weightless():
        module = nn.Linear(2, 2)
    give(module, tensors)
    assert module.weight.dtype == torch.float16


def test_a_loaded_network_may_be_trained(tmp_path):
    """Its parameters are a private map of the file: changing them leaves the file as it is."""
    described = {
        "class_path": "robustguide.classifiers.Timed",
        "init_args": {
            "net": {
                "class_path": "robustguide.nets.MLP",
                "init_args": {"shape": [1, 2, 2], "num_logits": 3, "width": 4},
            },
            "levels": {"class_path": "robustguide.noise.linear_levels", "init_args": {}},
            "num_classes": 3,
        },
    }
    from robustguide.checkpoints import build

    path = tmp_path / "classifier.safetensors"
    export(build(described), path, described, class_names="abc", shape=[1, 2, 2], weights="raw")
    before = path.read_bytes()
    classifier = load_classifier(str(path)).requires_grad_(True)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=1.0)
    x, sigma = torch.randn(2, 1, 2, 2), torch.ones(2)
    classifier(x, sigma).square().sum().backward()
    optimizer.step()
    assert path.read_bytes() == before
    fresh = load_classifier(str(path))
    changed = [
        not torch.equal(a, b)
        for a, b in zip(classifier.parameters(), fresh.parameters(), strict=True)
    ]
    assert any(changed)


def test_a_constructor_that_looks_at_values_gets_them(tmp_path):
    """`NoiseConditioned` and its like are built on the host; here one of torchvision's."""
    described = {
        "class_path": "torchvision.models.googlenet",
        "init_args": {"init_weights": False, "aux_logits": False, "num_classes": 3},
    }
    from robustguide.checkpoints import build

    tensors = build(described).state_dict()
    module = filled(described, tensors)
    assert all(torch.equal(module.state_dict()[name], tensors[name]) for name in tensors)
    save_file(tensors, tmp_path / "any.safetensors")
