"""The harmonized image lies on the source's grid bit for bit, whichever header form holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from harmonizer.cohort import Cohort
from harmonizer.errors import InputError
from harmonizer.files import read_json, sha256_of, write_json
from harmonizer.methods.base import Backend
from harmonizer.methods.learned.disarm.backend import Disarm
from harmonizer.methods.learned.patch_diffusion.backend import PatchDiffusion
from harmonizer.methods.statistical import tissue_matching
from harmonizer.methods.statistical.histogram_matching import HistogramMatching
from harmonizer.preprocessing.transforms import write_itk_affine
from harmonizer.volume import read_volume, write_mask, write_volume
from pipelines.interfaces.harmonize import Harmonize
from pipelines.outputs.names import ScanPaths, sidecar
from tests.contract.brains import (
    GAIN,
    OFFSET,
    at_site_b,
    brain_of,
    oblique_affine,
    scan_of,
    three_levels,
)


def prepared(folder: Path, backend: Backend | None = None, stripped: bool = True
             ) -> tuple[ScanPaths, dict[str, Any]]:
    """One scan as the preprocess stage leaves it, a fitted model, and the node's inputs."""
    paths = ScanPaths(folder, Path("sub-01/anat"), "sub-01", "T1w", 2)
    brain = at_site_b(brain_of(5))
    for template in (False, True):
        write_volume(paths.image("preproc", template=template), brain)
        write_mask(paths.mask(template=template), brain.mask, brain.affine)
        write_json(sidecar(paths.image("preproc", template=template)),
                   {"SkullStripped": stripped})
    write_itk_affine(paths.to_template, np.eye(4))
    cohort = Cohort((scan_of(folder, 1, "A"), scan_of(folder, 2, "B")))
    backend = (backend or HistogramMatching()).fit(cohort)
    card = backend.target("A").save(folder / "card.safetensors")
    (folder / "node").mkdir()
    return paths, {
        "out_dir": str(folder), "folder": "sub-01/anat", "stem": "sub-01", "modality": "T1w",
        "resolution": 2, "site": "B", "backend": backend.name,
        "model": str(backend.save(folder / "model")), "model_sha256": "m", "card": str(card),
        "card_sha256": sha256_of(card), "source_sha256": "s", "desc": "harmonized", "seed": 1,
        "scratch": str(folder / "sampling")}


@pytest.mark.parametrize("detail", ["direct", "guided"])
def test_guided_is_near_direct_and_the_residual_is_reported(tmp_path, monkeypatch, detail):
    for name in tissue_matching.SEGMENTERS:
        monkeypatch.setitem(tissue_matching.SEGMENTERS, name, lambda: three_levels)
    paths, inputs = prepared(tmp_path)
    Harmonize(**inputs, detail=detail).run(cwd=str(tmp_path / "node"))
    before, after = (read_volume(paths.image(desc, template=True), paths.mask(template=True))
                     for desc in ("preproc", "harmonized"))
    messages = read_json(sidecar(paths.image("harmonized", template=True)))
    assert messages["Detail"] == detail
    assert ("local tissue map" in messages["IntensityMap"]["Type"]) == (detail == "guided")
    assert ("DirectMap" in messages) == (detail == "guided")
    assert ("DirectMinusGuided" in messages) == (detail == "guided")
    if detail == "guided":
        assert 0 < messages["DirectMinusGuided"]["RMS"] < 0.1
    gain = np.median(after.in_mask()) / np.median(before.in_mask())
    assert gain == pytest.approx(100 / (GAIN * 100 + OFFSET), rel=0.05)
    native = read_volume(paths.image("harmonized"), paths.mask())
    np.testing.assert_allclose(native.data, after.data, rtol=1e-4, atol=1e-3)


def test_how_far_drawn_images_are_apart_is_a_derivative_and_nothing_unfinished_stays(tmp_path):
    drawn = PatchDiffusion(PatchDiffusion.config_from({
        "preset": "tiny", "steps": 1, "validation_fraction": 0.0, "weight_residual": False,
        "begin": "noise", "seeds": 2}))
    paths, inputs = prepared(tmp_path, drawn)
    Harmonize(**inputs).run(cwd=str(tmp_path / "node"))
    uncertainty_map = read_volume(paths.uncertainty_map("harmonized"), paths.mask(template=True))
    assert uncertainty_map.in_mask().mean(
    ) > 0 and not uncertainty_map.data[~uncertainty_map.mask].any()
    assert "standard deviation" in read_json(
        sidecar(paths.uncertainty_map("harmonized")))["Description"]
    assert not (tmp_path / "sampling").exists()


@pytest.mark.parametrize("region", ["brain", "head"])
def test_the_head_gets_the_overall_gain_or_is_harmonized_as_the_brain_is(tmp_path, region):
    disarm = Disarm(Disarm.config_from({"preset": "tiny", "steps": 1, "validation_fraction": 0.0,
                                        "weight_residual": False, "region": region}))
    paths, inputs = prepared(tmp_path, disarm, stripped=False)
    before = read_volume(paths.image("preproc"))
    brain = before.data > GAIN * 80 + OFFSET  # the dark rim stands for skull and scalp
    for template in (False, True):
        write_mask(paths.mask(template=template), brain, before.affine)
    Harmonize(**inputs).run(cwd=str(tmp_path / "node"))
    for template in (False, True):
        after = read_volume(paths.image("harmonized", template=template))
        rim = (before.data > 0) & ~brain
        ratio = after.data[rim] / before.data[rim]
        assert (np.ptp(ratio) < 1e-4) == (region == "brain")
        assert paths.mask(template=template, region="head").is_file() == (region == "head")
    if region == "head":
        head = read_volume(paths.mask(region="head")).data > 0
        assert head[brain].all() and head[rim].mean() > 0.95 and not head[before.data == 0].any()
        assert np.median(after.data[rim]) == pytest.approx(50, rel=0.1)  # as dark as at the target
    messages = read_json(sidecar(paths.image("harmonized")))
    assert messages.get("Region", "brain") == region


def test_a_brain_without_a_head_is_refused_by_a_model_of_heads(tmp_path):
    disarm = Disarm(Disarm.config_from({"preset": "tiny", "steps": 1, "validation_fraction": 0.0,
                                        "weight_residual": False, "region": "head"}))
    paths, inputs = prepared(tmp_path, disarm)
    with pytest.raises(InputError, match="is brain only, and this model was fitted on whole heads"):
        Harmonize(**inputs).run(cwd=str(tmp_path / "node"))
    assert not paths.image("harmonized").exists()


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
              desc="harmonized", seed=1, scratch=str(tmp_path / "sampling")
              ).run(cwd=str(tmp_path / "node"))
    after = nib.load(paths.image("harmonized"))
    np.testing.assert_array_equal(after.affine, nib.load(paths.image("preproc")).affine)
    assert (int(after.header["qform_code"]), int(after.header["sform_code"])) == codes
    whole = nib.load(paths.image("harmonized", template=True)).get_fdata()
    np.testing.assert_array_equal(after.get_fdata(), whole)
