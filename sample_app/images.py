"""Reading images, and drawing small ones."""

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
"""Where the pixels are, for a header that is a file of its own."""

HDF5_MAGIC: Final = b"\x89HDF"


def is_image(path: Path) -> bool:
    """Whether the name is that of an image; whether it can be read is another matter."""
    if path.name.startswith((".", "README")):
        return False
    return path.name.endswith(NIBABEL_SUFFIXES) or path.suffix in DICOM_SUFFIXES


def is_readable_here(path: Path) -> bool:
    """Whether the file that holds the pixels is there, and h5py where the image is an HDF5 file.

    Whether the content makes sense is another matter.
    """
    beside = PIXEL_SUFFIXES.get(path.suffix)
    if beside and not any(path.with_suffix(suffix).exists() for suffix in beside):
        return False
    with path.open("rb") as file:
        return file.read(len(HDF5_MAGIC)) != HDF5_MAGIC or find_spec("h5py") is not None


def installed_directories() -> list[Path]:
    """Where nibabel and pydicom keep the images they are tested with."""
    return [Path(str(files("nibabel") / "tests" / "data")), Path(str(files("pydicom") / "data"))]


def describe(path: Path) -> tuple[str, str]:
    """Description and modality from the header; the file's name and "" where it tells nothing."""
    if path.suffix not in DICOM_SUFFIXES:
        return path.name.split(".")[0], ""
    with warnings.catch_warnings(action="ignore"):
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    told = [_text(dataset, name) for name in ("StudyDescription", "SeriesDescription")]
    return ": ".join(filter(None, told)) or path.stem, _text(dataset, "Modality")


def read_volume(path: Path) -> Volume:
    """Intensities of a scan of any format; raises what nibabel or pydicom raise."""
    pixels: npt.NDArray[Any]
    if path.suffix in DICOM_SUFFIXES:
        dataset = pydicom.dcmread(path)
        pixels = dataset.pixel_array
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
    # Each row opens with its filter: 0, none. The header's 8, 0 say eight bits of grey.
    rows = b"".join(b"\0" + row.tobytes() for row in grey)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _text(dataset: pydicom.Dataset, name: str) -> str:
    return str(dataset.get(name) or "").strip()
