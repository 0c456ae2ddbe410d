"""Small autoencoders, their files, and folders in the layout of diffusers."""

import json

import torch
from safetensors.torch import save_file
from tiny import spec

from robustguide.codecs import KLAutoencoder, KLCodec

SMALL = dict(
    in_channels=1,
    latent_channels=2,
    block_out_channels=[4, 8],
    layers_per_block=1,
    norm_num_groups=4,
)
SHAPE, LATENTS = (1, 8, 8), (2, 4, 4)
SCALE, SHIFT = [0.4, 0.7], [0.1, -0.2]


def codec_spec(**arguments):
    """Specification of the small codec."""
    autoencoder = spec("codecs.KLAutoencoder", **SMALL)
    return spec("codecs.KLCodec", autoencoder=autoencoder, **arguments)


def autoencoder(seed=0, **changes):
    """The small autoencoder with seeded weights, none of them 0 or 1."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        made = KLAutoencoder(**(SMALL | changes)).eval()
        for value in made.parameters():
            value.add_(torch.rand_like(value), alpha=0.05)
    return made


def codec(**arguments):
    """The small codec, frozen, at a scale of its own."""
    made = KLCodec(autoencoder(), **{"scale": SCALE, "shift": SHIFT} | arguments)
    return made.eval().requires_grad_(False)


def images(count=5, shape=SHAPE, seed=0):
    """Noise in [-1, 1]."""
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def noise(*shape, seed=1):
    """Unit noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


CONFIG = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.4.2",
    "act_fn": "silu",
    "block_out_channels": [4, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "in_channels": 1,
    "latent_channels": 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "out_channels": 1,
    "sample_size": 8,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}


def folder(path, *, is_old=False, name="diffusion_pytorch_model.safetensors", **config):
    """Writes the small autoencoder as published ones are; before 2023, attention had old names."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG | config))
    tensors = dict(autoencoder().net.state_dict())
    if is_old:
        for new, old in {
            "to_q": "query",
            "to_k": "key",
            "to_v": "value",
            "to_out.0": "proj_attn",
        }.items():
            tensors = {key.replace(f".{new}.", f".{old}."): v for key, v in tensors.items()}
        assert "encoder.mid_block.attentions.0.proj_attn.weight" in tensors
    if "fp16" in name:
        tensors = {key: value.half() for key, value in tensors.items()}
    save_file(tensors, path / name)
    return str(path)
