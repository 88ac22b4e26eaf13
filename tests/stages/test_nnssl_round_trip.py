"""A cohort goes out in nnssl's form, and comes in again with its coarse maps."""

from __future__ import annotations

import numpy as np
import pytest
from fake_work import fake_work

from sacl.cohort.manifest import read_cohort, read_image
from sacl.errors import DataError
from sacl.files.nifti import read_label_map
from sacl.run.workspace import Workspace
from sacl.settings import IngestSettings, LocateSettings, MapsSettings
from sacl.stages.export import export
from sacl.stages.ingest import ingest
from sacl.stages.locate import locate


def test_what_was_exported_for_nnssl_is_ingested_and_located_again(tmp_path):
    organs = ("liver", "spleen", "gallbladder")
    work = fake_work(tmp_path / "work", organs=organs)
    export(work, tmp_path / "out", "nnssl", splits=("train", "test"))
    again = Workspace(tmp_path / "again", device="cpu")
    home = ingest(IngestSettings(data=tmp_path / "out", organs=organs), again)
    maps = (
        locate(
            LocateSettings(maps=MapsSettings(source=tmp_path / "out" / "pretrain_data.json")), again
        )
        / "maps"
    )
    before, after = read_cohort(work.folder("ingest")), read_cohort(home)
    assert [c.case_id for c in after.cases] == [c.case_id for c in before.cases]
    for old, new in zip(before.cases, after.cases, strict=True):
        assert new.subject_id == old.subject_id
        assert new.scan_label("phase") == old.scan_label("phase")
        images = [
            read_image(folder, case) for folder, case in ((work.folder("ingest"), old), (home, new))
        ]
        assert np.array_equal(images[0].voxels, images[1].voxels)
        given = read_label_map(maps / f"{new.case_id}.nii.gz", after.scheme)[0]
        path = work.folder("locate") / "maps" / f"{old.case_id}.nii.gz"
        assert np.array_equal(given.voxels, read_label_map(path, before.scheme)[0].voxels)


@pytest.mark.parametrize("damaged", ["1-cohort/images", "2-coarse/maps"])
def test_damaged_files_are_not_exported_for_nnssl(tmp_path, damaged):
    work = fake_work(tmp_path / "work", organs=("liver", "spleen"))
    path = sorted((work.root / damaged).iterdir())[0]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=path.name):
        export(work, tmp_path / "out", "nnssl", splits=("train", "test"))
    assert not (tmp_path / "out" / "pretrain_data.json").exists()
    assert not list((tmp_path / "out").rglob("*.nii*"))
