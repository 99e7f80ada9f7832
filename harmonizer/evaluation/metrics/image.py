"""How near are two images of one brain, and did its anatomy stay where it was?

All measures are taken inside a brain mask on one grid. R, the intensity range that makes a number
comparable, is given by the caller and fixed for the whole study (the target's 0.5 to 99.5 % range),
never taken from the image at hand: an image may not choose its own ruler.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ...errors import InputError

__all__ = ["psnr", "rmse", "mae", "ssim", "ms_ssim", "ssim_structure", "structure_map",
           "gradient_agreement"]

WINDOW_SIGMA = 1.5  # voxels; Wang et al. 2004, section III-B
WINDOW_TRUNCATE = 3.5  # sigmas, as scikit-image: radius 5, window 11
WINDOW_RADIUS = int(WINDOW_TRUNCATE * WINDOW_SIGMA + 0.5)
K1, K2 = 0.01, 0.03  # Wang et al. 2004, section III-B
MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2
GRADIENT_SIGMA = 1.0  # voxels
GRADIENT_MARGIN = 3  # voxels taken off the mask, so that the mask's own edge is no anatomy


def psnr(first: np.ndarray, second: np.ndarray, mask: np.ndarray, data_range: float) -> float:
    """Peak signal to noise ratio in dB, 10 log10(R^2 / MSE) inside the mask; higher is nearer.

    Arrays (I, J, K) on one grid, ``data_range`` R > 0 in their units. Infinite for equal images.
    """
    with np.errstate(divide="ignore"):
        return float(-20.0 * np.log10(rmse(first, second, mask, data_range)))


def rmse(first: np.ndarray, second: np.ndarray, mask: np.ndarray, data_range: float = 1.0) -> float:
    """Root mean squared difference inside the mask over R; 0 to infinity, lower is nearer."""
    difference = _difference(first, second, mask, data_range)
    return float(np.sqrt(np.mean(difference**2)))


def mae(first: np.ndarray, second: np.ndarray, mask: np.ndarray, data_range: float = 1.0) -> float:
    """Mean absolute difference inside the mask over R; 0 to infinity, lower is nearer."""
    return float(np.mean(np.abs(_difference(first, second, mask, data_range))))


def ssim(first: np.ndarray, second: np.ndarray, mask: np.ndarray, data_range: float) -> float:
    """Structural similarity, 3D, Gaussian window of 1.5 voxels; mean of its map inside the mask.

    Range -1 to 1, higher is nearer. Outside the mask both images are set to zero first, so that
    windows reaching over the edge see no skull. Wang et al. 2004, doi:10.1109/TIP.2003.819861,
    eq. 13, with scikit-image's window.
    """
    from skimage.metrics import structural_similarity

    _check(first, second, mask, data_range)
    inside, one, two = _masked_box(mask, first, second)
    similarity = structural_similarity(
        one, two, data_range=data_range, gaussian_weights=True, sigma=WINDOW_SIGMA,
        use_sample_covariance=False, K1=K1, K2=K2, full=True)[1]
    return float(similarity[inside].mean(dtype=np.float64))


def ms_ssim(first: np.ndarray, second: np.ndarray, mask: np.ndarray, data_range: float
            ) -> tuple[float, int]:
    """Multi-scale SSIM inside the mask, and the number of scales that the brain has room for.

    product over scales of (mean cs_j)^w_j, the coarsest with luminance; each scale halves the last
    by the mean of 2 x 2 x 2 voxels. Range 0 to 1, higher is nearer; a negative mean counts as 0.
    Five scales with the weights of Wang, Simoncelli and Bovik 2003,
    doi:10.1109/ACSSC.2003.1292216; fewer where the mask's box would become narrower than the
    window of 11 voxels, the weights then rescaled to add up to one. Windows count only the voxels
    inside the mask, as in :func:`ssim_structure`: at a coarse scale most windows meet the mask's
    edge, and zeros that both images share would speak for any two brains.
    """
    _check(first, second, mask, data_range)
    inside, one, two = _masked_box(mask, first, second, margin=0)
    factors: list[tuple[float, float]] = []
    while True:
        factors.append(_ssim_means(inside, one, two, data_range))
        if len(factors) == len(MS_WEIGHTS) or min(inside.shape) // 2 < 2 * WINDOW_RADIUS + 1:
            break
        share = _halved(inside.astype(np.float64))
        one, two = (_halved(array) / np.maximum(share, 0.5) for array in (one, two))
        inside = share >= 0.5
        if not inside.any():
            break
    weights = np.array(MS_WEIGHTS[:len(factors)]) / sum(MS_WEIGHTS[:len(factors)])
    values = np.array([contrast for _, contrast in factors[:-1]] + [factors[-1][0]])
    return float(np.prod(np.maximum(values, 0) ** weights)), len(factors)


def _ssim_means(inside: np.ndarray, one: np.ndarray, two: np.ndarray, data_range: float
                ) -> tuple[float, float]:
    """Mean inside of SSIM and of its contrast-structure term alone, at one scale."""
    one, two = one * inside, two * inside
    weight = _window(inside.astype(np.float64))[inside]
    mean_one, mean_two, square_one, square_two, product = (
        _window(array)[inside] / weight for array in (one, two, one**2, two**2, one * two))
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    variance = square_one - mean_one**2 + square_two - mean_two**2
    contrast = (2 * (product - mean_one * mean_two) + c2) / (variance + c2)
    luminance = (2 * mean_one * mean_two + c1) / (mean_one**2 + mean_two**2 + c1)
    return float((luminance * contrast).mean()), float(contrast.mean())


def _halved(array: np.ndarray) -> np.ndarray:
    """Mean over blocks of 2 x 2 x 2 voxels; an odd last plane is dropped."""
    i, j, k = (n // 2 for n in array.shape)
    return array[:2 * i, :2 * j, :2 * k].reshape(i, 2, j, 2, k, 2).mean(axis=(1, 3, 5))


def ssim_structure(
    first: np.ndarray,
    second: np.ndarray,
    mask: np.ndarray,
    first_range: float,
    second_range: float | None = None,
) -> float:
    """The structure term of SSIM, (cov + C3) / (sd_1 sd_2 + C3), C3 = (0.03)^2 / 2, mean in mask.

    Range -1 to 1, higher is nearer. Each image is divided by its own range first: a harmonized
    image may live on another scale than its source, and gain and offset are no anatomy. Windows
    count only the voxels inside the mask (normalized convolution, Knutsson and Westin 1993): an
    edge that the mask itself makes in both images would speak for any two of them.
    Wang et al. 2004, eq. 10, window as in :func:`ssim`.
    """
    second_range = first_range if second_range is None else second_range
    _check(first, second, mask, min(first_range, second_range))
    return float(_structure(first, second, mask, first_range, second_range).mean())


def structure_map(first: np.ndarray, second: np.ndarray, mask: np.ndarray, first_range: float,
                  second_range: float) -> np.ndarray:
    """Where it is alike: the map that :func:`ssim_structure` is the mean of, NaN off the mask."""
    _check(first, second, mask, min(first_range, second_range))
    full = np.full(mask.shape, np.nan, dtype=np.float32)
    full[mask] = _structure(first, second, mask, first_range, second_range)
    return full


def _structure(first: np.ndarray, second: np.ndarray, mask: np.ndarray, first_range: float,
               second_range: float) -> np.ndarray:
    inside, one, two = _masked_box(mask, first / first_range, second / second_range)
    weight = _window(inside.astype(np.float64))[inside]
    mean_one, mean_two, square_one, square_two, product = (
        _window(array)[inside] / weight for array in (one, two, one**2, two**2, one * two))
    spread = np.sqrt(np.maximum(square_one - mean_one**2, 0)
                     * np.maximum(square_two - mean_two**2, 0))
    c3 = K2**2 / 2
    return (product - mean_one * mean_two + c3) / (spread + c3)


def gradient_agreement(
    first: np.ndarray,
    second: np.ndarray,
    mask: np.ndarray,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> float:
    """Do edges point the same way? sum(g1 . g2) / sum(|g1| |g2|) inside the eroded mask.

    The cosine of the angle between the two gradients, weighted by both lengths. Range -1 to 1,
    higher is nearer; a gain or an offset does not move it, a turned contrast gives -1. Gradients
    are Gaussian derivatives of 1 voxel, in intensity per mm. NaN where no gradient is left.
    """
    _check(first, second, mask, 1.0)
    core = ndimage.binary_erosion(mask, iterations=GRADIENT_MARGIN)
    one, two = _gradient(first, core, spacing), _gradient(second, core, spacing)
    lengths = np.sum(np.linalg.norm(one, axis=0) * np.linalg.norm(two, axis=0))
    return float(np.sum(one * two) / lengths) if lengths > 0 else float("nan")


def _difference(first: np.ndarray, second: np.ndarray, mask: np.ndarray, data_range: float
                ) -> np.ndarray:
    _check(first, second, mask, data_range)
    return (first[mask].astype(np.float64) - second[mask]) / data_range


def _check(first: np.ndarray, second: np.ndarray, mask: np.ndarray, data_range: float) -> None:
    """InputError unless the arrays share one 3D grid, the mask is not empty and R is positive."""
    if first.ndim != 3 or not first.shape == second.shape == mask.shape:
        raise InputError(f"expected two images and a mask on one 3D grid, got {first.shape}, "
                         f"{second.shape} and {mask.shape}. Resample them first.")
    if mask.dtype != np.bool_ or not mask.any():
        raise InputError("expected a boolean mask with voxels in it, got "
                         f"{mask.dtype} with {np.count_nonzero(mask)}. Check the brain mask.")
    if not data_range > 0:
        raise InputError(f"expected an intensity range above 0, got {data_range}. "
                         "Check the target's images.")


def _masked_box(mask: np.ndarray, *arrays: np.ndarray, margin: int = WINDOW_RADIUS
                ) -> tuple[np.ndarray, ...]:
    """Mask and arrays (zero outside the mask) cut to the mask's box plus ``margin`` voxels."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    pad = [(margin, margin)] * 3
    inside = np.pad(mask[box], pad)
    cut = [np.pad(np.where(mask[box], array[box], 0).astype(np.float64), pad) for array in arrays]
    return inside, *cut


def _window(array: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(array, WINDOW_SIGMA, truncate=WINDOW_TRUNCATE)


def _gradient(array: np.ndarray, where: np.ndarray, spacing: tuple[float, float, float]
              ) -> np.ndarray:
    """Gaussian-derivative gradient at the voxels of ``where``, (3, voxels), intensity per mm."""
    array = array.astype(np.float32)
    return np.stack([
        ndimage.gaussian_filter(array, GRADIENT_SIGMA, order=np.eye(3, dtype=int)[axis])[where]
        / spacing[axis] for axis in range(3)]).astype(np.float64)
