"""One image becomes one upright 8-bit RGB picture, by rules that are the same at every site."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worker.embedding import pictures
from worker.embedding.pictures import FULL_WHITE, BrokenImage

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    pictures.no_warnings()


def read(path: Path, white: int = FULL_WHITE) -> np.ndarray:
    picture = pictures.from_file(path, white)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def saved(path: Path, image: Image.Image, **how: object) -> Path:
    image.save(path, **how)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp"])
def test_colours_come_through_unchanged(tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    how = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(pixels), **how)
    assert (read(path) == pixels).all()


def test_the_ending_of_a_name_decides_nothing(tmp_path: Path) -> None:
    pixels = np.full((3, 3, 3), 7, np.uint8)
    path = saved(tmp_path / "a.jpg", Image.fromarray(pixels), format="PNG")
    assert (read(path) == 7).all()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    lying = Image.new("RGB", (2, 1))
    lying.putdata([RED, BLUE])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    path = saved(tmp_path / "a.png", lying, exif=exif)
    assert read(path).tolist() == [[list(RED)], [list(BLUE)]]


def test_grey_is_repeated(tmp_path: Path) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    path = saved(tmp_path / "a.png", Image.fromarray(grey))
    assert (read(path) == grey[:, :, None]).all()


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
@pytest.mark.parametrize("white", [65_535, 4_095])
def test_deep_grey_is_scaled_by_a_fixed_white(tmp_path: Path, suffix: str, white: int) -> None:
    deep = np.array([[0, white // 2, white, 65_535]], np.uint16)
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(deep))
    assert read(path, white)[0, :, 0].tolist() == [0, 127, 255, 255]


def test_deep_grey_does_not_depend_on_the_brightest_pixel(tmp_path: Path) -> None:
    dark = np.array([[100, 5_000]], np.uint16)
    lit = np.array([[100, 60_000]], np.uint16)
    values = [
        read(saved(tmp_path / f"{n}.png", Image.fromarray(each)))[0, 0, 0]
        for n, each in enumerate((dark, lit))
    ]
    assert values[0] == values[1]


def test_transparency_is_laid_on_black(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (3, 1))
    clear.putdata([(255, 255, 255, 0), (255, 255, 255, 255), (200, 100, 0, 51)])
    assert read(saved(tmp_path / "a.png", clear))[0].tolist() == [
        [0, 0, 0], [255, 255, 255], [40, 20, 0],
    ]  # fmt: skip


def test_palettes_and_cmyk_become_their_colours(tmp_path: Path) -> None:
    flat = Image.new("RGB", (4, 4), RED)
    indexed = saved(tmp_path / "a.gif", flat.convert("P", palette=Image.Palette.ADAPTIVE))
    printed = saved(tmp_path / "a.tiff", flat.convert("CMYK"))
    for path in (indexed, printed):
        assert np.abs(read(path).astype(int) - np.array(RED)).max() <= 2


def test_a_palette_with_a_transparent_colour_is_laid_on_black(tmp_path: Path) -> None:
    flat = Image.new("P", (2, 2), 0)
    flat.putpalette([255, 255, 255, 0, 0, 0])
    assert (read(saved(tmp_path / "a.png", flat, transparency=0)) == 0).all()


def _cut(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="PNG")
    path.write_bytes(path.read_bytes()[:4000])


def _text(path: Path) -> None:
    path.write_text("<svg onload='x'/>")


def _deep_float(path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.float32)).save(path, format="TIFF")


def _pages(path: Path) -> None:
    page = Image.new("L", (2, 2))
    page.save(path, format="TIFF", save_all=True, append_images=[page])


def _moving(path: Path) -> None:
    frames = [Image.new("L", (2, 2), shade) for shade in (0, 255)]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])


def _bomb(path: Path) -> None:
    """A PNG of a few hundred bytes that says it has 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def _just_too_large(path: Path) -> None:
    Image.new("1", (9_500, 9_500)).save(path, format="PNG")


def _eps(path: Path) -> None:
    """A format that would start another program."""
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (_cut, "cannot be decoded"),
        (_text, "cannot be decoded"),
        (_eps, "cannot be decoded"),
        (_deep_float, "32 bits"),
        (_pages, "several pages"),
        (_moving, "several pages"),
        (_bomb, "more than 89,478,485 pixels"),
        (_just_too_large, "more than 89,478,485 pixels"),
        (Path.touch, "cannot be decoded"),
        (os.mkfifo, "no regular file"),
        (lambda path: path.symlink_to(os.devnull), "cannot be opened"),
        (lambda path: None, "cannot be opened"),
    ],
    ids=["cut", "text", "eps", "float", "pages", "moving", "bomb", "large", "empty", "pipe",
         "link", "absent"],
)  # fmt: skip
def test_what_cannot_be_used_says_why(tmp_path: Path, write: object, says: str) -> None:
    path = tmp_path / "a.png"
    write(path)  # type: ignore[operator]
    with pytest.raises(BrokenImage, match=says):
        pictures.from_file(path, FULL_WHITE)


def test_damage_anywhere_is_an_error_or_a_picture(tmp_path: Path) -> None:
    """300 files with random bytes: whatever the decoders raise, it has one name."""
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    path, broken = tmp_path / "a.png", 0
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"):
        good = io.BytesIO()
        Image.fromarray(noise).save(good, format=kind)
        for _ in range(50):
            body = bytearray(good.getvalue())
            for place in rng.integers(0, len(body), 4):
                body[place] = rng.integers(0, 256)
            path.write_bytes(body)
            try:
                assert read(path).ndim == 3
            except BrokenImage:
                broken += 1
    assert 50 < broken < 300


def test_arrays_follow_the_same_rules(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for pixels in (
        rng.integers(0, 256, (5, 6), dtype=np.uint8),
        rng.integers(0, 256, (5, 6, 3), dtype=np.uint8),
        rng.integers(0, 65_536, (5, 6), dtype=np.uint16),
    ):
        path = saved(tmp_path / "a.png", Image.fromarray(pixels))
        assert (np.asarray(pictures.from_array(pixels, 40_000)) == read(path, 40_000)).all()
    one = rng.integers(0, 256, (5, 6, 1), dtype=np.uint8)
    assert (np.asarray(pictures.from_array(one, FULL_WHITE)) == one).all()
