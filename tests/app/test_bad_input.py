"""The battery of bad input: each case with its exit code, and what is said.

Everything runs in this process up to the first heavy step (`execute`, which would start ANTs), for
all that can be refused is refused before it. Whole runs on bad images are in test_full_run.py.
"""

from __future__ import annotations

import gzip
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from harmonizer.preprocessing.conform import conform, write_on_original_grid
from pipelines import app
from tests.app.running import ROOT, command

SHAPE = (10, 11, 12)
SITES = "participant_id\tsite\nsub-01\tNYU\nsub-02\tKKI\nsub-03\tKKI\n"
BIDS = '{"Name": "x", "BIDSVersion": "1.9.0"}'


def noise(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None, **header: Any) -> None:
    """An image, with fields of its header overwritten last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, np.diag([2.0, 2, 2, 1]) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    image.to_filename(path)


def t1w(root: Path, label: str, end: str = ".nii.gz") -> Path:
    return root / f"sub-{label}/anat/sub-{label}_T1w{end}"


@dataclass
class Study:
    """A small dataset, and the app run on it up to the first heavy step."""

    root: Path
    capsys: pytest.CaptureFixture[str]
    planned: list[str] = field(default_factory=list)

    def run(self, *flags: str, root: Path | None = None, out: Path | None = None,
            levels: str = "participant", stages: str = "preprocess") -> tuple[int, str]:
        """(exit code, what was said)"""
        out = out or self.root.parent / "out"
        argv = [str(root or self.root), str(out), *levels.split()]
        argv += ["--stages", stages] if stages else []
        argv += ["-w", str(self.root.parent / "work"), "--skip-bids-validation", "--sloppy", *flags]
        code = app.main(argv)
        output = self.capsys.readouterr()
        return code, output.out + output.err


@pytest.fixture
def study(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
          ) -> Iterator[Study]:
    """Three subjects at two sites; the process is put back as it was."""
    from pipelines.workflows import preprocessing

    root = tmp_path / "Ünïcode and spaces" / "bids"
    for number, label in enumerate(("01", "02", "03")):
        save(t1w(root, label), noise(seed=number))
    (root / "dataset_description.json").write_text(BIDS)
    (root / "participants.tsv").write_text(SITES)
    made = Study(root, capsys)

    def stand_in(build: Any, jobs: Any, settings: Any, stage: str) -> tuple:
        made.planned += [job.scan_id for job in jobs]
        return ()

    monkeypatch.setattr(preprocessing, "execute", stand_in)
    environment, method = dict(os.environ), multiprocessing.get_start_method(allow_none=True)
    level = logging.getLogger().level
    yield made
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(method, force=True)
    logging.getLogger().setLevel(level)
    logging.captureWarnings(False)


def test_the_study_that_the_others_differ_from(study: Study) -> None:
    code, output = study.run()
    assert code == 0, output
    assert study.planned == ["sub-01_T1w", "sub-02_T1w", "sub-03_T1w"]
    assert "3 T1w scans at 2 sites: KKI 2, NYU 1" in output


# The request ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "levels", "code", "message"), [
    ("--participant-label 01 4", "participant", 2, r"sub-4 not in the dataset"),
    ("--session-label A", "participant", 2, "ses-A not in the dataset"),
    ("--modalities T2w", "participant", 65, "no image matches T2w images"),
    ("--modalities bold", "participant", 2, "--modalities: 'bold' is not known"),
    ("--target nyu", "participant group", 2, "no T1w scan is from that site. Did you mean 'NYU'"),
    ("--target scanner-free", "participant group", 2, "has no scanner-free target"),
    ("--target no.nii.gz", "participant group", 2, "no.nii.gz: no such file"),
    ("--backend combat", "participant", 2, "--backend 'combat' is not known"),
    ("--device gpu", "participant", 2, "expected auto, cpu, cuda or cuda:N"),
    ("--model nowhere", "participant", 69, "no such folder. Expected a fitted model"),
    ("--site-column scanner --site-from participants", "participant", 65, "its site is not known"),
    ("--bids-filter-file no.json", "participant", 2, "no.json: cannot be read"),
    ("-d nowhere", "participant", 2, "nowhere: expected a folder, but it does not exist"),
])
def test_what_is_asked_for_is_not_there(
    study: Study, flags: str, levels: str, code: int, message: str
) -> None:
    stages = "preprocess fit" if "group" in levels else "preprocess"
    got, output = study.run(*flags.split(), levels=levels, stages="")
    assert (got, message in output) == (code, True), (stages, output)
    assert study.planned == []


def test_cuda_that_is_absent(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, output = study.run("--device", "cuda")
    assert code == 69 and "sees 0 CUDA devices" in output and "--device cpu" in output


# The folders ---------------------------------------------------------------------------------


def test_no_dataset(study: Study, tmp_path: Path) -> None:
    code, output = study.run(root=tmp_path / "nothing")
    assert code == 2 and "nothing: expected a folder, but it does not exist" in output
    (tmp_path / "file").write_text("x")
    code, output = study.run(root=tmp_path / "file")
    assert code == 2 and "file: expected a folder, but it is a file" in output


def test_an_empty_folder(study: Study, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, output = study.run(root=tmp_path / "empty")
    assert code == 65 and "no image matches" in output
    assert "Expected files such as sub-01/" in output


def test_a_folder_of_images_that_is_not_bids(study: Study, tmp_path: Path) -> None:
    save(tmp_path / "scans/patient7.nii.gz", noise())
    code, output = study.run(root=tmp_path / "scans")
    assert code == 65 and "no image matches" in output


def test_the_validator_is_heard(study: Study) -> None:
    from pipelines.dataset.checks import validator_path

    if validator_path() is None:
        pytest.skip("no BIDS validator")
    (study.root / "dataset_description.json").unlink()
    code, output = study.run("--no-skip-bids-validation")
    assert code == 65 and "BIDS error" in output and "--skip-bids-validation" in output


@pytest.mark.parametrize(("out", "code", "message"), [
    (".", 2, "is the input folder"),
    ("..", 2, "lies inside the output folder"),
    ("sub-01", 2, "inside the input folder, and not in its derivatives"),
    ("results", 2, "inside the input folder, and not in its derivatives"),
    ("derivatives/harmonizer", 0, "3 T1w scans at 2 sites"),
])
def test_output_and_input(study: Study, out: str, code: int, message: str) -> None:
    got, output = study.run(out=study.root / out)
    assert (got, message in output) == (code, True), output
    assert code == 0 or not (study.root / out / "logs").exists()


def test_work_inside_the_input(study: Study) -> None:
    code, output = study.run("-w", str(study.root / "work"))
    assert code == 2 and "work folder" in output and "inside the input folder" in output


def test_an_output_that_is_a_file(study: Study, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    code, output = study.run(out=tmp_path / "taken")
    assert code == 2 and "taken: cannot be written" in output


# The sites -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("table", "code", "words"), [
    (None, 65, ["its site is not known", "Fill the column 'site' of participants.tsv"]),
    ("participant_id\tsite\nsub-01\tNYU\nsub-02\tn/a\nsub-03\tNYU\n", 1,
     ["sub-02_T1w.nii.gz: its site is not known", "failed: sub-02"]),
    (SITES + "sub-02\tNYU\n", 0, ["sub-02 has several rows", "NYU 1"]),
    (SITES.replace("sub-03\tKKI", "sub-03\tkki"), 0, ["site labels KKI and kki look alike"]),
    (SITES.replace("sub-03\tKKI", "sub-03\tK K-I"), 0, ["look alike", "3 T1w scans at 3 sites"]),
    (SITES.replace("NYU", "KKI"), 65, ["all 3 T1w scans are of one site, 'KKI'"]),
    (SITES, 0, ["Only one T1w scan at NYU"]),
    (SITES.replace("sub-03\tKKI", "sub-03\tUCLA"), 0,
     ["Only one T1w scan at each of KKI, NYU, UCLA"]),
    ("site\nNYU\n", 65, ["expected a column 'participant_id'"]),
    (SITES.replace("\t", ","), 65, ["separated by tabs"]),
    (SITES.encode("utf-16"), 0, ["Save it as UTF-8", "KKI 2, NYU 1"]),
    (SITES.replace("sub-0", ""), 65,
     ["names sub-1, sub-2, sub-3", "Write sub-01 where it has '1'"]),
    (SITES.replace("sub-03\tKKI\n", "sub-9\tKKI\n"), 1,
     ["1 of 3 participants with images have no row: sub-03", "have a row and no folder: sub-9"]),
    (SITES.replace("sub-03\tKKI", "sub-03"), 1, ["row 4 has 1 cells", "failed: sub-03"]),
], ids=["no table", "n/a", "conflict", "case", "spelling", "one site", "lone scan", "lone scans",
        "no id", "commas", "UTF-16", "no zeros", "other labels", "short row"])
def test_sites(study: Study, table: str | bytes | None, code: int, words: list[str]) -> None:
    path = study.root / "participants.tsv"
    if table is None:
        path.unlink()
    else:
        path.write_bytes(table if isinstance(table, bytes) else table.encode())
    both = code == 0 or "one site" in words[0]
    got, output = study.run(levels="participant group", stages="") if both else study.run()
    got = 0 if "no preprocessed T1w image to fit on" in output else got  # that is the stand-in's
    assert got == code, output
    for word in words:
        assert word in output


def test_the_table_that_is_nearer_decides(study: Study) -> None:
    for path in (study.root / "sub-01").rglob("*.nii.gz"):
        destination = study.root / "sub-01/ses-A/anat/sub-01_ses-A_T1w.nii.gz"
        destination.parent.mkdir(parents=True)
        path.rename(destination)
    (study.root / "sub-01/sub-01_sessions.tsv").write_text("session_id\tsite\nses-A\tOHSU\n")
    code, output = study.run()
    assert code == 0 and "KKI 2, OHSU 1" in output and "NYU" not in output


# The images ----------------------------------------------------------------------------------


def with_value(value: float) -> np.ndarray:
    data = noise()
    data[3, 4, 5] = value
    return data


def compressed(data: np.ndarray) -> bytes:
    return gzip.compress(nib.Nifti1Image(data, np.eye(4)).to_bytes(), mtime=0)


def claiming(shape: tuple[int, int, int]) -> bytes:
    content = bytearray(nib.Nifti1Image(noise(), np.eye(4)).to_bytes())
    content[42:48] = np.array(shape, "<i2").tobytes()
    return gzip.compress(bytes(content))


REFUSED: dict[str, tuple[np.ndarray | bytes, str]] = {
    "truncated gzip": (compressed(noise())[:3000], "cannot be read"),
    "gzip cut in the header": (compressed(noise())[:20], "cannot be opened"),
    "text": (b"this is not an image", "cannot be opened"),
    "html": (gzip.compress(b"<html>404</html>" * 40), "cannot be opened"),
    "empty file": (b"", "is an empty file"),
    "empty gzip": (gzip.compress(b""), "cannot be opened"),
    "NaN": (with_value(np.nan), "1 NaN or infinite voxels"),
    "infinity": (with_value(-np.inf), "1 NaN or infinite voxels"),
    "beyond float32": (noise().astype(np.float64) * 1e40, "NaN or infinite voxels"),
    "all zero": (np.zeros(SHAPE, np.int16), "is constant (every voxel is 0)"),
    "constant": (np.full(SHAPE, 7, np.uint8), "is constant (every voxel is 7)"),
    "2D": (noise(SHAPE[:2]), "expected a 3D image"),
    "one slice": (noise((10, 11, 1)), "a slice"),
    "three slices": (noise((10, 11, 3)), "only 3 voxels along one axis"),
    "4D": (noise((*SHAPE, 3)), "expected one 3D image, got 4D"),
    "5D": (noise((*SHAPE, 1, 2)), "expected one 3D image, got 5D"),
    "complex": (noise().astype(np.complex64), "not one real number each"),
    "claims a terabyte": (claiming((10000, 10000, 10000)), "at most 1000 mm along an axis"),
    "claims more than it has": (claiming((100, 100, 100)), "cannot be read"),
}


def write(path: Path, content: np.ndarray | bytes) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save(path, content)


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_image_takes_only_itself_out(study: Study, name: str) -> None:
    content, message = REFUSED[name]
    write(t1w(study.root, "02"), content)
    code, output = study.run()
    assert code == 1, output
    lines = [line for line in output.splitlines() if "sub-02" in line]
    assert any(message in line for line in lines), output
    assert "failed: sub-02." in lines[-1] and "Traceback" not in output
    assert study.planned == ["sub-01_T1w", "sub-03_T1w"]


def test_all_images_bad_is_65(study: Study) -> None:
    for label, name in (("01", "empty file"), ("02", "NaN"), ("03", "constant")):
        write(t1w(study.root, label), REFUSED[name][0])
    code, output = study.run()
    assert code == 65 and "none of the 2 images could be preprocessed" in output
    for label, name in (("01", "empty file"), ("02", "NaN")):
        assert f"sub-{label}" in output and REFUSED[name][1] in output


def test_color(study: Study) -> None:
    color = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    save(t1w(study.root, "02"), color)
    code, output = study.run()
    assert code == 1 and "is a color image" in output


def test_two_files_of_one_name(study: Study) -> None:
    save(t1w(study.root, "02", ".nii"), noise())
    code, output = study.run()
    assert code == 1 and "has the same name as" in output and "Keep one of the files" in output


def test_a_link_into_nothing(study: Study) -> None:
    t1w(study.root, "02").unlink()
    t1w(study.root, "02").symlink_to("annexed")
    code, output = study.run()
    assert code == 1 and "a link to a file that is not there" in output


def turned(degrees: float, spacing: tuple[float, float, float] = (2, 2, 2)) -> np.ndarray:
    angle = np.deg2rad(degrees)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[:3, :3] = affine[:3, :3] @ np.diag(spacing)
    return affine


def big_endian() -> bytes:
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    image = nib.Nifti1Image(noise().astype(">i2"), turned(0), header)
    return gzip.compress(image.to_bytes())


ACCEPTED: dict[str, Callable[[Path], None]] = {
    "4D with one volume": lambda path: save(path, noise((*SHAPE, 1))),
    "6 mm voxels": lambda path: save(path, noise(), turned(0, (6, 6, 6))),
    "thick slices": lambda path: save(path, noise(), turned(0, (0.5, 0.5, 6))),
    "left-handed": lambda path: save(path, noise(), turned(0, (-2, 2, 2))),
    "oblique": lambda path: save(path, noise(), turned(27)),
    "sform absent": lambda path: save(path, noise(), turned(10), sform_code=0, qform_code=1),
    "qform absent": lambda path: save(path, noise(), turned(10), sform_code=1, qform_code=0),
    "no position": lambda path: save(path, noise(), sform_code=0, qform_code=0),
    "uint8": lambda path: save(path, np.clip(noise(), 0, 255).astype(np.uint8)),
    "float64": lambda path: save(path, noise().astype(np.float64)),
    "int32": lambda path: save(path, noise().astype(np.int32)),
    "negative values": lambda path: save(path, np.pad(noise()[1:-1, 1:-1, 1:-1] - 150, 1)),
    "big-endian": lambda path: path.write_bytes(big_endian()),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_unusual_image_is_used(study: Study, name: str) -> None:
    path = t1w(study.root, "02")
    ACCEPTED[name](path)
    code, output = study.run()
    assert code == 0, output
    assert study.planned == ["sub-01_T1w", "sub-02_T1w", "sub-03_T1w"]
    stays_bit_for_bit(path)


def stays_bit_for_bit(path: Path) -> None:
    """What is written natively lies where the source lies."""
    conformed, source = conform(path), nib.load(path)
    written = path.with_name("written.nii.gz")
    back = nib.load(write_on_original_grid(written, conformed.volume.data, conformed))
    np.testing.assert_array_equal(back.affine, source.affine)
    np.testing.assert_array_equal(np.asarray(back.dataobj).reshape(source.shape),
                                  np.asarray(source.dataobj, dtype=np.float32))


def test_an_uncompressed_image_is_used(study: Study) -> None:
    t1w(study.root, "02").unlink()
    save(t1w(study.root, "02", ".nii"), noise())
    code, output = study.run()
    assert code == 0 and len(study.planned) == 3, output


def test_slope_and_intercept_are_what_the_voxels_mean(tmp_path: Path) -> None:
    stored = np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE)
    image = nib.Nifti1Image(stored, turned(0))
    image.header.set_slope_inter(2.5, -10)
    content = bytearray(image.to_bytes())
    content[112:120] = np.array([2.5, -10], "<f4").tobytes()  # nibabel resets them when it writes
    content[352:] = stored.tobytes(order="F")
    (tmp_path / "a.nii").write_bytes(content)
    data = conform(tmp_path / "a.nii").volume.data
    np.testing.assert_allclose(data, 2.5 * stored.astype(np.float32) - 10, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("order", permutations(range(3)), ids=str)
@pytest.mark.parametrize("signs", product((1, -1), repeat=3), ids=str)
def test_every_axis_order(tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.diag([2.0 * signs[0], 2.5 * signs[1], 3.0 * signs[2]])[:, list(order)]
    affine[:3, 3] = (-11, 7, 5)
    save(tmp_path / "a.nii.gz", noise(), affine)
    assert "".join(nib.aff2axcodes(conform(tmp_path / "a.nii.gz").volume.affine)) == "RAS"
    stays_bit_for_bit(tmp_path / "a.nii.gz")


def test_contradicting_forms_are_reported(tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise(), turned(0))
    image.set_sform(turned(0), 1)
    image.set_qform(turned(30), 1)
    image.to_filename(tmp_path / "a.nii.gz")
    conformed = conform(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(conformed.original_affine, turned(0))
    assert "the sform was used" in conformed.repairs[0]


@pytest.mark.parametrize("name", ["brain only", "whole head"])
def test_brain_only_beside_whole_head(name: str) -> None:
    from harmonizer.preprocessing.brain import is_brain_only
    from harmonizer.template import load_template

    template = load_template(2)
    whole = template.data + np.abs(np.random.default_rng(0).normal(0, 3, template.shape))
    head = np.where(template.mask, template.data, whole + 20)
    volume = template.with_data(template.data if name == "brain only" else head)
    assert is_brain_only(volume.with_mask(None)) is (name == "brain only")


# The machine ---------------------------------------------------------------------------------


def dry_run(study: Study, **how: Any) -> subprocess.CompletedProcess[str]:
    """A process of its own that plans the work, imports all there is, and writes its logs."""
    folder = study.root.parent
    words = command(study.root, folder / "out", "participant", "group", "--dry-run", "--sloppy",
                    "-w", folder / "work", "--nprocs", 1)
    environment = {**os.environ, **how.pop("env", {})}
    prefix = how.pop("prefix", [])
    return subprocess.run([*prefix, *words], capture_output=True, text=True, cwd=ROOT,
                          env=environment, timeout=300, **how)


@pytest.mark.slow
def test_no_home_no_name_no_network(study: Study, tmp_path: Path) -> None:
    how: dict[str, Any] = {"env": {"HOME": "/proc/nowhere", "MPLCONFIGDIR": "/proc/nowhere"}}
    os.environ.pop("USER", None)
    if os.geteuid() == 0:
        if not _readable_by_others(Path(sys.executable)) or not _readable_by_others(ROOT):
            pytest.skip("this environment lies where only root may read")
        shutil.chown(study.root.parent, 12345, 12345)
        _open_the_way(study.root.parent)
        how |= {"user": 12345, "group": 12345, "extra_groups": []}
        if shutil.which("setpriv") and _can_unshare():
            how = {"env": how["env"], "prefix": ["unshare", "-n", "setpriv", "--reuid", "12345",
                                                 "--regid", "12345", "--clear-groups"]}
    done = dry_run(study, **how)
    assert done.returncode == 0, done.stderr
    assert "3 scans to do" in done.stderr


def _readable_by_others(path: Path) -> bool:
    return all(p.stat().st_mode & 0o001 for p in [*path.resolve().parents])


def _open_the_way(folder: Path) -> None:
    """pytest's folders are its user's alone."""
    for path in folder.parents:
        if path.stat().st_uid == 0 and path.name.startswith(("pytest-", "test_")):
            path.chmod(0o755)


def _can_unshare() -> bool:
    return subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0
