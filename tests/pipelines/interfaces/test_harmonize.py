"""The harmonized image lies on the source's grid bit for bit, whichever header form holds it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tests.contract.brains import brain_of, oblique_affine, scan_of

from harmonizer.backends.histogram_matching import HistogramMatching
from harmonizer.cohort import Cohort
from harmonizer.files import sha256_of, write_json
from harmonizer.preprocessing.transforms import write_itk_affine
from harmonizer.volume import write_mask, write_volume
from pipelines.interfaces.harmonize import Harmonize
from pipelines.outputs.names import ScanPaths, sidecar


@pytest.mark.parametrize("codes", [(1, 0), (0, 2), (1, 1)], ids=["qform", "sform", "both"])
def test_affine_of_the_native_result_is_the_sources(tmp_path, codes):
    paths = ScanPaths(tmp_path, Path("sub-01/anat"), "sub-01", "T1w", 2)
    brain = brain_of(5)
    for template in (False, True):
        write_volume(paths.image("preproc", template=template), brain)
        write_mask(paths.mask(template=template), brain.mask, brain.affine)
        write_json(sidecar(paths.image("preproc", template=template)), {"SkullStripped": True})
    for path in (paths.image("preproc"), paths.mask()):
        image = nib.Nifti1Image(np.asarray(nib.load(path).dataobj), None)
        image.set_qform(oblique_affine(), codes[0])
        image.set_sform(oblique_affine(), codes[1])
        nib.save(image, path)
    write_itk_affine(paths.to_template, np.eye(4))
    cohort = Cohort((scan_of(tmp_path, 1, "A"), scan_of(tmp_path, 2, "B")))
    backend = HistogramMatching().fit(cohort)
    model = backend.save(tmp_path / "model")
    card = backend.target("A").save(tmp_path / "card.safetensors")
    (tmp_path / "node").mkdir()
    Harmonize(out_dir=str(tmp_path), folder="sub-01/anat", stem="sub-01", modality="T1w",
              resolution=2, site="B", backend="histogram_matching", model=str(model),
              model_sha256="m", card=str(card), card_sha256=sha256_of(card), source_sha256="s",
              desc="harmonized", seed=1).run(cwd=str(tmp_path / "node"))
    after = nib.load(paths.image("harmonized"))
    np.testing.assert_array_equal(after.affine, nib.load(paths.image("preproc")).affine)
    assert (int(after.header["qform_code"]), int(after.header["sform_code"])) == codes
    whole = nib.load(paths.image("harmonized", template=True)).get_fdata()
    np.testing.assert_array_equal(after.get_fdata(), whole)
