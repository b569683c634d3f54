"""A round whose files are in an object store: copies here while it runs, and all that it leaves goes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.unit.training.conftest import MakeSpec, random_rows
from training.adapter import CONFIG, MANIFEST, WEIGHTS
from training.contracts import ParentAdapter, RoundSpec
from training.errors import SnapshotInvalid
from training.folder import open_folder
from training.learn import learn
from training.places import at_hand, hand_back


@pytest.fixture
def store(tmp_path: Path) -> str:
    """An object store's folder, empty."""
    return f"memory://{tmp_path}"


def remote(spec: RoundSpec, store: str) -> RoundSpec:
    """The same round with its files in the store."""
    open_folder(store).write("pairs.parquet", Path(spec.snapshot).read_bytes())
    places = {name: f"{store}/{name}" for name in ("out", "storage", "checkpoints")}
    return spec.model_copy(update=places | {"snapshot": f"{store}/pairs.parquet"})


def quiet(progress: Any) -> None: ...


def test_the_same_adapter_comes_out_and_lies_in_the_store(make_spec: MakeSpec, store: str) -> None:
    here = make_spec(rows=random_rows(12), seconds_between_checkpoints=0)
    spec = remote(here, store)
    with at_hand(spec) as copied:
        assert not any("://" in path for path in (copied.snapshot, copied.out, copied.storage))
        report = hand_back(learn(copied, quiet), copied, spec, upload=True)
    assert not Path(copied.out).exists()
    assert report.adapter_digest == learn(here, quiet).adapter_digest
    assert report.adapter_directory == f"{store}/out/adapter"
    assert set(open_folder(report.adapter_directory).names()) == {CONFIG, MANIFEST, WEIGHTS}
    assert open_folder(spec.checkpoints).names() == ["reference.safetensors"]
    for named in (report.samples, report.held_out, report.curves):
        assert named is not None
        assert fsspec.filesystem("memory").exists(named)


def test_the_parent_is_brought_here(make_spec: MakeSpec, store: str) -> None:
    first = remote(make_spec(rows=random_rows(12)), f"{store}/first")
    with at_hand(first) as copied:
        parent = hand_back(learn(copied, quiet), copied, first, upload=True)
    continued = ParentAdapter(name=parent.adapter_name, directory=parent.adapter_directory)
    second = remote(make_spec(rows=random_rows(12, seed=3), parent=continued), f"{store}/second")
    with at_hand(second) as copied:
        assert learn(copied, quiet).step0_max_abs_logratio == 0.0


def test_of_several_workers_one_uploads(make_spec: MakeSpec, store: str) -> None:
    spec = remote(make_spec(rows=random_rows(12)), store)
    with at_hand(spec) as copied:
        report = hand_back(learn(copied, quiet), copied, spec, upload=False)
    assert report.adapter_directory.startswith(store)
    assert open_folder(f"{store}/out").names() == []


def test_paths_of_this_machine_are_used_as_they_are(make_spec: MakeSpec) -> None:
    spec = make_spec(rows=random_rows(4))
    with at_hand(spec) as copied:
        assert copied is spec


def test_a_snapshot_that_is_not_there_is_named(make_spec: MakeSpec, store: str) -> None:
    spec = remote(make_spec(rows=random_rows(4)), store)
    with (
        pytest.raises(SnapshotInvalid, match=r"lost\.parquet is not there"),
        at_hand(spec.model_copy(update={"snapshot": f"{store}/lost.parquet"})),
    ):
        pass
