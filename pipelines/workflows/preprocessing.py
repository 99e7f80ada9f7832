"""The stage `preprocess` of the participant level: one workflow for each scan.

    conform -> brain -> bias -> register -> to_template -> segment -> save -> draw

A precomputed brain mask replaces ``brain``, a precomputed bias-corrected image replaces ``bias``.
Finished scans are reused. T1w images come first, because their segmentation is the fallback for
other images of the session whose own segmentation has low confidence.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harmonizer import __version__
from harmonizer.errors import HarmonizerError
from harmonizer.files import read_json, sha256_of
from harmonizer.volume import load_nifti

from ..dataset.records import ScanRecord
from ..outputs.figures import figures_index
from ..outputs.names import TISSUES, ScanPaths, node_name, resolution_of, sidecar
from ..outputs.scanlog import ScanLog, log_path, read_log, write_log
from ..settings import Settings
from .engine import ScanFailure, execute

if TYPE_CHECKING:
    from nipype import Node, Workflow

__all__ = ["preprocess", "init_preprocessing_wf", "init_scan_wf", "fingerprint", "plan"]

LOGGER = logging.getLogger("pipelines")
STEPS = ("conform", "brain", "bias", "register", "to_template")
MEM_GB = {  # of the process, rounded up from the peaks in docs/benchmarks.md
    "conform": 0.5, "brain": 1.5, "given_brain": 0.5, "bias": 1.2, "register": 1.2,
    "to_template": 0.8, "segment": 1.9, "quality": 1.2, "save": 1.3, "draw": 1.6,
}
MEASURED_VOXELS = 15_000_000  # of the image that was measured; larger images need more memory


@dataclass(frozen=True)
class ScanJob:
    """A scan to be preprocessed.

    Attributes
    ----------
    record : ScanRecord
        The raw image.
    paths : ScanPaths
        Its derivatives.
    fingerprint : str
        Hash of source and settings.
    fallback : ScanRecord, optional
        T1w image of the session, whose segmentation is used if the scan's own has low confidence.
    """

    record: ScanRecord
    paths: ScanPaths
    fingerprint: str
    fallback: ScanRecord | None = None

    @property
    def name(self) -> str:
        """Return the name of the scan's workflow: letters, digits and underscores."""
        return node_name(self.scan_id)

    @property
    def scan_id(self) -> str:
        """Return the scan_id."""
        return self.record.scan_id


def paths_of(record: ScanRecord, out: Path, settings: Settings) -> ScanPaths:
    """Return the paths of a record's derivatives."""
    return ScanPaths(out, record.folder, record.stem, record.modality,
                     resolution_of(settings.sloppy))


def fingerprint(record: ScanRecord, settings: Settings, fallback: ScanRecord | None = None
                ) -> str:
    """Hash the source and everything that changes its preprocessing (SHA-256, 16 digits).

    A finished scan is reused only if its fingerprint is the same.

    Parameters
    ----------
    record : ScanRecord
        The raw image.
    settings : Settings
        Settings of the run.
    fallback : ScanRecord, optional
        T1w image whose segmentation may be used.
    """
    parts = {
        "source": sha256_of(record.path),
        "precomputed": {k: sha256_of(p) for k, p in sorted(record.precomputed.items())},
        "skull_strip": settings.skull_strip,
        "sloppy": settings.sloppy,
        "seed": settings.random_seed,
        "segmenter": segmenter_of(settings),
        "brain_network": brain_network_of(settings),
        "version": __version__,
    }
    if fallback is not None:
        parts["fallback"] = sha256_of(fallback.path)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def segmenter_of(settings: Settings) -> str | None:
    """Return the name of the segmentation network's weights; None in a sloppy run."""
    from harmonizer.segmentation.predict import NetworkSegmenter

    return None if settings.sloppy else NetworkSegmenter().name


def brain_network_of(settings: Settings) -> str | None:
    """Return the name of the brain extraction network; None if the run does not use it.

    A sloppy run uses it only with ``--skull-strip network``.
    """
    from harmonizer.segmentation.brain import brain_weights_name

    without = settings.sloppy and settings.skull_strip != "network"
    return None if without else brain_weights_name()


def preprocess(
    settings: Settings, records: Sequence[ScanRecord], out: Path | None = None
) -> tuple[tuple[ScanFailure, ...], int]:
    """Preprocess all records that are not finished.

    An image that cannot be used becomes a failure; the others are processed.

    Returns
    -------
    failures : tuple of ScanFailure
        Scans that failed.
    reused : int
        Number of scans that were finished before.
    """
    out = settings.output_dir if out is None else out
    jobs, failures, reused = plan(settings, records, out)
    if reused:
        LOGGER.info("%d of %d scans were preprocessed before and are reused.", reused, len(records))
    if jobs and not settings.dry_run:
        if settings.write_graph:
            write_graph(init_preprocessing_wf(settings, jobs), out, "preprocess")
        for batch in _in_order(jobs):
            failures += execute(partial(init_preprocessing_wf, settings), batch, settings,
                                "preprocess")
    by_id = {record.scan_id: record for record in records}
    if not settings.dry_run:
        for failure in failures:
            write_log(out, ScanLog(failure.scan_id, "preprocess", "failed",
                                   by_id[failure.scan_id].site, failure.message))
        _log_low_confidence(jobs, out)
    return failures, reused


def _in_order(jobs: Sequence[ScanJob]) -> list[list[ScanJob]]:
    """Return the scans without a fallback, then those whose fallback is among the first."""
    batches = [[job for job in jobs if (job.fallback is None) == first] for first in (True, False)]
    return [batch for batch in batches if batch]


def _fallbacks(records: Sequence[ScanRecord], settings: Settings) -> dict[Path, ScanRecord]:
    """Return folder of a session -> its first T1w image by name; empty in a sloppy run."""
    if settings.sloppy:
        return {}
    ordered = sorted(records, key=lambda record: record.scan_id, reverse=True)
    return {record.folder: record for record in ordered if record.modality == "T1w"}


def _log_low_confidence(jobs: Sequence[ScanJob], out: Path) -> None:
    """Log brain masks and segmentations with low confidence."""
    from harmonizer.segmentation.predict import low_confidence_warning

    for job in jobs:
        log = read_log(out, job.scan_id, "preprocess")
        facts = log.facts if log else {}
        if reasons := facts.get("Quality", {}).get("reasons"):
            LOGGER.warning("%s: check its brain mask: %s.", job.scan_id, "; ".join(reasons))
        cnr = facts.get("ContrastToNoise")
        if fallback := facts.get("FallbackSegmentation"):
            LOGGER.info("%s: its own segmentation has low confidence; that of %s is used.",
                        job.scan_id, fallback)
        elif cnr is not None and (text := low_confidence_warning(cnr)):
            LOGGER.warning("%s: %s", job.scan_id, text)


def plan(settings: Settings, records: Sequence[ScanRecord], out: Path
         ) -> tuple[list[ScanJob], tuple[ScanFailure, ...], int]:
    """Find the scans to preprocess.

    Returns
    -------
    jobs : list of ScanJob
        Scans to preprocess.
    failures : tuple of ScanFailure
        Scans whose image cannot be used.
    reused : int
        Number of finished scans.
    """
    from harmonizer.preprocessing.conform import check_image

    jobs, failures, reused = [], [], 0
    fallbacks = _fallbacks(records, settings)
    for record in records:
        paths = paths_of(record, out, settings)
        fallback = None if record.modality == "T1w" else fallbacks.get(record.folder)
        try:
            name = fingerprint(record, settings, fallback)
            if _is_finished(paths, record, name, settings.sloppy):
                reused += 1
                continue
            check_image(record.path)
        except HarmonizerError as error:
            failures.append(ScanFailure(record.scan_id, "preprocess", str(error)))
            continue
        except OSError as error:
            failures.append(ScanFailure(record.scan_id, "preprocess",
                                    f"{error.filename}: {error.strerror}. Check the file."))
            continue
        jobs.append(ScanJob(record, paths, name, fallback))
    return jobs, tuple(failures), reused


def _is_finished(paths: ScanPaths, record: ScanRecord, name: str, sloppy: bool) -> bool:
    """Return whether all results of the scan exist, from this image with these settings."""
    path = sidecar(paths.image("preproc", template=True))
    needed = [paths.image("preproc", template=True), paths.mask(template=True), paths.to_template,
              paths.image("preproc"), paths.mask(), paths.from_template,
              log_path(paths.out, paths.scan_id, "preprocess"),
              figures_index(paths, "preprocess")]  # drawn last
    if not sloppy:
        needed += [paths.probability(t, template=space) for t in TISSUES for space in (False, True)]
    if not path.is_file() or not all(p.is_file() for p in needed):
        return False
    content = read_json(path)
    if content.get("Fingerprint") != name:
        LOGGER.info("%s: source, settings or version changed; preprocessing it again.",
                    record.scan_id)
        return False
    return True


def init_preprocessing_wf(settings: Settings, jobs: Sequence[ScanJob]) -> Workflow:
    """Build a workflow with one independent sub-workflow for each scan."""
    from nipype import Workflow

    workflow = Workflow(name="preprocess_wf", base_dir=str(settings.work_dir))
    workflow.add_nodes([init_scan_wf(settings, job) for job in jobs])
    return workflow


def init_scan_wf(settings: Settings, job: ScanJob) -> Workflow:
    """Build the workflow of one scan: conform, extract brain, correct bias, register, save, draw.

    Inputs
    ------
    in_file
        The image.
    in_mask
        Its precomputed brain mask, if any.

    Outputs
    -------
    template_file
        The preprocessed image on the template grid.
    """
    from nipype import Node, Workflow
    from nipype.interfaces.utility import IdentityInterface

    from ..interfaces import ants, image

    record = job.record

    def node(interface: Any, name: str, **inputs: Any) -> Node:
        return Node(interface(**inputs), name=name, mem_gb=memory_of(name, record), n_procs=1)

    seed, sloppy = settings.random_seed, settings.sloppy
    inputnode = Node(IdentityInterface(fields=["in_file", "in_mask"]), name="inputnode")
    inputnode.inputs.in_file = str(record.precomputed.get("preproc", record.path))
    outputnode = Node(IdentityInterface(fields=["template_file"]), name="outputnode")
    conform = node(image.Conform, "conform")
    brain = _brain_node(node, inputnode, record, settings)
    corrected = "preproc" in record.precomputed
    bias = node(ants.KeepBias if corrected else ants.CorrectBias, "bias", sloppy=sloppy)
    register = node(ants.Register, "register", seed=seed, sloppy=sloppy)
    to_template = node(image.ToTemplate, "to_template", resolution=job.paths.resolution)
    workflow = Workflow(name=job.name)
    given = brain.name == "given_brain"
    workflow.connect([
        (inputnode, conform, [("in_file", "in_file")]),
        (conform, brain, [("out_file", "reference" if given else "in_file")]),
        (conform, bias, [("out_file", "in_file")]),
        (brain, bias, [("out_mask", "in_mask")]),
        (bias, register, [("out_file", "in_file")]),
        (brain, register, [("out_mask", "in_mask")]),
        (bias, to_template, [("out_file", "in_file")]),
        (brain, to_template, [("out_mask", "in_mask")]),
        (register, to_template, [("transform", "transform")]),
    ])
    if given:
        workflow.connect(inputnode, "in_mask", brain, "in_mask")
    else:
        workflow.connect(brain, "transform", register, "initial")
    _connect_outputs(workflow, settings, job, [conform, brain, bias, register, to_template],
                     outputnode)
    return workflow


def _brain_node(node: Callable[..., Node], inputnode: Node, record: ScanRecord,
                settings: Settings) -> Node:
    """Return the node that extracts the brain, or that reads the precomputed mask."""
    from ..interfaces import ants, image

    if "mask" in record.precomputed:
        inputnode.inputs.in_mask = str(record.precomputed["mask"])
        return node(image.ConformMask, "given_brain")
    weights = brain_network_of(settings)
    return node(ants.ExtractBrain, "brain", mode=settings.skull_strip, seed=settings.random_seed,
                sloppy=settings.sloppy, **({} if weights is None else {"weights": weights}))


def memory_of(step: str, record: ScanRecord) -> float:
    """Return the memory limit of a step in GB, scaled by the size of the image."""
    voxels = math.prod(load_nifti(record.path).shape[:3])
    return MEM_GB[step] * max(1.0, voxels / MEASURED_VOXELS)


def _connect_outputs(workflow: Workflow, settings: Settings, job: ScanJob, steps: list[Node],
                     outputnode: Node) -> None:
    """Connect quality check, saving of the derivatives and drawing of the figures."""
    from nipype import Node

    from ..interfaces.ants import CheckQuality
    from ..interfaces.bids import SavePreprocessed
    from ..interfaces.reports import DrawPreprocessed

    conform, brain, bias, register, to_template = steps
    paths, record = job.paths, job.record
    quality = Node(CheckQuality(), name="quality", mem_gb=memory_of("quality", record))
    save = Node(SavePreprocessed(
        record=record, raw_dir=str(settings.bids_dir), out_dir=str(paths.out),
        resolution=paths.resolution, fingerprint=job.fingerprint,
        source=str(record.precomputed.get("preproc", record.path))),
        name="save", mem_gb=memory_of("save", record))
    draw = Node(DrawPreprocessed(
        out_dir=str(paths.out), folder=str(paths.folder), stem=paths.stem,
        modality=paths.modality, resolution=paths.resolution),
        name="draw", mem_gb=memory_of("draw", record))
    save.overwrite = draw.overwrite = True  # they write into the output folder, not the cache
    workflow.connect([
        (conform, quality, [("seconds", "conform")]),
        (brain, quality, [("out_mask", "in_mask"), ("seconds", "brain")]),
        (bias, quality, [("out_file", "in_file"), ("seconds", "bias")]),
        (register, quality, [("transform", "transform"), ("seconds", "register")]),
        (to_template, quality, [("seconds", "to_template")]),
        (conform, save, [("repairs", "repairs")]),
        (bias, save, [("out_file", "corrected")]),
        (brain, save, [("out_mask", "mask")]),
        (register, save, [("transform", "transform")]),
        (to_template, save, [("out_file", "template_file"), ("out_mask", "template_mask")]),
        (quality, save, [("quality", "quality"), ("seconds_of", "seconds_of")]),
        (conform, draw, [("out_file", "conformed")]),
        (brain, draw, [("out_mask", "mask")]),
        (bias, draw, [("out_field", "field")]),
        (save, draw, [("template_file", "registered")]),
        (save, outputnode, [("template_file", "template_file")]),
    ])
    if brain.name == "brain":
        workflow.connect(brain, "quality", quality, "extraction")
    if not settings.sloppy:
        _connect_segmentation(workflow, settings, job, steps, quality, save)


def _connect_segmentation(workflow: Workflow, settings: Settings, job: ScanJob,
                          steps: list[Node], quality: Node, save: Node) -> None:
    """Connect the segmentation, which writes probabilities on both grids."""
    from nipype import Node

    from ..interfaces.segment import Segment

    _, brain, bias, register, to_template = steps
    weights, fallback = segmenter_of(settings), job.fallback
    given = {} if fallback is None else {
        "fallback": (str(job.paths.out), str(fallback.folder), fallback.stem),
        "fingerprint": job.fingerprint}
    segment = Node(Segment(resolution=to_template.inputs.resolution, weights=weights,
                           seed=settings.random_seed, **given),
                   name="segment", mem_gb=memory_of("segment", job.record), n_procs=1)
    save.inputs.weights = weights
    workflow.connect([
        (bias, segment, [("out_file", "in_file")]),
        (brain, segment, [("out_mask", "in_mask")]),
        (register, segment, [("transform", "transform")]),
        (segment, quality, [("seconds", "segment")]),
        (segment, save, [("native", "native_probabilities"), ("template", "template_probabilities"),
                         ("contrast_to_noise", "contrast_to_noise"), ("fallback", "fallback")]),
    ])


def write_graph(workflow: Workflow, out: Path, name: str) -> None:
    """Write the workflow's graph as DOT text into OUT/logs; drawing it needs graphviz."""
    import networkx as nx

    graph: nx.DiGraph[Any] = nx.DiGraph(workflow._create_flat_graph())
    lines = [f'  "{a.fullname}" -> "{b.fullname}";' for a, b in graph.edges()]
    from harmonizer.files import write_text

    path = write_text(out / "logs" / f"graph_{name}.dot",
                      "digraph harmonizer {\n" + "\n".join(sorted(lines)) + "\n}\n")
    LOGGER.info("Wrote the graph to %s (draw it with: dot -Tsvg).", path)
