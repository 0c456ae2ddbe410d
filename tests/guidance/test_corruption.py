"""Networks made worse for a while."""

import pytest
import torch
from oracles import ExactDenoiser, noisy, plane
from torch import nn
from torch.testing import assert_close

from robustguide.denoisers import EDMDenoiser, EpsDenoiser
from robustguide.guidance import Autoguidance, Dropout, Guided, Scaled
from robustguide.guidance.corruption import places
from robustguide.interfaces import Denoiser, Prediction
from robustguide.nets import MLP, DhariwalUNet, DiT, SongUNet, UNet
from robustguide.nets.edm2 import EDM2UNet
from robustguide.noise import linear_levels


class Units(Denoiser):
    """A user's denoiser: it shows the units of two dropout places as its two channels."""

    num_classes, has_null = 3, False

    def __init__(self, kind=nn.Dropout, side=40):
        super().__init__()
        self.shape = (2, side, side)
        self.first, self.second = kind(0.3), kind(0.0)

    def predict(self, x, sigma, y):
        return Prediction(torch.cat([self.first(x[:, :1]), self.second(x[:, 1:])], 1))


def ones(denoiser, rows=3):
    x = torch.ones(rows, *denoiser.shape)
    return x, torch.full((rows,), 1.5), torch.arange(rows) % 3


def mask(corruption, denoiser, rows=3):
    with corruption(denoiser):
        return denoiser(*ones(denoiser, rows))


def test_units_are_off_or_scaled_at_the_rate():
    denoiser, rate = Units().eval(), 0.2
    got = mask(Dropout(rate), denoiser)
    for units in (got[0, 0], got[0, 1]):
        is_off = units == 0
        assert_close(units[~is_off], torch.full_like(units[~is_off], 1.25))
        assert abs(is_off.float().mean() - rate) < 5 * (rate * (1 - rate) / 1600) ** 0.5
    assert not torch.equal(got[0, 0], got[0, 1])  # every place has units of its own


def test_it_is_one_thinned_network_for_all_rows_and_runs():
    denoiser = Units().eval()
    got = mask(Dropout(0.4), denoiser)
    assert torch.equal(got, got[:1].expand_as(got))
    assert torch.equal(mask(Dropout(0.4), denoiser, rows=1), got[:1])
    same = Dropout(0.4)
    assert torch.equal(mask(same, denoiser), mask(same, denoiser))
    assert not torch.equal(mask(Dropout(0.4, seed=1), denoiser), got)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert torch.equal(mask(Dropout(0.4), denoiser), got)
    assert torch.equal(mask(Dropout(0.4), denoiser.train()), got)  # nor does it ask the modules
    assert torch.equal(torch.get_rng_state(), before)


def test_channels_go_as_a_whole_where_the_network_does_so():
    class Channels(Units):
        def __init__(self):
            super().__init__(nn.Dropout2d, side=4)
            self.shape = (200, 4, 4)

        def predict(self, x, sigma, y):
            return Prediction(self.first(x))

    got = mask(Dropout(0.5), Channels().eval())
    assert torch.equal(got, got[:, :, :1, :1].expand_as(got))
    assert abs((got[0, :, 0, 0] == 0).float().mean() - 0.5) < 5 * (0.25 / 200) ** 0.5


def made(name):
    """A denoiser of one of our kinds of network, none of whose weights are 0."""
    common = dict(img_resolution=8, model_channels=8, channel_mult=[1, 2], attn_resolutions=[4])
    edm = dict(in_channels=2, out_channels=2, label_dim=3, num_blocks=1, **common)
    adm = dict(image_size=8, in_channels=2, model_channels=8, out_channels=2, num_heads=2)
    adm |= dict(attention_resolutions=[2], num_res_blocks=1, channel_mult=[1, 2], num_classes=3)
    if name == "dit":
        pytest.importorskip("diffusers")
    net = {
        "mlp": lambda: MLP(shape=(2, 8, 8), width=16, num_classes=3),
        "adm": lambda: UNet(**adm),
        "dit": lambda: DiT(8, 2, 2, hidden=16, depth=2, heads=2, num_classes=3, learn_sigma=False),
        "song": lambda: SongUNet(**edm),
        "dhariwal": lambda: DhariwalUNet(**edm),
        "edm2": lambda: EDM2UNet(
            img_channels=2, label_dim=3, num_blocks=1, channels_per_head=8, **common
        ),
    }[name]()
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    if name in ("mlp", "adm", "dit"):
        return EpsDenoiser(net, linear_levels(), 3, (2, 8, 8))
    return EDMDenoiser(net, 3, (2, 8, 8))


@pytest.mark.parametrize("name", ["mlp", "adm", "dit", "song", "dhariwal", "edm2"])
def test_every_kind_of_network_is_thinned_and_then_what_it_was(name):
    denoiser = made(name).eval().requires_grad_(False)
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    sigma, y = torch.tensor([0.2, 1.0, 5.0]), torch.tensor([0, 1, 2])
    attributes = {each: dict(vars(each)) for each in denoiser.modules()}
    plain, corruption = denoiser(x, sigma, y), Dropout(0.3)
    with corruption(denoiser):
        thin = denoiser(x, sigma, y)
        part = denoiser(x[1:2], sigma[1:2], y[1:2])
    with pytest.raises(ZeroDivisionError), corruption(denoiser):
        denoiser(x, sigma, y)
        raise ZeroDivisionError
    assert torch.equal(denoiser(x, sigma, y), plain)
    assert {each: dict(vars(each)) for each in denoiser.modules()} == attributes
    assert (thin - plain).flatten(1).norm(dim=1).min() > 1e-3
    assert_close(part, thin[1:2], rtol=1e-4, atol=1e-5)


def test_a_forward_that_someone_else_put_there_comes_back():
    denoiser = Units().eval()
    denoiser.first.forward = lambda h: 7 * h
    assert mask(Dropout(0.5), denoiser)[:, 0].max() == 2
    assert denoiser(*ones(denoiser))[:, 0].unique().tolist() == [7]


def test_a_network_guides_itself_without_some_of_its_units():
    """Two evaluations; its weights are there once, and it needs no null label."""
    denoiser = Units().eval()
    x, sigma, y = torch.randn(3, *denoiser.shape), torch.full((3,), 1.5), torch.arange(3)
    corruption = Dropout(0.25)
    with corruption(denoiser):
        thin = denoiser(x, sigma, y)
    calls, predict = [], denoiser.predict

    def noted(x, sigma, y):
        calls.append(len(x))
        return predict(x, sigma, y)

    denoiser.predict = noted
    term = Scaled(Autoguidance(corruption=Dropout(0.25)), weight=3.0)
    got = Guided(denoiser, {"auto": term})(x, sigma, y)
    assert calls == [3, 3]
    assert_close(got, torch.lerp(thin, denoiser(x, sigma, y), 3.0))
    assert not list(term.parameters())


def test_a_thinned_reference_leaves_the_guided_network_whole():
    """The other branches of the same step, too."""
    mixture = plane()
    main, guide = ExactDenoiser(mixture), Units().eval()
    guide.shape = mixture.shape
    guide.predict = lambda x, sigma, y: Prediction(guide.first(x))
    x, sigma, y = noisy(mixture, [1.0, 2.0])
    terms = {"whole": Autoguidance(guide), "thin": Autoguidance(guide, corruption=Dropout(0.5))}
    got = Guided(main, terms)(x, sigma, y)
    with Dropout(0.5)(guide):
        thin = guide(x, sigma, y)
    own = main(x, sigma, y)
    assert_close(got, own + (own - x) + (own - thin))


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_rates_that_make_no_sense(rate):
    with pytest.raises(ValueError, match="between 0 and 1, got"):
        Dropout(rate)


def test_a_network_without_a_place_for_dropout_is_refused():
    term = Autoguidance(corruption=Dropout(0.1))
    with pytest.raises(ValueError, match=r"no nn.Dropout .* give Autoguidance another"):
        Guided(ExactDenoiser(plane()), {"auto": Scaled(term, 1.0)})
    Guided(Units(), {"auto": term})
    assert len(places(Units())) == 2
