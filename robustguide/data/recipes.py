"""Named recipes: how an image of any size becomes a square one, once, before anything is trained.

Published Fréchet distances hold for one recipe each, so they are followed to the bit; an image
that is too small is enlarged by the same filter.
"""

from PIL import Image

from robustguide.data.crops import center_crop, cut
from robustguide.data.images import Crop


def largest_square(image: Image.Image, size: int) -> Image.Image:
    """The largest central square, resized with Lanczos' filter. Karras et al. (2022), `edm`."""
    side = min(image.size)
    image = cut(image, side, (image.width - side) // 2, (image.height - side) // 2)
    return resized(image, (size, size), Image.Resampling.LANCZOS)


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """The Resize(size) and CenterCrop(size) of torchvision on a Pillow image.

    The shorter side becomes `size` pixels by the bilinear filter, which Pillow widens where it
    shrinks (antialias); the longer side is rounded down, the place of the square to even.
    """
    width, height = (size * side // min(image.size) for side in image.size)
    image = resized(image, (width, height), Image.Resampling.BILINEAR)
    return cut(image, size, round((width - size) / 2), round((height - size) / 2))


def resized(image: Image.Image, size: tuple[int, int], by: Image.Resampling) -> Image.Image:
    """The image itself where nothing changes."""
    return image if image.size == size else image.resize(size, by)


RECIPES: dict[str, Crop] = {
    "adm-center-crop": center_crop,
    "edm": largest_square,
    "torchvision": resize_and_crop,
}


def recipe(name: str) -> Crop:
    """The crop of this name.

    Raises:
        ValueError: If there is none.
    """
    if name not in RECIPES:
        raise ValueError(f"There is no recipe {name!r}; expected one of {', '.join(RECIPES)}.")
    return RECIPES[name]
