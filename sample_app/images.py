"""Reads images and draws thumbnails."""

import base64
import struct
import warnings
import zlib
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
import numpy.typing as npt
import pydicom

Volume = npt.NDArray[np.float64]
"""Intensities, of shape (frames, rows, columns)."""

NIBABEL_SUFFIXES: Final = (".nii", ".nii.gz", ".mnc", ".mgz", ".hdr", ".HEAD", ".PAR", ".v")
DICOM_SUFFIXES: Final = (".dcm", "")
PIXEL_SUFFIXES: Final = {".hdr": (".img",), ".PAR": (".REC",), ".HEAD": (".BRIK", ".BRIK.gz")}
"""Files with the pixels, if the header is in a separate file."""

DICOM_PIXELS: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
HDF5_MAGIC: Final = b"\x89HDF"


def is_image(path: Path) -> bool:
    """Whether the file is named like an image. It may still be unreadable."""
    if path.name.startswith((".", "README")):
        return False
    return path.name.endswith(NIBABEL_SUFFIXES) or path.suffix in DICOM_SUFFIXES


def holds_image(path: Path) -> bool:
    """Whether the file has pixels that this machine has a reader for. They may still be broken.

    A DICOM file may hold a report or a plan instead. Pixels may be in a second file that is not
    there, and an HDF5 file needs h5py.
    """
    if path.suffix in DICOM_SUFFIXES:
        with warnings.catch_warnings(action="ignore"):
            dataset = pydicom.dcmread(path, force=True, specific_tags=list(DICOM_PIXELS))
        return any(name in dataset for name in DICOM_PIXELS)
    beside = PIXEL_SUFFIXES.get(path.suffix)
    if beside and not any(path.with_suffix(suffix).exists() for suffix in beside):
        return False
    with path.open("rb") as file:
        return file.read(len(HDF5_MAGIC)) != HDF5_MAGIC or find_spec("h5py") is not None


def installed_directories() -> list[Path]:
    """Directories of the images that nibabel and pydicom are tested with."""
    return [Path(str(files("nibabel") / "tests" / "data")), Path(str(files("pydicom") / "data"))]


def describe(path: Path) -> tuple[str, str, str]:
    """Description, modality and subject from the header; by default the file's name, "" and ""."""
    if path.suffix not in DICOM_SUFFIXES:
        return path.name.split(".")[0], "", ""
    with warnings.catch_warnings(action="ignore"):
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    descriptions = [_text(dataset, name) for name in ("StudyDescription", "SeriesDescription")]
    description = ": ".join(filter(None, descriptions)) or path.stem
    return description, _text(dataset, "Modality"), _text(dataset, "PatientID")


def read_volume(path: Path) -> Volume:
    """Intensities of a scan of any format. Raises the exceptions of nibabel and pydicom."""
    pixels: npt.NDArray[Any]
    if path.suffix in DICOM_SUFFIXES:
        dataset = pydicom.dcmread(path)
        try:
            pixels = dataset.pixel_array
        except RuntimeError as error:
            # The last line has the decoder's reason, and a list of failures shows one line.
            raise RuntimeError(str(error).splitlines()[-1].strip()) from error
        if dataset.get("SamplesPerPixel", 1) > 1:
            pixels = pixels.mean(axis=-1)
    else:
        image = nibabel.load(path)
        # Stored with columns first, then rows, slices and times.
        pixels = np.asarray(image.dataobj).T  # type: ignore[attr-defined]
    return pixels.astype(np.float64).reshape(-1, *pixels.shape[-2:])


def draw_thumbnail(volume: Volume, *, pixels: int = 64) -> str:
    """The middle frame as a PNG in a `data:` URI, at most `pixels` wide and high."""
    frame = volume[len(volume) // 2]
    step = max(1, -(-max(frame.shape) // pixels))
    frame = np.nan_to_num(frame[::step, ::step])
    low, high = frame.min(), frame.max()
    grey = ((frame - low) * (255 / (high - low or 1))).astype(np.uint8)
    return "data:image/png;base64," + base64.b64encode(_encode_png(grey)).decode()


def _encode_png(grey: npt.NDArray[np.uint8]) -> bytes:
    height, width = grey.shape
    # Each row starts with its filter: 0, for none. The header's 8, 0 stand for eight bits of grey.
    rows = b"".join(b"\0" + row.tobytes() for row in grey)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _text(dataset: pydicom.Dataset, name: str) -> str:
    return str(dataset.get(name) or "").strip()
