"""One image of a site as an upright 8-bit RGB picture. Every rule here is part of the contract.

* EXIF orientation is applied.
* Grey is repeated to three channels; palettes and CMYK become the colours that they stand for.
* 16-bit grey is scaled so that ``white`` becomes 255; nothing is fitted to the image.
* Transparency is laid on black.
* Images of 32 bits or several pages are refused: what is meant by them is not known.
"""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

RULES = "fhv-images-1"  # raise when a rule of this file changes what comes out
FULL_WHITE = 65_535
MAX_PIXELS = 89_478_485  # Pillow's own bound; 256 MiB of RGB
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM", "GIF")
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm", ".gif"}
)
_DEEP_GREY = {("I", "PNG"), ("I", "PPM")}  # 16 bits that Pillow hands out as 32


class BrokenImage(Exception):
    """An image that cannot be used; the message says why, without its name."""


def no_warnings() -> None:
    """For this process: none about metadata; an image that is too large is an error at once."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def in_words(white: int) -> str:
    """The rules, for the contract."""
    return (
        f"{RULES}: EXIF upright; RGB of 8 bits, grey repeated, 16-bit grey with white {white}, "
        "transparency on black"
    )


def from_file(path: Path, white: int) -> Image.Image:
    """The picture in a regular file; no link is followed. Raises ``BrokenImage``."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BrokenImage(f"cannot be opened ({error.strerror})") from None
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise BrokenImage("is no regular file")
        try:
            with Image.open(file, formats=FORMATS) as image:
                return _upright(image, white)
        except BrokenImage:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise BrokenImage(f"has more than {MAX_PIXELS:,} pixels") from None
        # Decoders of damaged files raise whatever they stumble over.
        except Exception as error:
            raise BrokenImage(f"cannot be decoded ({_short(error)})") from None


def from_array(pixels: NDArray[np.generic], white: int) -> Image.Image:
    """The picture in an array [h, w], [h, w, 1] or [h, w, 3] of uint8 or uint16."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype == np.uint16:
        pixels = _scaled(pixels, white)
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def _upright(image: Image.Image, white: int) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BrokenImage(f"has {width * height:,} pixels, more than {MAX_PIXELS:,}")
    # A phone's MPO is a photograph and its previews; the first is the photograph.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise BrokenImage("has several pages or frames; write each as a file of its own")
    image.load()
    kind = image.format or ""
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I;16") or (turned.mode, kind) in _DEEP_GREY:
        return Image.fromarray(_scaled(np.asarray(turned), white)).convert("RGB")
    if turned.mode in ("I", "F"):
        raise BrokenImage("has 32 bits a pixel; write it with 8 or 16")
    if turned.has_transparency_data:
        clear = turned.convert("RGBA")
        black = Image.new("RGBA", clear.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, clear).convert("RGB")
    return turned.convert("RGB")


def _scaled(pixels: NDArray[np.generic], white: int) -> NDArray[np.uint8]:
    shares = np.clip(pixels.astype(np.float64) / white, 0.0, 1.0)
    return np.asarray(np.rint(shares * 255.0), dtype=np.uint8)


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:120] if text else type(error).__name__
