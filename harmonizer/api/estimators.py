"""Harmonization methods with scikit-learn's verbs, for images in any space."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import nibabel as nib

from ..errors import InputError, UsageError, did_you_mean
from ..methods import model_folder, registry
from ..methods.base import Backend
from ..methods.harmonize_scan import harmonize_scan
from ..methods.target import Target
from ..preprocessing.pipeline import PreprocessedImage
from ..template import template_affine
from .images import Image, as_registered, cohort_of, preprocess, table_columns, with_tissues

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Harmonizer", "HarmonizedImage", "SiteCard", "list_backends", "load", "TissueMatching",
           "HistogramMatching", "MomentMatching", "SpectrumSwap", "Cacd", "Disarm", "Ihf",
           "PatchDiffusion"]

COMMON_PARAMETERS = ("registered", "resolution_mm", "seed", "sloppy")


class HarmonizedImage(nib.Nifti1Image):
    """A harmonized image on the grid of the input, with the input's affine.

    Attributes
    ----------
    report : dict
        How it was made: method, target, and the change of contrast, in JSON types.
    template : nibabel.Nifti1Image
        The harmonized image on the template grid.
    uncertainty : nibabel.Nifti1Image or None
        Standard deviation over the samples of a sampling method, on the template grid.
    """

    report: dict[str, Any]
    template: nib.Nifti1Image
    uncertainty: nib.Nifti1Image | None


class Harmonizer:
    """Base of the estimators; use a subclass such as `TissueMatching`.

    Parameters
    ----------
    registered : bool, default False
        Images given lie on the template grid already, with brain masks; they are checked and not
        preprocessed.
    resolution_mm : {1, 2}, default 1
        Voxel size of the template grid that images are brought to.
    seed : int, default 0
        Seed of everything that is drawn.
    sloppy : bool, default False
        Coarse and fast preprocessing, for tests.
    **options
        Settings of the method; `get_params` lists them.

    Attributes
    ----------
    backend_ : Backend
        The fitted method.

    Examples
    --------
    >>> import harmonizer as hz
    >>> model = hz.TissueMatching(texture="keep")
    >>> model.get_params()["texture"]
    'keep'
    """

    backend_name: ClassVar[str] = ""

    def __init__(self, *, registered: bool = False, resolution_mm: int = 1, seed: int = 0,
                 sloppy: bool = False, **options: Any) -> None:
        self.registered, self.resolution_mm = registered, resolution_mm
        self.seed, self.sloppy = seed, sloppy
        self._config = registry.get(self.backend_name).config_from(options)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return all parameters by name (as in scikit-learn)."""
        return {**{name: getattr(self, name) for name in COMMON_PARAMETERS}, **vars(self._config)}

    def set_params(self, **params: Any) -> Self:
        """Set parameters by name and return the estimator.

        Raises
        ------
        UsageError
            If a name is unknown or a value invalid.
        """
        common = {name: params.pop(name) for name in COMMON_PARAMETERS if name in params}
        self._config = registry.get(self.backend_name).config_from(
            {**vars(self._config), **params})
        for name, value in common.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def fit(self, images: Sequence[Image], *, sites: Sequence[str],
            subjects: Sequence[str] | None = None, covariates: Any = None,
            masks: Sequence[Image] | None = None, modality: str = "T1w") -> Self:
        """Learn what the scanners of the images look like.

        Parameters
        ----------
        images : sequence of paths, nibabel images or PreprocessedImage
            Images of one modality; preprocessed here unless they are already.
        sites : sequence of str
            Site of each image.
        subjects : sequence of str, optional
            Subject of each image. Default: every image is of another subject.
        covariates : DataFrame or mapping of columns, optional
            ``age`` (years), ``sex`` (M or F) and others, one row per image.
        masks : sequence of paths or nibabel images, optional
            Brain masks on the grids of the images.
        modality : str
            BIDS suffix of the images.

        Returns
        -------
        Harmonizer
            This object.

        Raises
        ------
        InputError
            If an image cannot be used or the lists differ in length.
        """
        images = list(images)
        subjects = [str(n) for n in range(len(images))] if subjects is None else list(subjects)
        masks = [None] * len(images) if masks is None else list(masks)
        for name, given in (("sites", sites), ("subjects", subjects), ("masks", masks)):
            if len(given) != len(images):
                raise InputError(f"expected one of {name} per image, got {len(given)} for "
                                 f"{len(images)} images.")
        rows = table_columns(covariates, len(images))
        prepared = [self._prepared(*pair) for pair in zip(images, masks)]
        with tempfile.TemporaryDirectory(prefix="harmonizer-") as folder:
            cohort = cohort_of(Path(folder), prepared, sites, subjects, modality, rows)
            self.backend_ = self._new_backend().fit(cohort, seed=self.seed)
        return self

    def transform(self, image: Image, target: str | os.PathLike[str] | SiteCard, *,
                  site: str | None = None, covariates: Mapping[str, Any] | None = None,
                  mask: Image | None = None, detail: str = "direct") -> HarmonizedImage:
        """Harmonize one image, which need not have been in the fit.

        Parameters
        ----------
        image : path, nibabel image, or PreprocessedImage
            The image.
        target : str, path, or SiteCard
            Label of a site of the fit, or a site card.
        site : str, optional
            Site of the image, if it is one of the fit.
        covariates : mapping, optional
            Covariates of the subject.
        mask : path or nibabel image, optional
            Brain mask on the image's grid.
        detail : {"direct", "guided"}
            See `harmonizer.methods.harmonize_scan.harmonize_scan`.

        Returns
        -------
        HarmonizedImage
            float32, on the image's own grid, with its affine.

        Raises
        ------
        InputError
            If the image cannot be used, or the site card is of another method.
        UsageError
            If the estimator is not fitted or the target is unknown.
        """
        backend = self._fitted()
        resolved = self._target(target)
        done = self._prepared(image, mask)
        result = harmonize_scan(
            backend, resolved, done.template, done.native, done.to_template, source=site,
            seed=self.seed, covariates=covariates, tissues=done.tissues, detail=detail,
            brain_only=done.brain_only)
        assert result.native is not None
        plain = done.to_nifti(result.native.data)
        image = HarmonizedImage(plain.dataobj, plain.affine, header=plain.header)
        image.report = {"HarmonizationMethod": backend.name, "Target": resolved.label,
                        **result.facts}
        image.template = nib.Nifti1Image(result.template.data, result.template.affine)
        image.uncertainty = None if result.uncertainty is None else nib.Nifti1Image(
            result.uncertainty, result.template.affine)
        return image

    @property
    def sites_(self) -> tuple[str, ...]:
        """Sites of the fit."""
        return tuple(self._fitted().sites_)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the fitted model as a folder and return its path."""
        return self._fitted().save(folder)

    def _new_backend(self) -> Backend:
        return registry.get(self.backend_name)(self._config)

    def _fitted(self) -> Backend:
        if not hasattr(self, "backend_"):
            raise UsageError(f"{type(self).__name__} is not fitted yet. Call fit(images, "
                             "sites=sites), or harmonizer.load(folder).")
        return self.backend_

    def _target(self, target: str | os.PathLike[str] | SiteCard) -> Target:
        if isinstance(target, SiteCard):
            return target.target
        if str(target).endswith(".safetensors"):
            return Target.load(target)
        return self._fitted().target(str(target))

    def _prepared(self, image: Image, mask: Image | None) -> PreprocessedImage:
        if isinstance(image, PreprocessedImage):
            done = image
        elif self.registered:
            done = as_registered(image, mask)
        else:
            done = preprocess(image, mask, resolution_mm=self.resolution_mm, seed=self.seed,
                              sloppy=self.sloppy)
        return with_tissues(done, self.sloppy)


def _estimator(name: str, backend_name: str, summary: str) -> type[Harmonizer]:
    """Make the estimator of a method."""
    return type(name, (Harmonizer,), {
        "backend_name": backend_name, "__module__": __name__,
        "__doc__": f"{summary}\n\nParameters and verbs are those of `Harmonizer`."})


TissueMatching = _estimator("TissueMatching", "tissue_matching", (
    "Match each tissue's local mean and standard deviation; the default method."))
HistogramMatching = _estimator("HistogramMatching", "histogram_matching", (
    "Match the histogram inside the brain."))
MomentMatching = _estimator("MomentMatching", "moment_matching", (
    "Match mean and standard deviation inside the brain."))
SpectrumSwap = _estimator("SpectrumSwap", "spectrum_swap", (
    "Swap the amplitudes of low spatial frequencies (SSIMH)."))
Cacd = _estimator("Cacd", "cacd", (
    "Disentangle anatomy and contrast by contrastive learning (Scholz 2025)."))
Disarm = _estimator("Disarm", "disarm", (
    "Translate images without scanner effects by disentangled codes (Caldera 2024)."))
Ihf = _estimator("Ihf", "ihf", "Replace artifact statistics in an invertible flow (Zhu 2026).")
PatchDiffusion = _estimator("PatchDiffusion", "patch_diffusion", (
    "Sample patches by diffusion guided by anatomy and style (Hache 2026)."))


class SiteCard:
    """A target made of reference scans: numbers of a scanner without images, in one small file.

    Attributes
    ----------
    target : Target
        What a method harmonizes to.
    """

    def __init__(self, target: Target) -> None:
        self.target = target

    @classmethod
    def from_images(cls, images: Sequence[Image], model: Harmonizer, label: str = "reference", *,
                    masks: Sequence[Image] | None = None) -> SiteCard:
        """Describe a scanner by 1 to 20 of its scans.

        Parameters
        ----------
        images : sequence of paths, nibabel images or PreprocessedImage
            Scans of one scanner.
        model : Harmonizer
            Fitted estimator that will use the card.
        label : str
            Name of the site.
        masks : sequence of paths or nibabel images, optional
            Brain masks on the grids of the images.
        """
        backend = model._fitted()
        prepared = [model._prepared(*pair)
                    for pair in zip(images, masks or [None] * len(images))]
        names = [str(number) for number in range(len(prepared))]
        with tempfile.TemporaryDirectory(prefix="harmonizer-") as folder:
            cohort = cohort_of(Path(folder), prepared, [label] * len(names), names,
                               str(backend.modality_), [{} for _ in names])
            return cls(backend.enroll(cohort, label))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the card (.safetensors) and return its path."""
        return self.target.save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SiteCard:
        """Read a card; anything else raises `InputError`."""
        return cls(Target.load(path))


def list_backends() -> dict[str, str]:
    """Return the names of all installed methods and their references."""
    return {name: backend.reference for name, backend in registry.available().items()}


def load(folder: str | os.PathLike[str]) -> Harmonizer:
    """Load a fitted model that an estimator or the BIDS App saved.

    Raises
    ------
    UnavailableError
        If the folder is not a model.
    UsageError
        If its method has no estimator.
    """
    facts, _ = model_folder.read(Path(folder))
    classes = {kind.backend_name: kind for kind in _subclasses(Harmonizer)}
    name = facts["Backend"]
    if name not in classes:
        raise UsageError(f"{folder}: is a model of {name!r}, which has no estimator. "
                         f"{did_you_mean(name, classes)}")
    model = classes[name](**facts["Config"])
    model.backend_ = registry.get(name).load(folder)
    shape = facts["Cohort"].get("Grid", {}).get("Shape")
    affine = template_affine(tuple(shape)) if shape else None
    model.resolution_mm = 1 if affine is None else int(affine[0, 0])
    return model


def _subclasses(kind: type[Harmonizer]) -> Iterator[type[Harmonizer]]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)
