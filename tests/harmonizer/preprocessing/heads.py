"""Small synthetic heads for the tests: the template's brain in a dark skull and a bright scalp."""
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from harmonizer.preprocessing.transforms import resample
from harmonizer.template import load_template
from harmonizer.volume import Volume


def grids():
    """Affines (name, affine) that a scanner may write, for a grid near (20, 24, 18)."""
    oblique = np.eye(4)
    oblique[:3, :3] = Rotation.from_euler("xyz", (12, -20, 35), degrees=True).as_matrix() * 3.0
    oblique[:3, 3] = (-20, 31, -11)
    flipped = np.array([[-3.0, 0, 0, 30], [0, -3, 0, 28], [0, 0, 3, -25], [0, 0, 0, 1]])
    sagittal = np.array([[0, 0, 3.0, -25], [-3, 0, 0, 30], [0, -3, 0, 28], [0, 0, 0, 1]])
    slices = np.diag([1.5, 1.25, 4.0, 1.0])
    slices[:3, 3] = (-14, -16, -33)
    return {"RAS": np.diag([3.0, 3, 3, 1]), "LPS": flipped, "PSR": sagittal, "thick": slices,
            "oblique": oblique, "oblique_thick": oblique @ np.diag([1, 0.7, 1.6, 1])}


def blob(shape=(20, 24, 18), seed=0):
    """(shape) float32 smooth positive noise without any symmetry."""
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, 1.5)
    return ((smooth - smooth.min()) * 500).astype(np.float32)


def brain_in_head(spacing=4, tilt=(0, 0, 0), shift=(0, 0, 0), size=0.9, skull=True):
    """(Volume with the true mask, true native -> template matrix).

    The template's brain, `size` times as large, turned (degrees) and shifted (mm); with a dark
    skull of 6 mm and a scalp of 8 mm, or as brain only on an exactly zero background.
    """
    template = load_template(2)
    move = np.eye(4)
    move[:3, :3] = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix() * size
    move[:3, 3] = shift
    half = 112 + 10
    count = 2 * half // spacing
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -half + spacing / 2 + np.array(shift)
    grid = Volume(np.zeros((count,) * 3, np.float32), affine)
    head = resample(template, grid, move, antialias=True)
    data = head.data * 300
    if skull:
        away = ndimage.distance_transform_edt(~head.mask, sampling=spacing)
        data = np.where(head.mask, data, np.where((away > 6) & (away <= 14), 260, 12))
        noise = np.random.default_rng(1).normal(0, 4, data.shape)
        data = np.abs(data + noise)
    else:
        data = np.where(head.mask, data, 0)
    return Volume(data.astype(np.float32), affine, head.mask), np.linalg.inv(move)
