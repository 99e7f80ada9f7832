"""The Python interface: docs/how-to/python.md runs as it is; wrong input gives a clear error."""
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import harmonizer as hz
from harmonizer.errors import InputError, UsageError
from harmonizer.phantom import SCANNERS, make_subject
from harmonizer.phantom.aligned import aligned_image

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names that the code of docs/how-to/python.md leaves behind."""
    text = (ROOT / "docs" / "how-to" / "python.md").read_text(encoding="utf-8")
    names = {"work": tmp_path_factory.mktemp("work"), "__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(compile(block, "docs/how-to/python.md", "exec"), names)  # the page's own code
    return names


def test_the_page_harmonizes_and_evaluates(page):
    result = page["result"]
    assert result.report["HarmonizationMethod"] == "tissue_matching"
    assert result.report["Target"] == page["sites"][0]
    assert result.get_data_dtype() == np.float32
    assert (result.affine == page["head"].affine).all()
    assert result.template.shape == page["images"][0].shape
    assert len(page["found"].statistics) > 10


def test_harmonizing_brings_the_white_matter_of_the_other_scanner_to_the_target(page):
    model, images, sites = page["model"], page["images"], page["sites"]

    def level(image):
        data = np.asarray(image.dataobj)
        return float(np.percentile(data[data > 0], 90))

    target = np.mean([level(i) for i, s in zip(images, sites) if s == sites[0]])
    before = [level(i) for i, s in zip(images, sites) if s == sites[1]]
    after = [level(model.transform(i, target=sites[0], site=s))
             for i, s in zip(images, sites) if s == sites[1]]
    assert abs(np.mean(before) / target - 1) > 1
    assert abs(np.mean(after) / target - 1) < 0.05


def test_a_loaded_model_gives_the_same_bits(page):
    image, sites = page["images"][1], page["sites"]
    again = page["again"].set_params(registered=True, sloppy=True)
    first, second = (m.transform(image, target=sites[0], site=sites[1])
                     for m in (page["model"], again))
    assert np.array_equal(np.asarray(first.dataobj), np.asarray(second.dataobj))


def test_an_oblique_image_keeps_its_affine_and_shape(page):
    """Axes permuted, flipped and turned: the image is the same brain, so the result is too."""
    image = page["images"][1]
    turned = nib.Nifti1Image(
        np.ascontiguousarray(np.asarray(image.dataobj).transpose(2, 0, 1)[::-1]),
        image.affine @ np.array([[0, 1, 0, 0], [0, 0, 1, 0], [-1, 0, 0, image.shape[2] - 1],
                                 [0, 0, 0, 1.0]]))
    model, sites = page["model"], page["sites"]
    plain = np.asarray(model.transform(image, target=sites[0], site=sites[1]).dataobj)
    result = model.transform(turned, target=sites[0], site=sites[1])
    assert (result.affine == turned.affine).all() and result.shape == turned.shape
    back = np.asarray(result.dataobj)[::-1].transpose(1, 2, 0)
    assert np.allclose(back, plain, rtol=1e-5, atol=1e-3 * plain.max())


def test_unregistered_images_given_as_registered_are_refused(page):
    shifted = page["images"][0].affine.copy()
    shifted[:3, 3] += 1
    moved = nib.Nifti1Image(np.asarray(page["images"][0].dataobj), shifted)
    with pytest.raises(InputError, match="expected an image on the template grid.*preprocessed"):
        page["model"].transform(moved, target=page["sites"][0])


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda p: hz.TissueMatching(textur="keep"), UsageError, "no option 'textur'.*'texture'"),
    (lambda p: hz.TissueMatching().transform(p["images"][0], "A"), UsageError, "not fitted yet"),
    (lambda p: p["model"].transform(p["images"][0], "Atlantis"), UsageError, "not seen at fit"),
    (lambda p: hz.TissueMatching().fit(p["images"], sites=["A"]), InputError, "one of sites"),
    (lambda p: hz.TissueMatching().fit(p["images"], sites=p["sites"], covariates={"age": [1]}),
     InputError, "'age' has 1 values for 4 images"),
    (lambda p: hz.load(p["work"]), Exception, "config.json"),
    (lambda p: hz.nothing, AttributeError, "no attribute 'nothing'"),
])
def test_mistakes_are_explained(page, call, error, message):
    with pytest.raises(error, match=message):
        call(page)


def test_params_are_those_of_scikit_learn():
    model = hz.TissueMatching(texture="keep", seed=3)
    again = hz.TissueMatching(**model.get_params())
    assert again.get_params() == model.get_params()
    assert model.set_params(texture="match").get_params()["texture"] == "match"


def test_whole_heads_given_as_registered_need_a_mask():
    data = aligned_image(make_subject(1), SCANNERS[0])
    noisy = data.data + np.random.default_rng(0).uniform(1, 50, data.shape).astype(np.float32)
    image = nib.Nifti1Image(noisy, data.affine)
    with pytest.raises(InputError, match="not brain only. Give its brain mask"):
        hz.TissueMatching(registered=True).fit([image], sites=["A"])


def test_importing_the_package_imports_nothing_heavy():
    code = ("import sys, harmonizer; harmonizer.__version__; assert not {'numpy', 'torch', "
            "'nibabel', 'ants'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
