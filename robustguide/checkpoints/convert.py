"""Rewrites a published file as one that describes itself and that no reader has to distrust."""

from pathlib import Path

from robustguide.cards import Card, folder
from robustguide.checkpoints.description import described
from robustguide.checkpoints.export import write
from robustguide.checkpoints.load import fitting, outline
from robustguide.checkpoints.metadata import sha256_of


def convert(card: Card, path: str | Path, output: str | Path | None = None) -> Path:
    """Writes the tensors of a published file, bit for bit, with its card in the header.

    Args:
        card: What the file is.
        path: The published file.
        output: Name of the new file; null is the card's, in the folder of checkpoints.

    Returns:
        The new file, which `load_denoiser`, `load_classifier` or `load_codec` reads.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that cannot be read safely, or is not the card's.
        OSError: The new file could not be written; nothing is left of it.
    """
    source = Path(path).expanduser()
    target = folder() / card.converted if output is None else Path(output).expanduser()
    tensors = fitting(card, source, outline(card.specification))
    metadata = described(card, source)
    metadata.extra["file_sha256"] = sha256_of(source)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write(target, contiguous, metadata.header())
    return target
