"""Decodes a folder of chest X-rays once, into an 8-bit memory map that training reads at random.

The images are prepared as CheXzero prepares them: long side resized (Lanczos), centred on a black square. Decoding
2–3 k pixel JPEGs costs far more than a training step, so it is done once, in parallel, and kept. A run that was killed
goes on where it stopped; images that cannot be read are listed and left out.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product, repeat
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from tmixture.progress import progress_bar

log = logging.getLogger(__name__)

PIXEL_MEAN, PIXEL_STD = 101.48761, 83.43944
"""CheXzero's normalisation, of pixels from 0 to 255."""

CHUNK = 512  # images decoded between two moments from which a killed run can go on


class ImageStore:
    """The decoded images, read from disk on demand.

    Attributes:
        rows: (n,) row of each image in the cohort that was decoded. Take `cohort.subset(store.rows)` once, and cohort,
            store and datasets number the images alike from then on.
        failures: `dicom_id`, `path` and `reason` of each image that could not be read.
    """

    def __init__(self, file: Path, rows: npt.NDArray[np.intp], failures: pd.DataFrame) -> None:
        """Opens the memory map `file` and shows the given rows of it."""
        self.rows, self.failures = rows, failures
        self._file = file
        self._pixels = np.load(file, mmap_mode="r")

    def __reduce__(self) -> tuple[object, ...]:
        """Travels to a loader's worker process as the name of the file: the pixels stay on disk."""
        return ImageStore, (self._file, self.rows, self.failures)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def __getitem__(self, index: int | npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """(size, size) uint8 pixels of one image, or (n, size, size) of several."""
        return np.array(self._pixels[self.rows[index]])


class ChestXrays(Dataset[tuple[Tensor, int]]):
    """Some images of a store as a data set of (image, index); the index is the one in the store.

    The image is float (3, size, size) with CheXzero's normalisation, or with `raw=True` uint8 (size, size), a twelfth
    of the bytes, for a training loop that calls `normalize` on the device.
    """

    def __init__(
        self, store: ImageStore, indices: Sequence[int] | npt.NDArray[np.integer], *, raw: bool = False
    ) -> None:
        """Shows the images `indices` of `store`, in that order."""
        self.store, self.indices, self.raw = store, np.asarray(indices), raw

    def __len__(self) -> int:
        """Number of images."""
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """Image number i and its index in the store."""
        index = int(self.indices[i])
        pixels = torch.from_numpy(self.store[index])
        return (pixels if self.raw else normalize(pixels)), index


def normalize(pixels: Tensor) -> Tensor:
    """Grey images (…, H, W) of 0 to 255 as float (…, 3, H, W) with CheXzero's normalisation."""
    grey = (pixels.float() - PIXEL_MEAN) / PIXEL_STD
    return grey.unsqueeze(-3).expand(*pixels.shape[:-2], 3, *pixels.shape[-2:])


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Light augmentation of a normalised batch (B, C, H, W): what varies between two takes of the same chest.

    Turns by up to 5°, shifts by up to 5 %, scales by up to 5 %, and changes contrast and brightness by up to 10 %.
    Never mirrors: the heart lies left.

    Args:
        images: the batch, on any device.
        generator: source of randomness, on the CPU, so that every device draws the same.
    """
    angle, dx, dy, log_scale, contrast, brightness = (2 * torch.rand(6, len(images), generator=generator) - 1).to(
        images
    )
    angle, scale = angle * np.deg2rad(5), torch.exp(log_scale * 0.05)
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    affine = torch.stack([cos, -sin, dx * 0.1, sin, cos, dy * 0.1], dim=1).view(-1, 2, 3)  # grids run from -1 to 1
    grid = torch.nn.functional.affine_grid(affine, list(images.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return moved * (1 + 0.1 * contrast).view(-1, 1, 1, 1) + (0.1 * brightness).view(-1, 1, 1, 1)


def decode(path: Path | str, size: int) -> npt.NDArray[np.uint8]:
    """One image file as CheXzero's square: long side resized to `size`, the rest black.

    JPEGs are decoded at the smallest scale that is still at least twice the wanted size (Pillow's draft mode): twice as
    fast, and within a grey level of decoding them in full.
    """
    with Image.open(path) as image:
        scale = size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image.draft("L", (2 * width, 2 * height))
        resized = image.convert("L").resize((width, height), Image.Resampling.LANCZOS)
    square = np.zeros((size, size), dtype=np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = np.asarray(resized)
    return square


def find_images(data_root: Path | str, paths: Sequence[str]) -> list[Path]:
    """Where the images of a label file lie under `data_root`, in any of the usual layouts.

    Besides MIMIC-CXR-JPG's own `files/pXX/…/<dicom>.jpg` these are resized copies: folders such as `files-512/` or
    `mimic-cxr-jpg-224/`, suffixes such as `<dicom>_320.jpg`, and PNG. The layout in which most of some fifty images
    spread over the list exist is taken for all.

    Raises:
        ValueError: none of them exist in any layout; names what was tried.
    """
    root = Path(data_root).resolve()
    tails = [PurePosixPath(path.removeprefix("files/")) for path in paths]
    sample = tails[:: max(1, len(tails) // 50)]
    layouts = list(product(_image_folders(root), ("", "_320", "_224", "_512", "_256"), (".jpg", ".png")))

    def place(layout: tuple[Path, str, str], tail: PurePosixPath) -> Path:
        folder, suffix, extension = layout
        return folder / tail.with_name(tail.stem + suffix + extension)

    hits = [sum(place(layout, tail).is_file() for tail in sample) for layout in layouts]
    if max(hits) == 0:
        tried = sorted({str(folder) for folder, _, _ in layouts})
        raise ValueError(
            f"data_root: found none of {len(sample)} images tried, such as {paths[0]!r}, in any of the folders {tried} "
            f"with the endings .jpg, .png, _320.jpg, _224.jpg, _512.jpg, _256.jpg"
        )
    best = layouts[int(np.argmax(hits))]
    log.info("images: %d of %d tried are like %s", max(hits), len(sample), place(best, sample[0]))
    return [place(best, tail) for tail in tails]


def _image_folders(root: Path) -> Iterator[Path]:
    """Folders that may hold `pXX/…`: `files` first, then its resized copies, the root itself and copies below it."""
    for parent in (
        root,
        *sorted(root.glob("mimic-cxr-jpg*/")),
        *sorted(root.glob("physionet.org/files/mimic-cxr-jpg/*/")),
    ):
        yield parent / "files"
        yield from sorted(parent.glob("files[-_]*/"))
        yield parent


def decode_images(
    images: pd.DataFrame, data_root: Path | str, cache_root: Path | str, *, size: int = 224, workers: int | None = None
) -> ImageStore:
    """Decodes the images that are not yet in the cache, and opens it.

    The cache is a folder of `cache_root` whose name holds the size and a digest of the list of image files: another
    cohort gets another folder, and an image file that was replaced since is decoded again. Interrupted at any time, by
    Ctrl-C, a kill or a full disk, the next call goes on; images that could not be read are tried again.

    Args:
        images: table with `dicom_id` and `path`, such as `Cohort.images`.
        data_root: folder of the images, see `find_images`.
        cache_root: where the cache may go; size² bytes are needed per image.
        size: side of the decoded squares, in pixels.
        workers: decoding threads (Pillow decodes outside Python's global lock); None leaves the number to Python.

    Raises:
        ValueError: no image was found, or none could be read.
        OSError: the disk is full.
    """
    if size < 1:
        raise ValueError(f"size: got {size}, need a positive number of pixels")
    files = find_images(data_root, images["path"].tolist())
    folder = _cache_folder(Path(cache_root), files, size)
    stamps = np.load(folder / "stamps.npy", mmap_mode="r+")
    stamps[[i for i, file in enumerate(files) if stamps[i] and _stamp(file) not in (0, stamps[i])]] = 0
    try:
        failures = _decode_missing(folder / "pixels.npy", stamps, images, files, workers)
        failures.to_csv(folder / "failures.csv.part", index=False)
        os.replace(folder / "failures.csv.part", folder / "failures.csv")
    except OSError as error:
        message = f"cannot keep decoded images: {error.strerror}; what is done is kept, run again to go on"
        raise OSError(error.errno, message, str(folder)) from error
    if not stamps.any():
        raise ValueError(
            f"data_root: none of {len(files)} images can be read; the first one: {failures['reason'].iloc[0]}"
        )
    if len(failures):
        log.warning(
            "%d of %d images cannot be read and are left out: %s", len(failures), len(files), folder / "failures.csv"
        )
    return ImageStore(folder / "pixels.npy", np.flatnonzero(stamps), failures)


def _cache_folder(cache_root: Path, files: list[Path], size: int) -> Path:
    """The folder that holds, or is going to hold, these images at this size.

    In it: `pixels.npy`, (n, size, size) uint8, and `stamps.npy`, (n,) int64: 0 while an image is not decoded, else the
    modification time of the file it came from.
    """
    digest = hashlib.sha256("\n".join(map(str, files)).encode()).hexdigest()
    folder = cache_root / f"images-{size}-{len(files)}-{digest[:12]}"
    if folder.is_dir():
        return folder
    cache_root.mkdir(parents=True, exist_ok=True)
    needed, free = len(files) * size**2, shutil.disk_usage(cache_root).free
    if needed > free:
        raise OSError(
            errno.ENOSPC, f"decoded images need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free", str(cache_root)
        )
    new = Path(tempfile.mkdtemp(dir=cache_root, prefix="new-"))  # renamed when complete: the final name can be trusted
    try:
        np.save(new / "stamps.npy", np.zeros(len(files), dtype=np.int64))
        np.lib.format.open_memmap(new / "pixels.npy", mode="w+", dtype=np.uint8, shape=(len(files), size, size))
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


def _decode_missing(
    pixels_file: Path, stamps: npt.NDArray[np.int64], images: pd.DataFrame, files: list[Path], workers: int | None
) -> pd.DataFrame:
    """Decodes the images without a stamp into `pixels_file`; returns those that could not be read.

    Written as a file and not through the memory map, where a full disk would kill the process without a word.
    """
    layout = np.load(pixels_file, mmap_mode="r")
    todo, failures = np.flatnonzero(stamps == 0), []
    with (
        ThreadPoolExecutor(workers) as pool,
        open(pixels_file, "r+b") as pixels,
        progress_bar(total=len(files), initial=len(files) - len(todo), desc="decoding images", unit="image") as bar,
    ):
        for chunk in np.split(todo, range(CHUNK, len(todo), CHUNK)):
            done = []
            for i, result in zip(
                chunk, pool.map(_decode_or_reason, (files[i] for i in chunk), repeat(layout.shape[1]))
            ):
                if isinstance(result, str):
                    failures.append((images["dicom_id"].iloc[i], str(files[i]), result))
                    continue
                pixels.seek(layout.offset + int(i) * result.size)
                pixels.write(result.tobytes())
                done.append(i)
            pixels.flush()
            os.fsync(pixels.fileno())  # the pixels before the stamps that vouch for them
            stamps[done] = [max(1, _stamp(files[i])) for i in done]
            bar.update(len(chunk))
    return pd.DataFrame(failures, columns=["dicom_id", "path", "reason"])


def _decode_or_reason(file: Path, size: int) -> npt.NDArray[np.uint8] | str:
    """The decoded image, or why there is none: decoders of damaged files stumble with all kinds of errors."""
    try:
        return decode(file, size)
    except FileNotFoundError:
        return "there is no such file"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _stamp(file: Path) -> int:
    """Modification time of a file, 0 if there is none."""
    try:
        return max(1, file.stat().st_mtime_ns)
    except FileNotFoundError:
        return 0
