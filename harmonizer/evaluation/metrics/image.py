"""Similarity of two images of one brain inside a brain mask on one grid.

The intensity range R that makes the numbers comparable is given by the caller and fixed for the
study (0.5 to 99.5 % range of the target). A range taken from each image would hide that a method
fades images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ...errors import InputError

__all__ = ["gradient_agreement", "mae", "ms_ssim", "psnr", "rmse", "ssim", "ssim_structure"]

WINDOW_SIGMA_VOXELS = 1.5  # voxels; Wang et al. 2004, section III-B
WINDOW_TRUNCATE_SIGMAS = 3.5  # sigmas, as scikit-image: radius 5, window 11
WINDOW_RADIUS_VOXELS = int(WINDOW_TRUNCATE_SIGMAS * WINDOW_SIGMA_VOXELS + 0.5)
K1, K2 = 0.01, 0.03  # Wang et al. 2004, section III-B
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2
GRADIENT_SIGMA_VOXELS = 1.0  # voxels
GRADIENT_MARGIN_VOXELS = 3  # removed at the border: the edge of the mask is not anatomy


def psnr(first: np.ndarray, second: np.ndarray, mask: np.ndarray, data_range: float) -> float:
    """Compute the peak signal-to-noise ratio inside the mask, 10 log10(R^2 / MSE).

    Parameters
    ----------
    first, second : ndarray, shape (I, J, K)
        Images on one grid.
    mask : ndarray of bool, shape (I, J, K)
        Voxels to compare.
    data_range : float
        R > 0, in intensity units.

    Returns
    -------
    float
        In dB, higher is more similar; infinite for equal images.

    Raises
    ------
    InputError
        If the shapes differ, the mask is empty or R is not positive.
    """
    with np.errstate(divide="ignore"):
        return float(-20.0 * np.log10(rmse(first, second, mask, data_range)))


def rmse(first: np.ndarray, second: np.ndarray, mask: np.ndarray, data_range: float = 1.0) -> float:
    """Compute the root mean squared difference inside the mask, divided by R.

    Parameters
    ----------
    first, second : ndarray, shape (I, J, K)
        Images on one grid.
    mask : ndarray of bool, shape (I, J, K)
        Voxels to compare.
    data_range : float
        R > 0, in intensity units.

    Returns
    -------
    float
        0 or more, lower is more similar.

    Raises
    ------
    InputError
        As `psnr`.
    """
    difference = _difference(first, second, mask, data_range)
    return float(np.sqrt(np.mean(difference**2)))


def mae(first: np.ndarray, second: np.ndarray, mask: np.ndarray, data_range: float = 1.0) -> float:
    """Compute the mean absolute difference inside the mask, divided by R.

    Parameters
    ----------
    first, second : ndarray, shape (I, J, K)
        Images on one grid.
    mask : ndarray of bool, shape (I, J, K)
        Voxels to compare.
    data_range : float
        R > 0, in intensity units.

    Returns
    -------
    float
        0 or more, lower is more similar.

    Raises
    ------
    InputError
        As `psnr`.
    """
    return float(np.mean(np.abs(_difference(first, second, mask, data_range))))


def ssim(first: np.ndarray, second: np.ndarray, mask: np.ndarray, data_range: float) -> float:
    """Compute the structural similarity with a 3D Gaussian window, mean inside the mask [1]_.

    Both images are set to zero outside the mask, so that windows at the border see no skull.

    Parameters
    ----------
    first, second : ndarray, shape (I, J, K)
        Images on one grid.
    mask : ndarray of bool, shape (I, J, K)
        Voxels to compare.
    data_range : float
        R > 0, in intensity units.

    Returns
    -------
    float
        -1 to 1, higher is more similar.

    Raises
    ------
    InputError
        As `psnr`.

    References
    ----------
    .. [1] Wang et al. 2004, Image quality assessment: from error visibility to structural
       similarity, eq. 13. doi:10.1109/TIP.2003.819861
    """
    from skimage.metrics import structural_similarity

    _check(first, second, mask, data_range)
    inside, one, two = _masked_box(mask, first, second)
    similarity = structural_similarity(
        one, two, data_range=data_range, gaussian_weights=True, sigma=WINDOW_SIGMA_VOXELS,
        use_sample_covariance=False, K1=K1, K2=K2, full=True)[1]
    return float(similarity[inside].mean(dtype=np.float64))


def ms_ssim(first: np.ndarray, second: np.ndarray, mask: np.ndarray, data_range: float
            ) -> tuple[float, int]:
    """Compute the multi-scale structural similarity inside the mask [1]_.

    Each scale halves the previous one by the mean of 2 x 2 x 2 voxels. The result is the product
    over scales of (mean contrast-structure term)^weight, with luminance at the coarsest scale. A
    brain that is too small for five scales of the 11-voxel window has fewer, with weights rescaled
    to sum 1.

    Parameters
    ----------
    first, second : ndarray, shape (I, J, K)
        Images on one grid.
    mask : ndarray of bool, shape (I, J, K)
        Voxels to compare.
    data_range : float
        R > 0, in intensity units.

    Returns
    -------
    value : float
        0 to 1, higher is more similar; a negative mean counts as 0.
    scales : int
        Number of scales, 1 to 5.

    Raises
    ------
    InputError
        As `psnr`.

    References
    ----------
    .. [1] Wang, Simoncelli and Bovik 2003, Multiscale structural similarity for image quality
       assessment, section 3.2. doi:10.1109/ACSSC.2003.1292216
    """
    # torchmetrics has MS-SSIM without a mask only. At coarse scales most windows reach beyond the
    # brain, and zeros that both images share raise the value of any two brains.
    _check(first, second, mask, data_range)
    inside, one, two = _masked_box(mask, first, second, margin=0)
    factors: list[tuple[float, float]] = []
    while True:
        factors.append(_ssim_means(inside, one, two, data_range))
        if (len(factors) == len(MS_SSIM_WEIGHTS)
                or min(inside.shape) // 2 < 2 * WINDOW_RADIUS_VOXELS + 1):
            break
        fraction = _halved(inside.astype(np.float64))
        one, two = (_halved(array) / np.maximum(fraction, 0.5) for array in (one, two))
        inside = fraction >= 0.5
        if not inside.any():
            break
    weights = np.array(MS_SSIM_WEIGHTS[:len(factors)]) / sum(MS_SSIM_WEIGHTS[:len(factors)])
    values = np.array([contrast for _, contrast in factors[:-1]] + [factors[-1][0]])
    return float(np.prod(np.maximum(values, 0) ** weights)), len(factors)


def _ssim_means(inside: np.ndarray, one: np.ndarray, two: np.ndarray, data_range: float
                ) -> tuple[float, float]:
    """Return the means of SSIM and of its contrast-structure term inside the mask, at one scale."""
    mean_one, mean_two, square_one, square_two, product = _window_moments(
        inside, one * inside, two * inside)
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    variance = square_one - mean_one**2 + square_two - mean_two**2
    contrast = (2 * (product - mean_one * mean_two) + c2) / (variance + c2)
    luminance = (2 * mean_one * mean_two + c1) / (mean_one**2 + mean_two**2 + c1)
    return float((luminance * contrast).mean()), float(contrast.mean())


def _window_moments(inside: np.ndarray, one: np.ndarray, two: np.ndarray) -> list[np.ndarray]:
    """Return both means, both mean squares and the mean product of the window at each voxel inside.

    Only voxels inside count. Both images are 0 elsewhere.
    """
    weight = _window(inside.astype(np.float64))[inside]
    return [_window(array)[inside] / weight for array in (one, two, one**2, two**2, one * two)]


def _halved(array: np.ndarray) -> np.ndarray:
    """Average blocks of 2 x 2 x 2 voxels; an odd last plane is dropped."""
    i, j, k = (n // 2 for n in array.shape)
    return array[:2 * i, :2 * j, :2 * k].reshape(i, 2, j, 2, k, 2).mean(axis=(1, 3, 5))


def ssim_structure(
    first: np.ndarray,
    second: np.ndarray,
    mask: np.ndarray,
    first_range: float,
    second_range: float | None = None,
) -> float:
    """Compute the structure term of SSIM, (cov + C3) / (std_1 std_2 + C3), inside the mask [1]_.

    Each image is divided by its own range first: gain and offset are not anatomy. Windows use only
    voxels inside the mask (normalized convolution [2]_), because the border of the mask is an edge
    that any two images share.

    Parameters
    ----------
    first, second : ndarray, shape (I, J, K)
        Images on one grid.
    mask : ndarray of bool, shape (I, J, K)
        Voxels to compare.
    first_range : float
        Intensity range of the first image, above 0.
    second_range : float, optional
        Intensity range of the second image; default: that of the first.

    Returns
    -------
    float
        -1 to 1, higher is more similar.

    Raises
    ------
    InputError
        As `psnr`.

    References
    ----------
    .. [1] Wang et al. 2004, eq. 10. doi:10.1109/TIP.2003.819861
    .. [2] Knutsson and Westin 1993, Normalized and differential convolution.
       doi:10.1109/CVPR.1993.341081
    """
    second_range = first_range if second_range is None else second_range
    _check(first, second, mask, min(first_range, second_range))
    return float(_structure(first, second, mask, first_range, second_range).mean())


def _structure(first: np.ndarray, second: np.ndarray, mask: np.ndarray, first_range: float,
               second_range: float) -> np.ndarray:
    """Return the structure term of SSIM at each voxel of the mask, shape (voxels,)."""
    inside, one, two = _masked_box(mask, first / first_range, second / second_range)
    mean_one, mean_two, square_one, square_two, product = _window_moments(inside, one, two)
    std_product = np.sqrt(np.maximum(square_one - mean_one**2, 0)
                          * np.maximum(square_two - mean_two**2, 0))
    c3 = K2**2 / 2
    return (product - mean_one * mean_two + c3) / (std_product + c3)


def gradient_agreement(
    first: np.ndarray,
    second: np.ndarray,
    mask: np.ndarray,
    spacing: Sequence[float] | np.ndarray = (1.0, 1.0, 1.0),
) -> float:
    """Compute the agreement of edge directions, sum(g1 . g2) / sum(|g1| |g2|), in the eroded mask.

    This is the cosine of the angle between the gradients (Gaussian derivatives of 1 voxel),
    weighted by both lengths. Gain and offset do not change it; an inverted contrast gives -1.

    Parameters
    ----------
    first, second : ndarray, shape (I, J, K)
        Images on one grid.
    mask : ndarray of bool, shape (I, J, K)
        Brain mask; 3 voxels at its border are left out.
    spacing : tuple of float
        Voxel size in mm.

    Returns
    -------
    float
        -1 to 1, higher is more similar; NaN if there is no gradient.

    Raises
    ------
    InputError
        As `psnr`.
    """
    _check(first, second, mask, 1.0)
    core = ndimage.binary_erosion(mask, iterations=GRADIENT_MARGIN_VOXELS)
    one, two = _gradient(first, core, spacing), _gradient(second, core, spacing)
    lengths = np.sum(np.linalg.norm(one, axis=0) * np.linalg.norm(two, axis=0))
    return float(np.sum(one * two) / lengths) if lengths > 0 else float("nan")


def _difference(first: np.ndarray, second: np.ndarray, mask: np.ndarray, data_range: float
                ) -> np.ndarray:
    _check(first, second, mask, data_range)
    return (first[mask].astype(np.float64) - second[mask]) / data_range


def _check(first: np.ndarray, second: np.ndarray, mask: np.ndarray, data_range: float) -> None:
    """Raise `InputError` unless arrays share a 3D grid, the mask is not empty and R is positive."""
    if first.ndim != 3 or not first.shape == second.shape == mask.shape:
        raise InputError(f"expected two images and a mask on one 3D grid, got {first.shape}, "
                         f"{second.shape} and {mask.shape}. Resample them first.")
    if mask.dtype != np.bool_ or not mask.any():
        raise InputError("expected a boolean mask with voxels in it, got "
                         f"{mask.dtype} with {np.count_nonzero(mask)}. Check the brain mask.")
    if not data_range > 0:
        raise InputError(f"expected an intensity range above 0, got {data_range}. "
                         "Check the target's images.")


def _masked_box(mask: np.ndarray, *arrays: np.ndarray,
                margin: int = WINDOW_RADIUS_VOXELS) -> tuple[np.ndarray, ...]:
    """Crop mask and arrays (zero outside the mask) to the mask's box plus `margin` voxels."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    pad = [(margin, margin)] * 3
    inside = np.pad(mask[box], pad)
    cut = [np.pad(np.where(mask[box], array[box], 0).astype(np.float64), pad) for array in arrays]
    return inside, *cut


def _window(array: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(array, WINDOW_SIGMA_VOXELS, truncate=WINDOW_TRUNCATE_SIGMAS)


def _gradient(array: np.ndarray, where: np.ndarray, spacing: Sequence[float] | np.ndarray
              ) -> np.ndarray:
    """Return the gradient at the voxels of `where`, shape (3, voxels), in intensity per mm."""
    array = array.astype(np.float32)
    return np.stack([
        ndimage.gaussian_filter(array, GRADIENT_SIGMA_VOXELS,
                                order=np.eye(3, dtype=int)[axis])[where] / spacing[axis]
        for axis in range(3)]).astype(np.float64)
