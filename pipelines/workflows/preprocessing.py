"""The participant level's first stage: one small workflow for each scan, side by side.

    conform -> brain -> bias -> register -> to_template -> segment -> save -> draw

A precomputed brain mask takes the place of ``brain``, a precomputed bias-corrected image that of
``bias``; what is finished is not planned again. T1w images come first: another image of the same
session, whose own tissues are in doubt, gets theirs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harmonizer import __version__
from harmonizer.errors import HarmonizerError
from harmonizer.files import read_json, sha256_of

from ..dataset.records import ScanRecord
from ..outputs.figures import figures_index
from ..outputs.names import TISSUES, ScanPaths, node_name, resolution_of, sidecar
from ..outputs.scanlog import ScanLog, log_path, read_log, write_log
from ..settings import Settings
from .engine import Failure, execute

if TYPE_CHECKING:
    from nipype import Workflow

__all__ = ["preprocess", "init_preprocessing_wf", "init_scan_wf", "fingerprint", "plan"]

LOGGER = logging.getLogger("pipelines")
STEPS = ("conform", "brain", "bias", "register", "to_template")
MEM_GB = {  # of the process, rounded up from the peaks in docs/benchmarks.md
    "conform": 0.5, "brain": 1.5, "given_brain": 0.5, "bias": 1.2, "register": 1.2,
    "to_template": 0.8, "segment": 1.9, "quality": 1.2, "save": 1.3, "draw": 1.6,
}
MEASURED_VOXELS = 15_000_000  # of the larger head that was measured; a larger one announces more


@dataclass(frozen=True)
class Job:
    """One scan to be preprocessed."""

    record: ScanRecord
    paths: ScanPaths
    fingerprint: str
    donor: ScanRecord | None = None

    @property
    def name(self) -> str:
        """Name of the scan's workflow: letters, digits and underscores."""
        return node_name(self.scan_id)

    @property
    def scan_id(self) -> str:
        """The record's."""
        return self.record.scan_id


def paths_of(record: ScanRecord, out: Path, settings: Settings) -> ScanPaths:
    """Where a record's derivatives go."""
    return ScanPaths(out, record.folder, record.stem, record.modality,
                     resolution_of(settings.sloppy))


def fingerprint(record: ScanRecord, settings: Settings, donor: ScanRecord | None = None) -> str:
    """Names the source's bytes and everything that changes its preprocessing (SHA-256, 16 digits).

    A finished scan is reused only if its fingerprint is the same. `donor`: the image that its
    tissues may be taken from.
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
    if donor is not None:
        parts["donor"] = sha256_of(donor.path)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def segmenter_of(settings: Settings) -> str | None:
    """Name of the network's weights; None in a sloppy run, which does without."""
    from harmonizer.segmentation.predict import NetworkSegmenter

    return None if settings.sloppy else NetworkSegmenter().name


def brain_network_of(settings: Settings) -> str | None:
    """Name of the network that finds or checks brain masks; None where it is not asked: in a sloppy
    run, unless it is asked for.
    """
    from harmonizer.segmentation.brain import brain_weights_name

    without = settings.sloppy and settings.skull_strip != "network"
    return None if without else brain_weights_name()


def preprocess(
    settings: Settings, records: Sequence[ScanRecord], out: Path | None = None
) -> tuple[tuple[Failure, ...], int]:
    """Preprocess every record that is not finished; returns (failures, how many were reused).

    An image that cannot be used becomes a failure and the others go on.
    """
    out = settings.output_dir if out is None else out
    jobs, failures, reused = plan(settings, records, out)
    if reused:
        LOGGER.info("%d of %d scans are preprocessed already and reused.", reused, len(records))
    if jobs and not settings.dry_run:
        if settings.write_graph:
            write_graph(init_preprocessing_wf(settings, jobs), out, "preprocess")
        for portion in _in_order(jobs):
            failures += execute(partial(init_preprocessing_wf, settings), portion, settings,
                                "preprocess")
    by_id = {record.scan_id: record for record in records}
    if not settings.dry_run:
        for failure in failures:
            write_log(out, ScanLog(failure.scan_id, "preprocess", "failed",
                                   by_id[failure.scan_id].site, failure.message))
        _warn_of_doubts(jobs, out)
    return failures, reused


def _in_order(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that wait for nobody, then those that may take the tissues of one of the first."""
    portions = [[job for job in jobs if (job.donor is None) == first] for first in (True, False)]
    return [portion for portion in portions if portion]


def _donors(records: Sequence[ScanRecord], settings: Settings) -> dict[Path, ScanRecord]:
    """Folder of a session -> its T1w image, the first by name; none in a sloppy run."""
    if settings.sloppy:
        return {}
    ordered = sorted(records, key=lambda record: record.scan_id, reverse=True)
    return {record.folder: record for record in ordered if record.modality == "T1w"}


def _warn_of_doubts(jobs: Sequence[Job], out: Path) -> None:
    """Say where a brain mask is in doubt, and where an image does not bear out its tissues."""
    from harmonizer.segmentation.predict import low_confidence_warning

    for job in jobs:
        log = read_log(out, job.scan_id, "preprocess")
        facts = log.facts if log else {}
        if reasons := facts.get("Quality", {}).get("reasons"):
            LOGGER.warning("%s: look at its brain mask: %s.", job.scan_id, "; ".join(reasons))
        support = facts.get("ContrastSupport")
        if donor := facts.get("TissuesFrom"):
            LOGGER.info("%s: its tissues are those of %s, which shows them better.", job.scan_id,
                        donor)
        elif support is not None and (text := low_confidence_warning(support)):
            LOGGER.warning("%s: %s", job.scan_id, text)


def plan(settings: Settings, records: Sequence[ScanRecord], out: Path
         ) -> tuple[list[Job], tuple[Failure, ...], int]:
    """(jobs to run, scans whose image cannot be used, how many are finished)."""
    from harmonizer.preprocessing.conform import check_image

    jobs, failures, reused = [], [], 0
    donors = _donors(records, settings)
    for record in records:
        paths = paths_of(record, out, settings)
        donor = None if record.modality == "T1w" else donors.get(record.folder)
        try:
            name = fingerprint(record, settings, donor)
            if _is_finished(paths, record, name, settings.sloppy):
                reused += 1
                continue
            check_image(record.path)
        except HarmonizerError as error:
            failures.append(Failure(record.scan_id, "preprocess", str(error)))
            continue
        except OSError as error:
            failures.append(Failure(record.scan_id, "preprocess",
                                    f"{error.filename}: {error.strerror}. Check the file."))
            continue
        jobs.append(Job(record, paths, name, donor))
    return jobs, tuple(failures), reused


def _is_finished(paths: ScanPaths, record: ScanRecord, name: str, sloppy: bool) -> bool:
    """Whether the scan's results are all there, made from this image with these settings."""
    path = sidecar(paths.image("preproc", template=True))
    needed = (paths.image("preproc", template=True), paths.mask(template=True), paths.to_template,
              paths.image("preproc"), paths.mask(), paths.from_template,
              log_path(paths.out, paths.scan_id, "preprocess"),
              figures_index(paths, "preprocess"))  # drawn last
    if not sloppy:
        needed += tuple(paths.share(t, template=space) for t in TISSUES for space in (False, True))
    if not path.is_file() or not all(p.is_file() for p in needed):
        return False
    content = read_json(path)
    if content.get("Fingerprint") != name:
        LOGGER.info("%s: source, settings or version changed; it is preprocessed again.",
                    record.scan_id)
        return False
    return True


def init_preprocessing_wf(settings: Settings, jobs: Sequence[Job]) -> Workflow:
    """One workflow of independent scans."""
    from nipype import Workflow

    workflow = Workflow(name="preprocess_wf", base_dir=str(settings.work_dir))
    workflow.add_nodes([init_scan_wf(settings, job) for job in jobs])
    return workflow


def init_scan_wf(settings: Settings, job: Job) -> Workflow:
    """Conform, extract the brain, correct the bias, register, save and draw one scan.

    Inputs (``inputnode``)
        in_file : the image; in_mask : its precomputed mask where there is one
    Outputs (``outputnode``)
        template_file : the preprocessed image on the template grid
    """
    from nipype import Node, Workflow
    from nipype.interfaces.utility import IdentityInterface

    from ..interfaces import ants, image

    record = job.record

    def node(interface, name: str, **inputs) -> Node:
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


def _brain_node(node, inputnode, record: ScanRecord, settings: Settings):
    """The node that finds the brain, or that takes the mask that is there already."""
    from ..interfaces import ants, image

    if "mask" in record.precomputed:
        inputnode.inputs.in_mask = str(record.precomputed["mask"])
        return node(image.ConformMask, "given_brain")
    weights = brain_network_of(settings)
    return node(ants.ExtractBrain, "brain", mode=settings.skull_strip, seed=settings.random_seed,
                sloppy=settings.sloppy, **({} if weights is None else {"weights": weights}))


def memory_of(step: str, record: ScanRecord) -> float:
    """GB that a step of this scan takes at most."""
    import nibabel as nib

    voxels = math.prod(nib.load(record.path).shape[:3])  # type: ignore[attr-defined]
    return MEM_GB[step] * max(1.0, voxels / MEASURED_VOXELS)


def _connect_outputs(workflow, settings: Settings, job: Job, steps: list, outputnode) -> None:
    """Gather quality and times, save the derivatives, draw the figures."""
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
    save.overwrite = draw.overwrite = True  # they write into the output folder, not into a cache
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


def _connect_segmentation(workflow, settings: Settings, job: Job, steps: list, quality, save
                          ) -> None:
    """Tissues on both grids."""
    from nipype import Node

    from ..interfaces.segment import Segment

    _, brain, bias, register, to_template = steps
    weights, donor = segmenter_of(settings), job.donor
    given = {} if donor is None else {
        "donor": (str(job.paths.out), str(donor.folder), donor.stem),
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
        (segment, save, [("native", "native_shares"), ("template", "template_shares"),
                         ("support", "support"), ("donor", "donor")]),
    ])


def write_graph(workflow: Workflow, out: Path, name: str) -> None:
    """Write the workflow's graph as DOT text into OUT/logs; drawing it needs graphviz."""
    import networkx as nx

    lines = [f'  "{a.fullname}" -> "{b.fullname}";'
             for a, b in nx.DiGraph(workflow._create_flat_graph()).edges()]
    from harmonizer.files import write_text

    path = write_text(out / "logs" / f"graph_{name}.dot",
                      "digraph harmonizer {\n" + "\n".join(sorted(lines)) + "\n}\n")
    LOGGER.info("The graph was written to %s (draw it with: dot -Tsvg).", path)
