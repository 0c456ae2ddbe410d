"""Text-to-image models: a tiny pipeline in the published layout, against its own library."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from PIL import Image
from torch.testing import assert_close

from robustguide.denoisers import EpsDenoiser, VDenoiser, load_text_to_image
from robustguide.denoisers.text import published_grid
from robustguide.guidance import ClassifierFree, Scaled
from robustguide.noise import StridedGrid
from robustguide.samplers import DDIM, SeededNoise

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

WORDS = ["a", "cat", "dog", "of", "photo", "the", "blur", "!"]
PROMPTS = ["A photo of the cat", "the dog !"]
NEGATIVE = "blur"
SCHEDULER = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)
STYLES = {
    "sd1": dict(
        prediction="epsilon", act="quick_gelu", pad="<|endoftext|>", linear=False, heads=4
    ),
    "sd2": dict(prediction="v_prediction", act="gelu", pad="!", linear=True, heads=[2, 4]),
}


def tokenizer(pad):
    """Letters and a few whole words."""
    letters = [chr(code) for code in range(33, 127)]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = ["".join(parts[:2]), *parts[2:]]
    merges = list(dict.fromkeys(merges))
    names = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    names = [*dict.fromkeys(names), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    return transformers.CLIPTokenizer(vocabulary, merges, pad_token=pad, model_max_length=12)


def parts(style):
    """The modules of a tiny pipeline, with seeded random weights."""
    torch.manual_seed(0)
    tokens = tokenizer(style["pad"])
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=style["heads"],
        norm_num_groups=8,
        use_linear_projection=style["linear"],
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(16,), norm_num_groups=8, sample_size=8)
    text = transformers.CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=12,
        hidden_act=style["act"],
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    encoder = transformers.CLIPTextModel(text)
    scheduler = diffusers.DDIMScheduler(**SCHEDULER, prediction_type=style["prediction"])
    return dict(unet=unet, vae=vae, text_encoder=encoder, tokenizer=tokens, scheduler=scheduler)


@pytest.fixture(scope="module", params=STYLES)
def written(request, tmp_path_factory):
    """Folder of a pipeline, and the pipeline."""
    folder = tmp_path_factory.mktemp(request.param)
    pipeline = diffusers.StableDiffusionPipeline(
        **parts(STYLES[request.param]),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return str(folder), pipeline


@pytest.fixture(scope="module")
def folder(written):
    return written[0]


@pytest.fixture
def broken(folder, tmp_path):
    """A copy of the folder whose files may be spoilt."""
    return shutil.copytree(folder, tmp_path / "broken")


def noise():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def latents(pipeline, scheduler, **arguments):
    """What the library makes of the noise."""
    pipeline.scheduler = scheduler
    start = noise()
    return pipeline(PROMPTS, latents=start, output_type="latent", **arguments).images


def sampled(folder, grid, weight=None, negative=NEGATIVE):
    """What our sampler makes of it, in the units of the chain that it ends in."""
    denoiser = load_text_to_image(folder, PROMPTS, negative)
    terms = {} if weight is None else {"free": Scaled(ClassifierFree(), weight=weight)}
    sampler = DDIM(grid)
    x = sampler.start(noise(), denoiser)
    x = sampler(denoiser, terms, x, torch.tensor([0, 1]), torch.randn_like)
    return x


def close(got, want):
    """Within rounding of float32 over ten steps."""
    assert_close(got, want, rtol=2e-5, atol=2e-5 * want.abs().amax().item())


def test_classifier_free_guidance_is_the_librarys(written):
    folder, pipeline = written
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    want = latents(
        pipeline,
        scheduler,
        num_inference_steps=10,
        guidance_scale=7.5,
        negative_prompt=[NEGATIVE] * 2,
    )
    grid = published_grid(folder, 10)
    assert grid.indices()[::-1] == scheduler.timesteps.tolist()
    close(sampled(folder, grid, weight=7.5), want)
    assert (sampled(folder, grid) - want).abs().amax() > 0.1  # guidance makes a difference


def test_without_guidance(written):
    folder, pipeline = written
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    want = latents(pipeline, scheduler, num_inference_steps=10, guidance_scale=1.0)
    close(sampled(folder, published_grid(folder, 10)), want)


def test_trailing_steps_that_end_at_zero(written, broken):
    folder, pipeline = written
    changes = dict(timestep_spacing="trailing", set_alpha_to_one=True)
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler", **changes)
    scheduler.save_pretrained(broken / "scheduler")
    want = latents(pipeline, scheduler, num_inference_steps=10, guidance_scale=3.0)
    grid = published_grid(str(broken), 10)
    assert grid.indices()[::-1] == scheduler.timesteps.tolist()
    assert grid.sigmas()[-1] == 0
    close(sampled(folder, grid, weight=3.0, negative=""), want)


# diffusers 0.42 takes a tensor for an array; numpy 2 asks for an argument more
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
def test_euler_steps(written):
    """Euler's method in sigma is DDIM without noise."""
    folder, pipeline = written
    scheduler = diffusers.EulerDiscreteScheduler.from_pretrained(
        folder, subfolder="scheduler", timestep_spacing="leading"
    )
    want = latents(
        pipeline,
        scheduler,
        num_inference_steps=8,
        guidance_scale=4.0,
        negative_prompt=[NEGATIVE] * 2,
    )
    grid = StridedGrid(published_grid(folder).levels, 8, offset=1)
    close(sampled(folder, grid, weight=4.0), want)


def test_labels_index_the_prompts(folder):
    """Row i is prompt i, the null label the negative prompt; each as if it were alone."""
    denoiser = load_text_to_image(folder, PROMPTS, NEGATIVE)
    assert (denoiser.num_classes, denoiser.shape, denoiser.has_null) == (2, (4, 8, 8), True)
    assert denoiser.class_names == tuple(PROMPTS)
    table = denoiser.net.prompts
    assert table.shape == (3, 12, 32)
    assert_close(load_text_to_image(folder, ["the dog !"], NEGATIVE).net.prompts, table[1:])
    x, sigma = 2 * noise()[:1], torch.tensor([2.0])
    answers = [denoiser(x, sigma, torch.tensor([y])) for y in range(3)]
    together = denoiser(x.expand(3, -1, -1, -1), sigma.expand(3), torch.tensor([0, 1, 2]))
    assert_close(together, torch.cat(answers), rtol=1e-4, atol=1e-5)
    assert (answers[0] - answers[2]).abs().amax() > 1e-4
    assert not denoiser.training and not any(p.requires_grad for p in denoiser.parameters())


def test_many_prompts_are_encoded_in_batches(folder):
    prompts = [f"{word} {letter}" for word in WORDS for letter in "bdghj"]
    table = load_text_to_image(folder, prompts).net.prompts
    assert len(table) == 41
    assert_close(load_text_to_image(folder, prompts[35:36]).net.prompts[0], table[35])


def test_the_prediction_is_read_from_the_schedulers_settings(written):
    folder, pipeline = written
    kind = {"epsilon": EpsDenoiser, "v_prediction": VDenoiser}
    denoiser = load_text_to_image(folder, PROMPTS)
    assert type(denoiser) is kind[pipeline.scheduler.config.prediction_type]
    alpha_bars = diffusers.DDIMScheduler(**SCHEDULER).alphas_cumprod  # summed up in float32
    assert_close(torch.tensor(denoiser.levels.alpha_bars).float(), alpha_bars, rtol=2e-5, atol=0)


@pytest.mark.parametrize(
    "changes",
    [
        dict(beta_schedule="linear", beta_start=0.0005, beta_end=0.03, num_train_timesteps=100),
        dict(beta_schedule="squaredcos_cap_v2"),
        dict(trained_betas=[0.1, 0.2, 0.4]),
    ],
)
def test_other_chains(broken, changes):
    settings(broken / "scheduler" / "scheduler_config.json", **changes)
    levels = load_text_to_image(str(broken), PROMPTS, interpolated=True).levels
    want = diffusers.DDIMScheduler(**(SCHEDULER | changes)).betas
    assert_close(torch.tensor(levels.betas).float(), want, rtol=1e-4, atol=1e-7)
    middle = torch.tensor(levels.sigmas[1:3].prod() ** 0.5)
    assert levels.t(middle[None]).item() == pytest.approx(1.5, rel=1e-5)


def settings(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "pipeline is 'FluxPipeline'"),
        ("model_index.json", {"unet": ["mine", "MyUNet"]}, "unet is 'MyUNet'"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predicts 'sample'"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "schedule 'sigmoid'"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "infinite"),
        ("unet/config.json", {"in_channels": 9}, "unet cannot be read"),
        ("unet/config.json", {"layers_per_block": 2}, "unet cannot be read.*size mismatch"),
        ("unet/config.json", {"transformer_layers_per_block": 2}, "do not fit.*missing"),
        ("text_encoder/config.json", {"num_hidden_layers": 1}, "do not fit.*unexpected"),
        ("text_encoder/config.json", {"num_hidden_layers": 3}, "do not fit.*missing"),
    ],
)
def test_folders_that_are_refused(broken, file, changes, message):
    settings(broken / file, **changes)
    with pytest.raises(ValueError, match=message):
        load_text_to_image(str(broken), PROMPTS)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_pickled_weights_are_refused(broken, part):
    """Even where they could be read, and though they are what the library would fall back on."""
    weights = next((broken / part).glob("*.safetensors"))
    pickled = weights.with_suffix(".bin")
    weights.rename(pickled)
    with pytest.raises(ValueError, match=f"{part} holds its weights as .*bin, a pickle"):
        load_text_to_image(str(broken), PROMPTS)
    pickled.unlink()
    with pytest.raises(FileNotFoundError, match=f"{part} holds no .safetensors"):
        load_text_to_image(str(broken), PROMPTS)


def test_damaged_weights_are_refused(broken):
    weights = next((broken / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="unet cannot be read as a UNet2DConditionModel"):
        load_text_to_image(str(broken), PROMPTS)


def test_other_folders_are_refused(broken, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model_index.json is not there.*save_pretrained"):
        load_text_to_image(str(tmp_path / "none"), PROMPTS)
    for text, message in (("<html>", "is no JSON"), ("[]", "holds a list")):
        (broken / "model_index.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_text_to_image(str(broken), PROMPTS)


@pytest.mark.parametrize("prompts", [[], "a cat"])
def test_prompts_are_a_list(folder, prompts):
    with pytest.raises(ValueError, match="at least one text"):
        load_text_to_image(folder, prompts)


def test_a_prompt_longer_than_the_context_is_refused(folder):
    """Where the library cuts it."""
    with pytest.raises(ValueError, match=r"has 14 tokens.*reads 12; shorten"):
        load_text_to_image(folder, ["cat " * 12])


@pytest.mark.parametrize(
    ("changes", "steps", "message"),
    [
        (dict(timestep_spacing="trailing"), 30, "'trailing'.*30 of 1000"),
        (dict(timestep_spacing="linspace"), 10, "'linspace'"),
        (dict(steps_offset=1), 1000, "entry 1000, but the last of the chain is 999"),
    ],
)
def test_spacings_that_cannot_be_followed(broken, changes, steps, message):
    settings(broken / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(ValueError, match=message):
        published_grid(str(broken), steps)


@pytest.mark.parametrize("missing", ["diffusers", "transformers"])
def test_the_extra_is_named_where_it_is_missing(folder, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"{missing}.*pip install 'robustguide\[latent\]'"):
        load_text_to_image(folder, PROMPTS)


def test_half_precision(folder):
    denoiser = load_text_to_image(folder, PROMPTS)
    x, sigma, y = 2 * noise(), torch.tensor([2.0, 0.5]), torch.tensor([0, 2])
    want = denoiser(x, sigma, y)
    got = denoiser.bfloat16()(x, sigma, y)
    assert got.dtype == torch.float32
    assert (got - want).norm() < 0.02 * want.norm()


def test_the_documented_configuration_makes_the_librarys_images(written, tmp_path):
    """The one of docs/checkpoints.md, with this folder and its prompts, by the command line."""
    folder, pipeline = written
    document = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    (block,) = [each for each in blocks if "load_text_to_image" in each]
    model = yaml.safe_load(block.replace("models/stable-diffusion-v1-5", folder))
    model["denoiser"]["init_args"] |= {"prompts": PROMPTS, "negative_prompt": NEGATIVE}
    model["sampler"]["init_args"]["grid"]["init_args"]["steps"] = 10
    seeds = {
        "count": 2,
        "num_classes": 2,
        "batch_size": 2,
        "labels": {"class_path": "robustguide.data.Balanced"},
    }
    config = {
        "model": {"class_path": "robustguide.modules.Generation", "init_args": model},
        "data": {"class_path": "robustguide.data.SeedData", "init_args": seeds},
        "trainer": {
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "robustguide.callbacks.SampleWriter"}],
        },
    }
    tiny.run(tmp_path / "run", "predict", config)
    files = sorted((tmp_path / "run" / "images").glob("*.png"))
    found = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files])

    denoiser = load_text_to_image(folder, PROMPTS, NEGATIVE)
    pipeline.scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    start = SeededNoise([0, 1]).draw(denoiser.shape, torch.device("cpu"))
    wanted = pipeline(
        PROMPTS, negative_prompt=[NEGATIVE] * 2, latents=start, num_inference_steps=10,
        guidance_scale=7.5, output_type="np",
    ).images  # fmt: skip
    assert_close(found.float() / 255, torch.from_numpy(wanted), rtol=0, atol=1.5 / 255)
