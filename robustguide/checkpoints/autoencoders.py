"""Autoencoders in the folder layout of `diffusers`: `config.json` and one safetensors file.

The folder of a whole Stable Diffusion is taken too; its autoencoder lies in `vae`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustguide.checkpoints.metadata import Metadata, opened
from robustguide.checkpoints.mismatch import listed, mismatches, shapes_of
from robustguide.codecs import EDM2Codec, KLAutoencoder, KLCodec, StableDiffusionCodec

CONFIG = "config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
# Arguments of our class by their names there, and what they are where the file leaves them out.
ARGUMENTS: dict[str, Any] = {
    "in_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [64],
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
# The published autoencoders are older than the names that the library has for attention now.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_autoencoder(path: str) -> KLAutoencoder:
    """The autoencoder of a folder, in evaluation mode and frozen, for a codec of any scale.

    Raises:
        FileNotFoundError: The files are not there.
        ValueError: Another kind of model, or tensors that do not fit.
        ImportError: Without `diffusers`.
    """
    tensors = autoencoder_tensors(path)
    with torch.device("meta"):
        autoencoder = KLAutoencoder(**_arguments(path))
    wrong = mismatches(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        shapes_of(autoencoder),
        ("file", CONFIG),
    )
    if wrong:
        raise ValueError(
            f"The tensors in {path} do not fit its {CONFIG}: {listed(wrong)}. Download the two "
            "files again, from the same place."
        )
    autoencoder.load_state_dict(tensors, assign=True)
    return autoencoder.eval().requires_grad_(False)


def load_codec_folder(path: str) -> StableDiffusionCodec:
    """The autoencoder of a folder at the scale that its `config.json` states; see above."""
    factors = _factors(path)
    codec = StableDiffusionCodec(
        load_autoencoder(path), factors["scaling_factor"], factors["shift_factor"]
    )
    vars(codec)["metadata"] = describe_folder(path)
    return codec.eval().requires_grad_(False)


def describe_folder(path: str) -> Metadata:
    """What `load_codec_folder` would say of its codec; reads no tensors."""
    config, arguments = _config(path), _arguments(path)
    size = config.get("sample_size", 32)
    height, width = size if isinstance(size, list) else (size, size)
    autoencoder = {"class_path": "robustguide.codecs.KLAutoencoder", "init_args": arguments}
    return Metadata(
        path=path,
        kind="codec",
        specification={
            "class_path": "robustguide.codecs.StableDiffusionCodec",
            "init_args": {"autoencoder": autoencoder, **_factors(path)},
        },
        class_names=(),
        num_classes=0,
        shape=(arguments["in_channels"], height, width),
        conditioning=None,
        weights="raw",
        versions={"diffusers": str(config.get("_diffusers_version", "unknown"))},
    )


def autoencoder_tensors(path: str) -> dict[str, Tensor]:
    """Tensors of a folder under the names of `KLAutoencoder`, float32."""
    folder = _folder(path)
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not found:
        others = sorted(file.name for file in folder.glob("*.bin"))
        raise FileNotFoundError(
            f"{folder} holds no {WEIGHTS[0]}"
            + (f"; {others[0]} could carry code and is not read" if others else "")
            + ". Put the safetensors file of the same autoencoder there."
        )
    with opened(found[0]) as file:
        return {named_here(name): file.get_tensor(name).float() for name in file.keys()}


def sd_to_ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a published autoencoder as those of a codec at Stable Diffusion's scale."""
    return _at_scale(tensors, StableDiffusionCodec)


def edm2_to_ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a published autoencoder as those of a codec at the scale of EDM2."""
    return _at_scale(tensors, EDM2Codec)


def _at_scale(tensors: Mapping[str, Tensor], codec: type[KLCodec]) -> dict[str, Tensor]:
    """Renamed, and beside them the scale, which the published file does not hold."""
    quantised = tensors.get("post_quant_conv.weight")
    channels = 4 if quantised is None else quantised.shape[1]
    with torch.device("meta"):
        small = KLAutoencoder(latent_channels=channels, block_out_channels=[32])
    scales = codec(small)
    named = {f"autoencoder.{named_here(name)}": x.float() for name, x in tensors.items()}
    return {**named, "scale": scales.scale, "shift": scales.shift}


def named_here(name: str) -> str:
    """The name of a tensor in `KLAutoencoder`; knows the names of before 2023, too."""
    for old, new in OLD_NAMES.items():
        name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return f"net.{name}"


def _folder(path: str) -> Path:
    folder = Path(path).expanduser()
    inner = folder / "vae"
    if (inner / CONFIG).is_file():
        return inner
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"There is no {CONFIG} in {folder} (from {Path.cwd()}); give the folder of an "
            f"autoencoder in the layout of diffusers, with {CONFIG} and {WEIGHTS[0]}."
        )
    return folder


def _config(path: str) -> dict[str, Any]:
    file = _folder(path) / CONFIG
    try:
        config = json.loads(file.read_text())
        kind = config.get("_class_name")
        blocks = [*config.get("down_block_types", ()), *config.get("up_block_types", ())]
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"Cannot read {file}: {error}. Download it again.") from error
    wanted = {"DownEncoderBlock2D", "UpDecoderBlock2D"}
    if kind != "AutoencoderKL" or set(blocks) - wanted or config.get("latents_mean"):
        raise ValueError(
            f"{file} describes a {kind} of {', '.join(sorted(set(map(str, blocks)) - wanted))}; "
            "this reader knows AutoencoderKL of plain blocks, with one scaling_factor."
        )
    found: dict[str, Any] = config
    return found


def _arguments(path: str) -> dict[str, Any]:
    config = _config(path)
    return {name: config.get(name, default) for name, default in ARGUMENTS.items()}


def _factors(path: str) -> dict[str, float]:
    """The autoencoders of the first Stable Diffusion leave their factor out."""
    config = _config(path)
    return {
        "scaling_factor": config.get("scaling_factor") or 0.18215,
        "shift_factor": config.get("shift_factor") or 0.0,
    }
