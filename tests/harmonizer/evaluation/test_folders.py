"""Two folders of images without BIDS: pairing, masks, tables, and the command that judges them."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harmonizer.errors import InputError
from harmonizer.evaluation.__main__ import main
from harmonizer.evaluation.folders import cohorts_of_folders, images_of, read_sites
from harmonizer.evaluation.statistics.resampling import Statistics
from harmonizer.evaluation.table import Metrics
from harmonizer.segmentation.predict import NetworkSegmenter
from harmonizer.segmentation.segmentations import tissue_ratios
from harmonizer.volume import Volume, read_volume, write_volume
from tests.harmonizer.evaluation import cohorts


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """before/ and done/ with eight images, masks/, and sites.tsv."""
    root = tmp_path_factory.mktemp("folders")
    plan = [(i, "AB"[i % 2], "1", 30.0 + i, "FM"[i // 2 % 2]) for i in range(8)]
    before = cohorts.write(root / "raw", plan)
    lines = ["file\tsite\tsubject\tage\tsex\tdx"]
    for scan in before:
        volume = scan.read()
        name = f"brain{scan.subject}"
        write_volume(root / "before" / f"{name}.nii.gz", volume)
        write_volume(root / "done" / f"{name}.nii.gz",
                     volume.with_data(cohorts.at_site_a(volume.data, scan.site)))
        lines.append(f"{name}.nii.gz\t{scan.site}\tp{scan.subject}\t{scan.age}\t{scan.sex}\thc")
    (root / "masks").mkdir()
    for scan in before:
        (root / "masks" / f"brain{scan.subject}_mask.nii.gz").write_bytes(scan.mask.read_bytes())
    (root / "sites.tsv").write_text("\n".join(lines) + "\n")
    return root


def test_images_are_paired_by_name_and_described_by_the_table(folders, tmp_path):
    before, after = cohorts_of_folders(folders / "before", {"done": folders / "done"}, tmp_path,
                                       sites=folders / "sites.tsv")
    first = before.scans[0]
    assert (first.scan_id, first.subject, first.site, first.age, first.sex) == (
        "brain00", "p00", "A", 30.0, "F")
    assert first.covariates == {"dx": "hc"}
    assert after["done"].scans[0].image == folders / "done" / "brain00.nii.gz"
    assert np.array_equal(first.read().mask, cohorts.MASK)  # from what is not zero


def test_names_speak_where_there_is_no_table(tmp_path):
    write_volume(tmp_path / "b" / "sub-07_ses-X_T2w.nii.gz", Volume(cohorts.MASK * 5.0, np.eye(4)))
    write_volume(tmp_path / "b" / "sub-07_ses-X_mask.nii.gz", Volume(cohorts.MASK, np.eye(4)))
    before, _ = cohorts_of_folders(tmp_path / "b", {}, tmp_path / "s")
    scan = before.scans[0]
    assert (scan.subject, scan.session, scan.modality, scan.site) == ("07", "X", "T2w", "unknown")
    assert len(before) == 1


def test_the_command_judges_and_writes(folders, tmp_path, capsys):
    code = main([str(folders / "before"), str(folders / "done"), "--masks", str(folders / "masks"),
                 "--sites", str(folders / "sites.tsv"), "--target", "A", "--permutations", "5",
                 "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert code == 0
    assert "Is the site effect removed?" in printed
    assert "Is the subject still identifiable?" in printed
    assert "No subject was scanned at two sites" in printed
    table = Statistics.from_tsv(tmp_path / "group_statistics.tsv")
    assert table.select(name="distribution_distance", backend="done", tissue="brain").rows[0].known
    held = Metrics.from_tsv(tmp_path / "metrics.tsv").select(measure="anatomy_held")
    assert held.values() == [1.0] * 8


def test_tissues_are_those_of_the_network(folders, tmp_path):
    for folder in ("before", "done"):
        for path in sorted((folders / folder).iterdir())[:4]:
            write_volume(tmp_path / folder / path.name, Volume(read_volume(path).data, np.eye(4)))
    code = main([str(tmp_path / "before"), str(tmp_path / "done"), "--sites",
                 str(folders / "sites.tsv"), "--target", "A", "--permutations", "2", "--tissues",
                 "--out", str(tmp_path)])
    assert code == 0
    table = Metrics.from_tsv(tmp_path / "metrics.tsv").select(measure="tissue_ratio")
    for folder, stage in (("before", "before"), ("done", "after")):
        volume = read_volume(tmp_path / folder / "brain00.nii.gz")
        wanted = tissue_ratios(NetworkSegmenter(quick=True)(volume.with_mask(volume.data != 0)))
        for tissue, value in wanted.items():
            found = table.select(stage=stage, tissue=tissue)
            assert len(found) == 4
            assert found.select(scan="brain00").values() == [pytest.approx(value, abs=2e-3)]
    held = Metrics.from_tsv(tmp_path / "metrics.tsv").select(measure="dice")
    assert len(held) == 4 and np.isfinite(held.values()).all()


def test_the_tables_make_a_report(folders, tmp_path, capsys):
    from harmonizer.reports.__main__ import main as report

    main([str(folders / "before"), str(folders / "done"), "--masks", str(folders / "masks"),
          "--sites", str(folders / "sites.tsv"), "--target", "A", "--permutations", "2",
          "--out", str(tmp_path)])
    assert report([str(tmp_path)]) == 0
    text = (tmp_path / "group.html").read_text(encoding="utf-8")
    assert text.count('<article class="card') == 4 and "done to A" in text
    assert "8 scans of 8 " in " ".join(text.split())
    assert text.count(">within limits<") == 8
    (tmp_path / "metrics.tsv").unlink()
    assert report([str(tmp_path)]) == 65 and "metrics.tsv" in capsys.readouterr().err


@pytest.mark.parametrize("change,words", [
    (["--masks", "nowhere"], "holds no mask"),
    (["--sites", "nowhere.tsv"], "expected a tab-separated table"),
    (["--covariates", "iq"], "covariate 'iq' is no column"),
])
def test_what_is_wrong_is_explained_without_a_traceback(folders, tmp_path, capsys, change, words):
    code = main([str(folders / "before"), str(folders / "done"), "--out", str(tmp_path), *change])
    assert code == 65
    assert words in capsys.readouterr().err


def test_two_methods_of_one_name_are_refused(folders, tmp_path, capsys):
    code = main([str(folders / "before"), str(folders / "done"), str(folders / "done"),
                 "--out", str(tmp_path)])
    assert code == 2 and "need different names" in capsys.readouterr().err


def test_files_that_do_not_fit_are_named(folders, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        images_of(tmp_path / "x")
    with pytest.raises(InputError, match="holds no NIfTI image"):
        images_of(tmp_path)
    write_volume(tmp_path / "full" / "brain00.nii.gz", Volume(np.ones((9, 9, 9)), np.eye(4)))
    with pytest.raises(InputError, match="100 % of its voxels are not zero"):
        cohorts_of_folders(tmp_path / "full", {}, tmp_path)
    with pytest.raises(InputError, match="no mask for brain00"):
        cohorts_of_folders(tmp_path / "full", {}, tmp_path, masks=_other(tmp_path))
    with pytest.raises(InputError, match="no image has the name of one"):
        cohorts_of_folders(folders / "before", {"x": _other(tmp_path)}, tmp_path)
    (tmp_path / "bad.tsv").write_text("name\tsite\na\tA\n")
    with pytest.raises(InputError, match="columns file and site; file not there"):
        read_sites(tmp_path / "bad.tsv")


def _other(folder: Path) -> Path:
    write_volume(folder / "other" / "else.nii.gz", Volume(np.ones((9, 9, 9)), np.eye(4)))
    return folder / "other"
