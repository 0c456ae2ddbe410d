"""Training of a CLIP: the loss against the library's and by hand, the files that are left."""

import itertools
import json
import math
from pathlib import Path

import open_clip
import pytest
import tiny
import torch
import yaml
from torch.nn import functional as F
from torch.testing import assert_close

from robustguide.__main__ import main
from robustguide.checkpoints import clip_classifier, load_classifier
from robustguide.data import Images
from robustguide.modules import CaptionMatching
from robustguide.modules.contrastive import contrastive
from robustguide.noise import LogNormal, perturb, vp_scale
from robustguide.samplers.seeds import mixed

ROOT = Path(__file__).parents[2]
ARCHITECTURE = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 8, "patch_size": 4, "width": 16, "head_width": 8, "layers": 1},
    "text_cfg": {"context_length": 9, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEMPLATES = ["the digit {}.", "a {}", "{} again"]


def module(names=NAMES, **arguments):
    torch.manual_seed(0)
    optimizer = lambda groups: torch.optim.AdamW(groups, lr=0.01)  # noqa: E731
    given = {"templates": TEMPLATES, "optimizer": optimizer} | arguments
    return CaptionMatching(ARCHITECTURE, names, **given)


def pairs(count, seed=0):
    """Unit vectors of images and texts."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, count, 5, generator=generator, dtype=torch.float64)
    return F.normalize(values, dim=-1)


def info_nce(images, texts, scale):
    """Radford et al. (2021), figure 3, written out."""
    n, total = len(images), 0.0
    for i in range(n):
        cosines = [scale * images[i] @ texts[j] for j in range(n)]
        total -= (cosines[i].exp() / sum(c.exp() for c in cosines)).log() / 2
        cosines = [scale * images[j] @ texts[i] for j in range(n)]
        total -= (cosines[i].exp() / sum(c.exp() for c in cosines)).log() / 2
    return total / n


def test_captions_of_different_meaning_are_matched_as_published():
    images, texts = pairs(6)
    scale = torch.tensor(7.0, dtype=torch.float64)
    found = contrastive(images, texts, scale, torch.tensor([3, 1, 4, 0, 5, 9]))
    assert_close(found, info_nce(images, texts, scale))
    assert_close(found, open_clip.ClipLoss()(images, texts, scale))


def test_captions_of_one_meaning_are_no_wrong_answers():
    """The mean of the published loss over all ways to pair the images of a meaning with its
    captions, since which caption an image got is chance."""
    images, texts = pairs(5)
    scale, meaning = torch.tensor(3.0, dtype=torch.float64), torch.tensor([2, 7, 2, 7, 2])
    losses = []
    for order in itertools.permutations(range(5)):
        if torch.equal(meaning[list(order)], meaning):
            losses.append(info_nce(images, texts[list(order)], scale))
    assert len(losses) == 12
    found = contrastive(images, texts, scale, meaning)
    assert_close(found, torch.stack(losses).mean())
    assert abs(found - info_nce(images, texts, scale)) > 0.01


def test_perfect_vectors_reach_the_floor():
    """The entropy of the spread targets; no pair of one meaning pushes apart."""
    meaning = torch.tensor([0, 1, 0, 2])
    vectors = F.one_hot(meaning, 3).double().requires_grad_()
    loss = contrastive(vectors, vectors, torch.tensor(60.0).double(), meaning)
    assert_close(loss.item(), 2 * math.log(2) / 4)
    (gradient,) = torch.autograd.grad(loss, vectors)
    assert gradient.abs().max() < 1e-10


@pytest.mark.parametrize("noise", [None, LogNormal(-2.0, 1.0)], ids=["clean", "noisy"])
def test_a_step_by_hand(noise, tmp_path):
    """Captions and noise belong to the step; images are shown as the classifier shows them."""
    made = module(noise=noise, seed=4)
    before = open_clip.CLIP(**ARCHITECTURE)
    before.load_state_dict(made.clip.state_dict())
    trainer = tiny.trainer(tmp_path, limit_val_batches=0)
    trainer.fit(made, datamodule=Images(batch_size=16))
    x_0, y, _ = next(iter(Images(batch_size=16).train_dataloader()))
    torch.manual_seed(mixed(4, 0, 0))
    u = torch.rand(16).clamp(2**-25, 1 - 2**-24)
    sigma = torch.zeros(16) if noise is None else noise.quantile(u)
    x = perturb(x_0, sigma, torch.randn(16, 1, 8, 8)) / vp_scale(sigma)[:, None, None, None]
    template = torch.randint(len(TEMPLATES), (16,))
    texts = [TEMPLATES[t].format(NAMES[k]) for t, k in zip(template.tolist(), y, strict=True)]
    assert len(set(texts)) > 10
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    shown = ((x + 1) / 2 - mean) / std
    assert shown.shape == (16, 3, 8, 8)
    images = before.encode_image(shown, normalize=True)
    tokens = open_clip.SimpleTokenizer(context_length=9)(texts)
    captions = before.encode_text(tokens, normalize=True)
    expected = contrastive(images, captions, before.logit_scale.exp(), y)
    assert_close(trainer.callback_metrics["train/loss"], expected)
    assert not torch.equal(made.clip.token_embedding.weight, before.token_embedding.weight)


def test_equal_names_mean_the_same():
    made = module(["crane", "dog", "crane"])
    assert made.meaning.tolist() == [0, 1, 0]
    assert made.captions.shape == (3, len(TEMPLATES), 9)
    assert torch.equal(made.captions[0], made.captions[2])


def test_the_scale_stays_below_a_hundred(tmp_path):
    made = module()
    with torch.no_grad():
        made.clip.logit_scale.fill_(9.0)
    tiny.trainer(tmp_path, limit_val_batches=0).fit(made, datamodule=Images(batch_size=16))
    assert made.clip.logit_scale.exp().item() == pytest.approx(100)


def test_training_reads_digits_and_leaves_two_files(tmp_path):
    """Through the command line, with a moving average; the files hold the average."""
    noise = tiny.spec("noise.Clipped", distribution=tiny.spec("noise.LogNormal"), sigma_max=0.3)
    arguments = dict(architecture=ARCHITECTURE, class_names=NAMES, templates=TEMPLATES)
    arguments |= dict(noise=noise, optimizer=tiny.adamw(), levels=[0.0, 0.2])
    model = tiny.spec("modules.CaptionMatching", **arguments)
    config = tiny.merged(tiny.TRAINING, {"model": model, "trainer": {"max_steps": 120}})
    config["trainer"] |= {"val_check_interval": 120}
    config["trainer"]["callbacks"] = [tiny.spec("callbacks.EMA", decay=0.9)]
    cli = tiny.run(tmp_path / "run", "fit", config)
    known = load_classifier(str(tmp_path / "run" / "classifier.safetensors"))
    assert known.metadata.weights == "ema" and known.metadata.shape == (1, 8, 8)
    assert known.metadata.class_names == tuple("0123456789")
    file = str(tmp_path / "run" / "clip.safetensors")
    again = clip_classifier(ARCHITECTURE, NAMES, TEMPLATES, file)
    x_0, y, _ = next(iter(cli.datamodule.val_dataloader()))
    sigma = torch.full((len(x_0),), 0.0)
    assert_close(known(x_0, sigma), again(x_0, sigma), rtol=0, atol=0)
    accuracy = (known(x_0, sigma).argmax(-1) == y).double().mean().item()
    curve = json.loads((tmp_path / "run" / "results.json").read_text())["curves"]["classifier"]
    assert curve["sigma"] == [0.0, 0.2] and curve["accuracy"][0] == pytest.approx(accuracy)
    assert accuracy > 0.5  # five times chance
    prompts = ["a three", "the digit eight."]
    other = clip_classifier(ARCHITECTURE, prompts, ["{}"], file)
    seen = [other(x_0[y == digit], sigma[y == digit]).mean(0) for digit in (3, 8)]
    assert seen[0][0] > seen[0][1] and seen[1][1] > seen[1][0]


def test_texts_are_read_again_before_an_evaluation(tmp_path):
    made = module()
    data = Images(batch_size=64, eval_limit=40)
    trainer = tiny.trainer(tmp_path)
    before = made.classifier.net.text_features.clone()
    assert not before.any()
    trainer.validate(made, datamodule=data, verbose=False)
    features = made.classifier.net.text_features
    assert_close(features.norm(dim=-1), torch.ones(10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"templates": ["a digit"]}, r"templates are sentences with \{\} .* \['a digit'\]"),
        ({"templates": []}, "templates are sentences"),
        (
            {"templates": ["a " * 7 + "{}"]},
            "A caption of 'zero' has 10 tokens, the network reads 9",
        ),
        ({"levels": []}, "levels must be finite"),
    ],
)
def test_what_cannot_be_trained(arguments, message):
    with pytest.raises(ValueError, match=message):
        module(**arguments)
    assert module(templates=["a " * 6 + "{}"]).captions.shape == (10, 1, 9)


def test_other_classes_than_the_datas_are_refused(tmp_path):
    with pytest.raises(ValueError, match="The data has 10 classes, the classifier 2"):
        tiny.trainer(tmp_path).fit(module(["even", "odd"]), datamodule=Images(batch_size=16))


@pytest.mark.check
def test_the_shipped_configuration_reads_digits(tmp_path):
    configs = ("overlay/digits", "fit/digits_clip")
    words = [word for name in configs for word in ("--config", f"{ROOT}/configs/{name}.yaml")]
    main(["fit", *words, f"--trainer.default_root_dir={tmp_path}", "--trainer.logger=false"])
    curves = json.loads((tmp_path / "results.json").read_text())["curves"]
    assert curves["classifier"]["accuracy"][0] >= 0.9
    described = yaml.safe_load((ROOT / "configs/fit/digits_clip.yaml").read_text())
    architecture = described["model"]["init_args"]["architecture"]
    file = str(tmp_path / "clip.safetensors")
    found = clip_classifier(architecture, ["a handwritten three."], ["{}"], file)
    assert found.num_classes == 1
