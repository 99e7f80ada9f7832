"""Volumes and ANTs images hold the same voxels at the same places."""
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from harmonizer.preprocessing import ants_bridge
from harmonizer.volume import Volume

from .heads import blob, grids

GRIDS = grids()


@pytest.mark.parametrize("name", GRIDS)
def test_there_and_back_is_exact(name):
    volume = Volume(blob(), GRIDS[name])
    image = ants_bridge.to_ants(volume)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.asarray(image.direction) * image.spacing, image.origin
    np.testing.assert_array_equal(image.numpy(), volume.data)
    np.testing.assert_allclose(ants_bridge.LPS @ affine, volume.affine, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["LPS", "PSR", "oblique"])
def test_itk_reads_the_file_as_we_hand_it_over(tmp_path, name):
    nib.save(nib.Nifti1Image(blob(), GRIDS[name]), tmp_path / "in.nii.gz")
    theirs = ants_bridge.ants_module().image_read(str(tmp_path / "in.nii.gz"))
    ours = ants_bridge.to_ants(Volume(blob(), GRIDS[name]))
    np.testing.assert_allclose(ours.origin, theirs.origin, atol=1e-4)
    np.testing.assert_allclose(ours.spacing, theirs.spacing, atol=1e-5)
    np.testing.assert_allclose(ours.direction, theirs.direction, atol=1e-5)
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_other_data_on_the_same_grid():
    volume = Volume(blob(), GRIDS["RAS"])
    image = ants_bridge.to_ants(volume, volume.data > 100)
    assert set(np.unique(image.numpy())) == {0.0, 1.0}


def test_seed_is_never_zero(monkeypatch):
    monkeypatch.setenv("ANTS_RANDOM_SEED", "5")
    for seed in (0, 2**31 - 1, 2**40):
        ants_bridge.seed_ants(seed)
        assert 1 <= int(os.environ["ANTS_RANDOM_SEED"]) <= 2**31 - 1


def test_late_change_of_threads_warns(monkeypatch):
    ants_bridge.ants_module()
    monkeypatch.setenv("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
    with pytest.warns(RuntimeWarning, match="ants was imported before .*=3"):
        ants_bridge.set_itk_threads(3)


def test_import_of_the_package_does_not_import_ants():
    code = (
        "import sys, harmonizer.preprocessing.brain, harmonizer.preprocessing.bias, "
        "harmonizer.preprocessing.conform; assert 'ants' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
