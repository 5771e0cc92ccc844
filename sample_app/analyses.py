"""Analyses of scans. Never edit a version that is in use; add a new one instead."""

from pathlib import Path
from typing import Any, Final

import numpy as np

from autorun.analysis import analysis
from sample_app.images import Volume, draw_thumbnail, read_volume

TITLE: Final = "Scan Preprocessing"

RESAMPLING_STEPS: Final = {"faster": 2, "finer": 1}


@analysis(TITLE, version="1.0")
def preprocess(input_file: Path, *, harder: bool, better: int, stronger: str) -> dict[str, Any]:
    """Intensities of a scan, resampled, clipped and normalised.

    `harder` normalises to z-scores; `better` is the percentile at which bright voxels are clipped;
    `stronger` is "faster" for every other voxel or "finer" for all of them.
    """
    volume = _resample(read_volume(input_file), stronger=stronger)
    return _summarise(volume, volume.ravel(), harder=harder, better=better)


@analysis(TITLE, version="1.1")
def preprocess_foreground(
    input_file: Path, *, harder: bool, better: int, stronger: str
) -> dict[str, Any]:
    """Like version 1.0, but without the air around the body: only voxels above the mean count."""
    volume = _resample(read_volume(input_file), stronger=stronger)
    foreground = volume[volume > np.nanmean(volume)]
    # An image of one colour has no foreground.
    voxels = foreground if foreground.size else volume.ravel()
    return _summarise(volume, voxels, harder=harder, better=better)


@analysis("Subject Intensity", version="1.0")
def compare_scans(means: list[float]) -> dict[str, Any]:
    """The mean intensity of a subject's scans, and the lowest and the highest of their means."""
    return {"scans": len(means), "mean": np.mean(means), "range": [min(means), max(means)]}


def _resample(volume: Volume, *, stronger: str) -> Volume:
    try:
        step = RESAMPLING_STEPS[stronger]
    except KeyError:
        known = ", ".join(map(repr, RESAMPLING_STEPS))
        raise ValueError(f"stronger must be one of {known}, not {stronger!r}.") from None
    return volume[:, ::step, ::step]


def _summarise(volume: Volume, voxels: Volume, *, harder: bool, better: int) -> dict[str, Any]:
    ceiling = np.nanpercentile(voxels, better)
    voxels = np.minimum(voxels, ceiling)
    mean, deviation = np.nanmean(voxels), np.nanstd(voxels)
    volume = np.minimum(volume, ceiling)
    if harder:
        volume = (volume - mean) / (deviation or 1.0)
    return {
        "shape": volume.shape,
        "mean": mean,
        "std": deviation,
        "percentile": ceiling,
        "range": [np.nanmin(volume), np.nanmax(volume)],
        "thumbnail": draw_thumbnail(volume),
    }
