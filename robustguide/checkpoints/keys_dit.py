"""Names of the parameters of a diffusion transformer: published, ours, and those of `diffusers`.

Three files of names hold the same tensors. Published ones stack the query, key and value
matrices of a block into one; folders of `diffusers` repeat the embedding of t and y in every
block.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

Names = dict[str, tuple[str, ...]]

# Prefixes of a weight and a bias each; several of ours are stacked in the published one.
ENDS: Names = {
    "x_embedder.proj": ("transformer.pos_embed.proj",),
    "t_embedder.mlp.0": ("time.0",),
    "t_embedder.mlp.2": ("time.2",),
    "final_layer.linear": ("transformer.proj_out_2",),
    "final_layer.adaLN_modulation.1": ("transformer.proj_out_1",),
}
BLOCK: Names = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
    "adaLN_modulation.1": ("norm1.linear",),
}
TABLE = {
    "y_embedder.embedding_table.weight": ("labels.weight",),
    "pos_embed": ("transformer.pos_embed.pos_embed",),
}
# What diffusers keeps in every block, below `transformer_blocks.N.norm1.emb.`
REPEATED = {
    "timestep_embedder.linear_1.weight": "time.0.weight",
    "timestep_embedder.linear_1.bias": "time.0.bias",
    "timestep_embedder.linear_2.weight": "time.2.weight",
    "timestep_embedder.linear_2.bias": "time.2.bias",
    "class_embedder.embedding_table.weight": "labels.weight",
}
REPAIR = "give the state dict of one whole DiT (of a training script's file, its part 'ema')"


def layout(depth: int) -> Names:
    """Our names by the published one, for a network of so many blocks."""
    layers = dict(ENDS)
    for n in range(depth):
        for theirs, ours in BLOCK.items():
            layers[f"blocks.{n}.{theirs}"] = tuple(
                f"transformer.transformer_blocks.{n}.{name}" for name in ours
            )
    return TABLE | {
        f"{theirs}.{kind}": tuple(f"{name}.{kind}" for name in ours)
        for theirs, ours in layers.items()
        for kind in ("weight", "bias")
    }


def to_ours(tensors: Mapping[str, Tensor], prefix: str = "net.") -> dict[str, Tensor]:
    """Tensors of a published DiT under the names of `robustguide.nets.DiT`, without copies.

    Args:
        tensors: The state dict.
        prefix: Of our names; the network is the `net` of a denoiser.

    Raises:
        ValueError: For names that are missing or unknown, or a stack that cannot be divided.
    """
    names = layout(depth_of(tensors, r"blocks\.(\d+)\."))
    complete(tensors, names, "a published DiT")
    renamed: dict[str, Tensor] = {}
    for theirs, ours in names.items():
        parts = unstacked(theirs, tensors[theirs], len(ours))
        renamed |= {prefix + name: part for name, part in zip(ours, parts, strict=True)}
    return renamed


def unstacked(name: str, tensor: Tensor, count: int) -> Sequence[Tensor]:
    """Equal parts along the first axis.

    Raises:
        ValueError: For a tensor that has none.
    """
    if count == 1:
        return [tensor]
    if not tensor.ndim or tensor.shape[0] % count:
        raise ValueError(
            f"{name} should stack {count} matrices, but has shape {list(tensor.shape)}; {REPAIR}."
        )
    return torch.tensor_split(tensor, count)


def to_official(tensors: Mapping[str, Tensor], prefix: str = "net.") -> dict[str, Tensor]:
    """The way back: tensors of our DiT under the published names.

    Args:
        tensors: The state dict.
        prefix: Of our names.

    Raises:
        ValueError: For names that are missing or unknown.
    """
    block = re.escape(prefix) + r"transformer\.transformer_blocks\.(\d+)\."
    names = {
        theirs: [prefix + name for name in ours]
        for theirs, ours in layout(depth_of(tensors, block)).items()
    }
    complete(tensors, (name for ours in names.values() for name in ours), "a DiT of this package")
    return {
        theirs: tensors[ours[0]] if len(ours) == 1 else torch.cat([tensors[n] for n in ours])
        for theirs, ours in names.items()
    }


def from_diffusers(
    tensors: Mapping[str, Tensor], positions: Tensor, prefix: str = "net."
) -> dict[str, Tensor]:
    """Tensors of the folder `transformer` of a DiT pipeline under the names of our DiT.

    Args:
        tensors: The state dict of a `DiTTransformer2DModel`.
        positions: Embedding of the positions (1, tokens, hidden), which that one does not hold;
            that of the network to be filled.
        prefix: Of our names.

    Raises:
        ValueError: For names that are missing or unknown, or blocks that embed t or y otherwise
            than the first does.
    """
    depth = depth_of(tensors, r"transformer_blocks\.(\d+)\.")
    ours = {name for several in layout(depth).values() for name in several}
    position_table = TABLE["pos_embed"][0]
    own = ours - {position_table, *REPEATED.values()}
    once = {name.removeprefix("transformer."): name for name in own}
    repeated = {
        f"transformer_blocks.{n}.norm1.emb.{theirs}": name
        for n in range(depth)
        for theirs, name in REPEATED.items()
    }
    complete(tensors, (*once, *repeated), "a DiT of diffusers")
    renamed = {name: tensors[theirs] for theirs, name in once.items()}
    for theirs, name in repeated.items():
        if not torch.equal(renamed.setdefault(name, tensors[theirs]), tensors[theirs]):
            raise ValueError(
                f"{theirs} differs from that of the first block: these blocks embed t and y each "
                "in their own way, which no published DiT does; load it with diffusers."
            )
    renamed[position_table] = positions
    return {prefix + name: tensor for name, tensor in renamed.items()}


def depth_of(names: Iterable[str], block: str) -> int:
    """Number of blocks that the names mention; a high number in a broken file costs nothing."""
    return len({match[1] for name in names if (match := re.match(block, name))})


def complete(given: Iterable[str], wanted: Iterable[str], what: str) -> None:
    """Refuses other names than those wanted.

    Raises:
        ValueError: Names the first few that are missing or unknown.
    """
    given, wanted = set(given), set(wanted)
    problems = [
        f"{len(names)} {kind} ({', '.join(sorted(names)[:4])}{', ...' if len(names) > 4 else ''})"
        for kind, names in (("missing", wanted - given), ("unknown", given - wanted))
        if names
    ]
    if problems:
        raise ValueError(
            f"These are not the tensors of {what}: {' and '.join(problems)}; {REPAIR}."
        )
