"""Text-to-image models in the folder layout of `diffusers`, read as denoisers of latents.

A table of prompts is encoded once; a label indexes it, and the null label is the negative prompt,
its last row. A published guidance scale g is `Scaled(ClassifierFree(), weight=g)`.

Files of the folder are weights (safetensors alone) and plain JSON; it cannot name code to be run.
"""

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustguide.denoisers.eps import ChainDenoiser, EpsDenoiser
from robustguide.denoisers.velocity import VDenoiser
from robustguide.noise import DiscreteLevels, StridedGrid, cosine_levels, scaled_linear_levels

# What the folder of a Stable Diffusion 1 or 2 says of its parts, in model_index.json.
PIPELINE = "StableDiffusionPipeline"
PARTS = {"unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel"}
PREDICTIONS: dict[str, type[ChainDenoiser]] = {"epsilon": EpsDenoiser, "v_prediction": VDenoiser}
BATCH = 32  # prompts encoded at a time


class Prompted(nn.Module):
    """A text-conditioned network, called with labels instead of texts: `net(x_t, t, y)`.

    Args:
        unet: A `UNet2DConditionModel`, or called like one.
        prompts: Encoded prompts (n + 1, tokens, width); the last is the negative prompt.
    """

    prompts: Tensor

    def __init__(self, unet: nn.Module, prompts: Float[Tensor, "n tokens width"]) -> None:
        super().__init__()
        self.unet = unet
        self.register_buffer("prompts", prompts)

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """What the network predicts for the prompts y."""
        texts = self.prompts[y].to(x_t.dtype)
        answer: tuple[Tensor] = self.unet(x_t, t, encoder_hidden_states=texts, return_dict=False)
        return answer[0]


def load_text_to_image(
    folder: str, prompts: Sequence[str], negative_prompt: str = "", interpolated: bool = False
) -> ChainDenoiser:
    """A Stable Diffusion 1.x or 2.x of latents, in evaluation mode and frozen; y is a prompt.

    Args:
        folder: As `save_pretrained` of `diffusers` writes it: unet, text_encoder, tokenizer and
            scheduler. The autoencoder in it is the codec's.
        prompts: One for every label.
        negative_prompt: That of the null label.
        interpolated: Whether t may lie between the entries of the chain, for samplers that do
            not visit its levels.

    Raises:
        FileNotFoundError: For a folder without the files.
        ValueError: For weights that are not safetensors or do not fit, for no prompts or one that
            is too long, and for models of another kind.
        ImportError: Without `diffusers` and `transformers`.
    """
    if not prompts or isinstance(prompts, str):
        raise ValueError(f"prompts must be a list of at least one text, got {prompts!r}.")
    root = Path(folder)
    _check_parts(_settings(root / "model_index.json"), root)
    scheduler = _settings(root / "scheduler" / "scheduler_config.json")
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise ValueError(
            f"{root} predicts {kind!r}; this reader knows {', '.join(PREDICTIONS)}, as Stable "
            "Diffusion 1 and 2 predict."
        )
    levels = _levels(scheduler, root, interpolated)
    unet = _weights(_library("diffusers").UNet2DConditionModel, root / "unet")
    shape = _shape(unet.config, root)
    table = encode(root, [*prompts, negative_prompt])
    denoiser = PREDICTIONS[kind](Prompted(unet, table), levels, len(prompts), shape)
    denoiser.class_names = tuple(prompts)
    return denoiser.eval().requires_grad_(False)


def published_grid(folder: str, steps: int = 50) -> StridedGrid:
    """The levels that `DDIMScheduler` of `diffusers` visits with the folder's settings.

    Args:
        folder: Of the pipeline.
        steps: Number of steps.

    Raises:
        FileNotFoundError: For a folder without the file.
        ValueError: For settings that have no such grid.
    """
    root = Path(folder)
    settings = _settings(root / "scheduler" / "scheduler_config.json")
    levels = _levels(settings, root, interpolated=False)
    spacing = settings.get("timestep_spacing", "leading")
    if spacing == "leading":
        offset = int(settings.get("steps_offset", 0))
    elif spacing == "trailing" and steps > 0 and len(levels) % steps == 0:
        offset = len(levels) // steps - 1
    else:
        raise ValueError(
            f"{root} spaces its steps {spacing!r}, which {steps} of {len(levels)} levels cannot "
            "follow; give a number of steps that divides them ('trailing'), or a grid such as "
            "robustguide.noise.ChainGrid ('linspace')."
        )
    return StridedGrid(levels, steps, offset, not settings.get("set_alpha_to_one", True))


@torch.no_grad()
def encode(root: Path, texts: Sequence[str]) -> Float[Tensor, "n tokens width"]:
    """Texts as the folder's encoder sees them, padded to its context.

    Raises:
        ValueError: For a text that is longer than the context.
    """
    transformers = _library("transformers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(
        root / "tokenizer", local_files_only=True
    )
    encoder = _weights(transformers.CLIPTextModel, root / "text_encoder").eval()
    context = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    for text, ids in zip(texts, tokenizer(list(texts)).input_ids, strict=True):
        if len(ids) > context:
            raise ValueError(
                f"Prompt {text!r} has {len(ids)} tokens with its begin and end, the encoder of "
                f"{root} reads {context}; shorten it."
            )
    inputs = tokenizer(list(texts), padding="max_length", max_length=context, return_tensors="pt")
    masks = inputs.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    encoded = []
    for first in range(0, len(texts), BATCH):
        rows = slice(first, first + BATCH)
        mask = None if masks is None else masks[rows]
        encoded.append(encoder(inputs.input_ids[rows], attention_mask=mask)[0])
    return torch.cat(encoded)


def _library(name: str) -> Any:
    """A library of the extra, imported when it is needed.

    Raises:
        ImportError: Without it; says what to install.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"Text-to-image models need {name}, which cannot be imported ({error}); "
            "pip install 'robustguide[latent]'."
        ) from error


def _settings(path: Path) -> dict[str, Any]:
    """A JSON object of the folder.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} is not there; give the folder of a pipeline, as `save_pretrained` of "
            "diffusers writes it, with unet, text_encoder, tokenizer and scheduler."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); copy the folder again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not settings by name.")
    return content


def _check_parts(index: dict[str, Any], root: Path) -> None:
    """Refuses other pipelines, and parts whose code would come with the folder.

    Raises:
        ValueError: Names what the folder holds.
    """
    found = {"pipeline": index.get("_class_name")}
    for part in PARTS:
        entry = index.get(part)
        found[part] = entry[-1] if isinstance(entry, list) and entry else entry
    wanted = {"pipeline": PIPELINE, **PARTS}
    if odd := [f"{part} is {found[part]!r}" for part in wanted if found[part] != wanted[part]]:
        raise ValueError(
            f"{root} is no Stable Diffusion 1 or 2: its {', '.join(odd)}; this reader knows "
            f"{', '.join(wanted.values())}. For another model, write a network called as "
            "net(x_t, t, y) and give it to EpsDenoiser or VDenoiser."
        )


def _levels(scheduler: dict[str, Any], root: Path, interpolated: bool) -> DiscreteLevels:
    """The chain that the network was trained on.

    Raises:
        ValueError: For a schedule that is not known, or ends in pure noise.
    """
    if scheduler.get("rescale_betas_zero_snr"):
        raise ValueError(
            f"{root} was trained to a level without any signal (rescale_betas_zero_snr), where "
            "sigma is infinite; such models cannot be read."
        )
    steps = scheduler.get("num_train_timesteps", 1000)
    first, last = scheduler.get("beta_start", 0.0001), scheduler.get("beta_end", 0.02)
    kind, betas = scheduler.get("beta_schedule", "linear"), scheduler.get("trained_betas")
    if betas is not None:
        return DiscreteLevels(betas, interpolated)
    if kind == "linear":
        return DiscreteLevels(np.linspace(first, last, steps).tolist(), interpolated)
    if kind == "scaled_linear":
        return scaled_linear_levels(steps, first, last, interpolated)
    if kind == "squaredcos_cap_v2":
        return cosine_levels(steps, interpolated)
    raise ValueError(
        f"{root} has the schedule {kind!r}; this reader knows linear, scaled_linear and "
        "squaredcos_cap_v2, and a list of trained_betas."
    )


def _weights(cls: Any, folder: Path) -> Any:
    """A part of the pipeline with its weights, in float32.

    Raises:
        FileNotFoundError: No weights.
        ValueError: Pickled weights alone, or weights that do not fit.
    """
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(
            path.name for kind in ("*.bin", "*.ckpt", "*.pt") for path in folder.glob(kind)
        )
        if pickled:
            raise ValueError(
                f"{folder} holds its weights as {pickled[0]}, a pickle, which may run code when "
                "opened; get the folder with .safetensors files."
            )
        raise FileNotFoundError(f"{folder} holds no .safetensors file; copy the folder again.")
    try:
        module, loading = cls.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split("\n")[:2])  # what follows is advice that does not help
        raise ValueError(f"{folder} cannot be read as a {cls.__name__}: {reason}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        # Position indices of old text encoders are constants, which newer ones compute.
        odd = sorted(str(k) for k in loading[what] if not str(k).endswith("position_ids"))
        if odd:
            raise ValueError(
                f"The weights in {folder} do not fit its config.json: {len(odd)} "
                f"{what.replace('_', ' ')}, such as {odd[0]}; copy the folder again."
            )
    return module.float()


def _shape(config: Any, root: Path) -> tuple[int, int, int]:
    """Channels, height and width of the latents.

    Raises:
        ValueError: For a network that is fed more than the latents.
    """
    if config.in_channels != config.out_channels:
        raise ValueError(
            f"The network of {root} reads {config.in_channels} channels and predicts "
            f"{config.out_channels}: it inpaints or enlarges; give a plain text-to-image model."
        )
    size = config.sample_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return config.in_channels, height, width
