"""ReLUs that become Softplus: every way to call one, and every way to hide one."""

import copy
import math
import pickle
import threading

import pytest
import timm
import torch
from checkpoint_examples import spec
from golden_files import load, tolerance
from tiny_resnet import TinyResNet, elucd_resnet
from torch import fx, nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock

from robustguide.checkpoints import build, export, load_classifier
from robustguide.classifiers import OffTheShelf, Resized, Smooth, Softening, Timed
from robustguide.nets import CifarResNet
from robustguide.noise import linear_levels


class Net(nn.Module):
    """Logits are an activation of the pixels; `act` may be a module or a function."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, x):
        return self.act(x.flatten(1) * 1.0)


def raw(net, num_classes=4, **arguments):
    """The network sees [-1, 1] as it is."""
    return OffTheShelf(net, num_classes, [0.5], [0.5], **arguments)


def call(classifier, x):
    return classifier(x, x.new_zeros(len(x)))


def pixels(count=5, low=-3.0, high=9.0):
    """Numbers on both sides of 0 and of 6, those themselves among them."""
    x = torch.linspace(low, high, 4 * count, dtype=torch.float64)
    x[:2] = torch.tensor([0.0, 6.0])
    return x.reshape(count, 1, 2, 2)


def exact(x, beta):
    return torch.log1p(torch.exp(beta * x)) / beta


RELUS = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, True),
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "method": lambda x: x.relu(),
    "method in place": lambda x: x.relu_(),
    "aten": lambda x: torch.ops.aten.relu.default(x),
    "nn.Threshold": nn.Threshold(0, 0),
    "F.threshold": lambda x: F.threshold(x, threshold=0, value=0, inplace=True),
}
CUT = {
    "module": nn.ReLU6(),
    "module in place": nn.ReLU6(inplace=True),
    "F.relu6": F.relu6,
    "nn.Hardtanh": nn.Hardtanh(0, 6),
    "F.hardtanh_": lambda x: F.hardtanh_(x, 0.0, 6.0),
}


@pytest.mark.parametrize("act", RELUS.values(), ids=RELUS)
@pytest.mark.parametrize("beta", [0.7, 2])
def test_every_call_of_a_relu(act, beta):
    """Value and gradient in closed form, below the 20 / beta where torch takes the identity."""
    x = pixels().requires_grad_()
    logits = call(Smooth(raw(Net(act)), beta), x)
    assert_close(logits, exact(x.flatten(1), beta), rtol=0, atol=1e-10)
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert_close(gradient, torch.sigmoid(beta * x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("act", CUT.values(), ids=CUT)
def test_every_call_of_a_relu_that_is_cut_off(act):
    x, beta = pixels().requires_grad_(), 2.0
    logits = call(Smooth(raw(Net(act)), beta), x)
    rows = x.flatten(1)
    assert_close(logits, exact(rows, beta) - exact(rows - 6, beta), rtol=0, atol=1e-10)
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    want = torch.sigmoid(beta * x) - torch.sigmoid(beta * (x - 6))
    assert_close(gradient, want, rtol=0, atol=1e-10)


def test_replay_of_elucd():
    """Logits and gradients of the published code; .inf leaves the ReLUs."""
    description, tensors = load("elucd_resnet")
    for beta in ("inf", "5", "3"):
        classifier = Smooth(raw(elucd_resnet(), 7), float(beta))
        x = tensors["in.x"].clone().requires_grad_()
        logits = call(classifier, x)
        chosen = logits.log_softmax(-1).gather(1, tensors["in.y"][:, None])
        (gradient,) = torch.autograd.grad(chosen.sum(), x)
        for name, value in {"logits": logits, "grad_log_py_x": gradient}.items():
            key = f"out.beta{beta}.{name}"
            assert_close(value, tensors[key], **tolerance(description, key))
    with Softening(3.0) as softening:
        elucd_resnet()(tensors["in.x"])
    assert softening.count == 1 + 3 * 4  # the stem and three in each of four bottlenecks


NETWORKS = {
    "bottlenecks": lambda: TinyResNet(),
    "basic blocks": lambda: TinyResNet((2, 1, 1, 1), block=BasicBlock),
    "functions": lambda: get_model("googlenet", init_weights=False, aux_logits=False),
    "ReLU6": lambda: get_model("mobilenet_v2"),
    "timm": lambda: timm.create_model("resnet10t"),
    "ours": lambda: CifarResNet(7, (1, 1, 1, 1), bottleneck=False, width=8),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_networks_of_libraries(make, monkeypatch):
    """As with the functions of torch themselves exchanged."""
    torch.manual_seed(0)
    net = make().eval().double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64).requires_grad_()
    before = net(x)
    logits = call(Smooth(raw(net), 4), x)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
    with monkeypatch.context() as patch:
        patch.setattr(F, "relu", lambda x, inplace=False: F.softplus(x, 4))
        patch.setattr(
            F, "hardtanh", lambda x, low, high, inplace: F.softplus(x, 4) - F.softplus(x - high, 4)
        )
        want = net(x)
        (wanted,) = torch.autograd.grad(want[:, 0].sum(), x)
    assert_close(logits, want, rtol=1e-10, atol=1e-10)
    assert_close(gradient, wanted, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(logits, before, rtol=1e-3)
    assert torch.equal(net(x), before)  # the network itself is as it was


def test_a_transformer_does_not_take_its_fused_way():
    """Without gradients, in evaluation mode, torch computes a whole layer as one operation."""

    def layer(activation):
        torch.manual_seed(0)
        return nn.TransformerEncoderLayer(4, 1, 8, 0.0, activation, batch_first=True).eval()

    x = torch.randn(3, 1, 2, 4)
    with torch.no_grad():
        smooth = call(Smooth(raw(Folded(layer("relu"))), 2.0), x)
        want = layer(lambda h: F.softplus(h, 2.0))(x.flatten(1, 2)).flatten(1)
        assert_close(smooth, want)
        assert not torch.allclose(layer("relu")(x.flatten(1, 2)).flatten(1), want)


class Folded(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.flatten(1, 2)).flatten(1)


def test_a_call_in_place_writes_where_the_relu_would():
    """An earlier name of the same tensor sees it too, as in blocks that activate first."""

    def block(x):
        shortcut = 2 * x
        hidden = F.relu(shortcut, inplace=True)
        return shortcut + 3 * hidden

    x = pixels(high=6.0).requires_grad_()
    logits = call(Smooth(raw(Net(block)), 1.5), x)
    assert_close(logits, 4 * exact(2 * x.flatten(1), 1.5), rtol=0, atol=1e-10)
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert_close(gradient, 8 * torch.sigmoid(3 * x), rtol=0, atol=1e-10)


def test_one_module_in_several_places():
    act = nn.ReLU(inplace=True)
    net = nn.Sequential(nn.Flatten(), act, nn.Sequential(act), act)
    x = pixels()
    want = exact(exact(exact(x.flatten(1), 1.0), 1.0), 1.0)
    assert_close(call(Smooth(raw(net), 1.0), x), want, rtol=0, atol=1e-8)  # 20 < some x


def test_beta_of_infinity_is_the_relu():
    x, plain = pixels(), raw(Net(F.relu))
    assert torch.equal(call(Smooth(plain, math.inf), x), call(plain, x))


def test_the_error_of_softplus_is_bounded_by_log_2_over_beta():
    x = pixels(50)
    for beta in (3, 5, 8, 1000):
        error = call(Smooth(raw(Net(F.relu)), beta), x) - x.flatten(1).relu()
        assert error.max() == pytest.approx(math.log(2) / beta, rel=1e-9)  # at 0
        assert error.min() >= -1e-12


@pytest.mark.parametrize(
    "act",
    [
        nn.LeakyReLU(0.1),
        nn.RReLU().eval(),
        lambda x: x.clamp(0, 1),
        lambda x: x.clamp(min=0),
        lambda x: torch.clip(x, 0),
        lambda x: F.hardtanh(x),
        lambda x: F.threshold(x, 0.1, 0),
        lambda x: x.long().relu(),
    ],
)
def test_what_is_no_relu_stays(act):
    x = pixels()
    net = Net(lambda h: F.relu(h) + act(h))
    assert_close(call(Smooth(raw(net), 1.0), x), exact(x.flatten(1), 1.0) + act(x.flatten(1)))


def test_clamps_are_for_the_user_to_name():
    x = pixels()
    for act in (lambda h: h.clamp(min=0), lambda h: h.clamp_min_(0), lambda h: torch.clip(h, 0)):
        with pytest.raises(ValueError, match=r"called no ReLU; it clamped at 0 1 times.*clamps"):
            call(Smooth(raw(Net(act)), 1.0), x)
        smooth = call(Smooth(raw(Net(act)), 1.0, clamps=True), x)
        assert_close(smooth, exact(x.flatten(1), 1.0), rtol=0, atol=1e-10)
    both = Smooth(raw(Net(lambda h: F.relu(h).clamp(0, 1)), clamp=True), 1.0, clamps=True)
    seen = (2 * ((x + 1) / 2).clamp(0, 1) - 1).flatten(1)  # what is clamped from both sides stays
    assert_close(call(both, x), exact(seen, 1.0).clamp(0, 1), rtol=0, atol=1e-10)


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (ctx.saved_tensors[0] > 0)


class Recent(torch.autograd.Function):
    """Its name and its code on the way there tell nothing."""

    @staticmethod
    def forward(x):
        return getattr(F, "re" + "lu")(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Calling(nn.Module):
    def forward(self, x):
        return helper(x.flatten(1))


def helper(x):
    return Own.apply(x)


def hidden_by(kind):
    inner = nn.Sequential(nn.Flatten(), nn.ReLU())
    match kind:
        case "script":
            return torch.jit.script(inner)
        case "trace":
            return torch.jit.trace(inner, torch.zeros(1, 1, 2, 2))
        case "compile":
            return torch.compile(inner)
        case "compiled in place":
            inner[1].compile()
            return inner
        case "quantised":
            return nn.Sequential(nn.Flatten(), torch.ao.nn.quantized.ReLU6())
        case "recurrent":
            return nn.Sequential(nn.Flatten(), nn.RNN(4, 4, nonlinearity="relu"))
        case "cell":
            return nn.Sequential(nn.Flatten(), nn.RNNCell(4, 4, nonlinearity="relu"))
        case "own derivative":
            return Calling()
        case "alias":
            return Net(Own.apply)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("script", r"since net \(.*\) is compiled by torch\.jit\. Give it as Python modules"),
        ("trace", r"since net \(.*\) is compiled by torch\.jit"),
        ("compile", r"since net \(OptimizedModule\) is compiled by torch\.compile"),
        ("compiled in place", r"since net\.1 \(ReLU\) is compiled by torch\.compile"),
        ("quantised", r"since net\.1 \(ReLU6\) is quantised"),
        ("recurrent", r"since net\.1 \(RNN\) is one operation with its ReLU inside"),
        ("cell", r"since net\.1 \(RNNCell\) is one operation"),
        ("own derivative", r"since Own is a torch\.autograd\.Function with a derivative"),
        ("alias", r"since Own is a torch\.autograd\.Function"),
    ],
)
def test_hidden_activations_are_refused_at_once(kind, message):
    classifier = raw(hidden_by(kind))
    with pytest.raises(ValueError, match=message):
        Smooth(classifier, 3.0)


def checkpointed(x):
    return checkpoint(F.relu, x, use_reentrant=False)


def checkpointed_reentrant(x):
    return checkpoint(nn.ReLU(), x, use_reentrant=True)


def cut(x):
    with torch.no_grad():
        return F.relu(x)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (checkpointed, "inside an activation checkpoint, whose backward.*turn checkpointing off"),
        (checkpointed_reentrant, "inside an activation checkpoint"),
        (cut, "called where gradients are off: in no_grad, which cuts them"),
        (Recent.apply, r"gradients are off.*torch\.autograd\.Function"),
        (
            lambda x: torch.rnn_relu_cell(x, x, *[torch.eye(4, dtype=x.dtype)] * 2),
            "calls rnn_relu_cell, one operation with its ReLU inside",
        ),
        (lambda x: 2 * x, "called no ReLU; leave Smooth out"),
        (lambda x: getattr(F, "si" + "lu")(x), "called no ReLU; it called silu"),
    ],
)
def test_what_only_a_call_shows_is_refused_then(act, message):
    smooth = Smooth(raw(Net(act)), 3.0)
    with pytest.raises(ValueError, match=message):
        call(smooth, pixels().requires_grad_())


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_around_it_all_is_exact(reentrant):
    """The backward pass then goes through the wrapper again."""
    smooth, x = Smooth(raw(Net(F.relu)), 1.5), pixels().requires_grad_()
    logits = checkpoint(call, smooth, x, use_reentrant=reentrant)
    (logits**2).sum().backward()
    rows = x.detach()
    want = 2 * exact(rows, 1.5) * torch.sigmoid(1.5 * rows)
    assert_close(x.grad, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("net", "names"),
    [
        (nn.Sequential(nn.Flatten(), nn.SiLU(), nn.Sigmoid(), nn.GELU()), "GELU, SiLU"),
        (Net(F.silu), "silu"),
        (Net(nn.PReLU()), "PReLU"),
    ],
)
def test_a_network_without_relus_is_told_what_it_has(net, names):
    with pytest.raises(ValueError, match=rf"has no ReLU; its activations are {names}\. Leave"):
        Smooth(raw(net), 3.0)


def test_a_relu_beside_others_is_found():
    """Also through a function of another name, which only its code tells."""
    x = pixels()
    for act in (lambda h: F.silu(rectified(h)), nn.Sequential(nn.ReLU(), nn.SiLU())):
        want = F.silu(exact(x.flatten(1), 2.0))
        assert_close(call(Smooth(raw(Net(act)), 2.0), x), want, rtol=0, atol=1e-10)


def rectified(x):
    return torch.relu(x)


@pytest.mark.parametrize("beta", [0, -3.0, math.nan, -math.inf])
def test_beta_is_positive(beta):
    with pytest.raises(ValueError, match=f"beta must be positive, got {beta}: .* such as 5"):
        Smooth(raw(Net(F.relu)), beta)


def test_it_is_not_done_twice():
    with pytest.raises(ValueError, match="has a Smooth inside already"):
        Smooth(Resized(Smooth(raw(Net(F.relu)), 3.0), size=2), 5.0)


def test_it_is_what_it_wraps():
    timed = Timed(Told(), linear_levels(), 48, shape=[3, 4, 4])
    smooth = Smooth(timed, 3.0)
    assert (smooth.num_classes, smooth.shape, smooth.conditioning) == (48, (3, 4, 4), "t")
    assert smooth.reads((3, 4, 4)) and not smooth.reads((3, 8, 8))
    assert Smooth(Resized(timed), 3.0).reads((3, 8, 8))
    shelf = raw(TinyResNet(), 7)
    names = Smooth(shelf, 3.0).state_dict()
    assert list(names) == [f"classifier.{name}" for name in shelf.state_dict()]
    x, sigma = torch.randn(2, 3, 4, 4), torch.tensor([0.5, 3.0])
    x_t = (x / (1 + sigma**2).sqrt().reshape(-1, 1, 1, 1)).flatten(1)
    want = F.softplus(x_t, 3.0) + linear_levels().t(sigma)[:, None]
    assert_close(smooth(x, sigma), want)


class Told(nn.Module):
    """Reads t as well."""

    def forward(self, x_t, t):
        return F.relu(x_t.flatten(1)) + t[:, None]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_as_smooth(copied):
    smooth = Smooth(raw(TinyResNet().eval(), 7), 3.0)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(call(copied(smooth), x), call(smooth, x))


def test_a_traced_network_is_python_again():
    net = elucd_resnet()
    x = torch.randn(2, 3, 16, 16)
    want = call(Smooth(raw(net), 3.0), x)
    assert_close(call(Smooth(raw(fx.symbolic_trace(net)), 3.0), x), want)


def test_it_is_exported_and_loaded(tmp_path):
    net = spec("torchvision.models.resnet18", num_classes=5)
    shelf = spec("robustguide.classifiers.OffTheShelf", net=net, num_classes=5, size=16)
    described = spec("robustguide.classifiers.Smooth", classifier=shelf, beta=3.0)
    torch.manual_seed(0)
    smooth = build(described).eval()
    path = str(tmp_path / "smooth.safetensors")
    export(smooth, path, described, class_names="abcde", shape=(3, 16, 16), weights="raw")
    loaded, x = load_classifier(path), torch.randn(2, 3, 16, 16)
    assert isinstance(loaded, Smooth) and loaded.metadata.conditioning == "none"
    assert torch.equal(call(loaded, x), call(smooth, x))
    with torch.device("meta"):
        assert call(build(described), torch.zeros(2, 3, 8, 8)).shape == (2, 5)


def test_types_stay_under_autocast():
    """torch computes Softplus in float32 there; a network that joins its parts needs one type."""
    seen = []

    def act(h):
        half = h.bfloat16()
        seen.append((F.relu(half), half.clone().relu_(), F.relu6(half)))
        return h

    x = pixels().float()
    with torch.autocast("cpu", torch.bfloat16):
        call(Smooth(raw(Net(act)), 2.0), x)
    want = F.softplus(x.flatten(1).bfloat16(), 2.0)
    assert all(each.dtype == torch.bfloat16 for each in seen[0])
    assert_close(seen[0][0], want)
    assert_close(seen[0][1], want)


def test_threads_have_a_beta_each():
    """Both are inside at once."""
    meeting = threading.Barrier(2, timeout=10)

    def act(h):
        meeting.wait()
        return F.relu(h)

    x, found = pixels(), {}
    net = raw(Net(act))

    def read(beta):
        found[beta] = call(Smooth(net, beta), x)

    threads = [threading.Thread(target=read, args=(beta,)) for beta in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for beta in (1.0, 2.0):
        assert_close(found[beta], exact(x.flatten(1), beta), rtol=0, atol=1e-10)


def test_an_error_inside_leaves_nothing_behind():
    def act(h):
        F.relu(h)
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        call(Smooth(raw(Net(act)), 1.0), pixels())
    assert torch.equal(F.relu(torch.tensor([-1.0, 1.0])), torch.tensor([0.0, 1.0]))
