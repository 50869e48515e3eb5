"""A record of the whole ladder, which several files share."""

import shutil

import pytest
from support.parity_runs import parity


@pytest.fixture(scope="session")
def ladder(tmp_path_factory):
    """Folder of a run of all cases, every layer alone too, and the finished process.

    It takes minutes: a test that asks for it belongs to the files of `support.schedule.TOGETHER`.
    """
    folder = tmp_path_factory.mktemp("ladder") / "run"
    yield folder, parity("run", "all", "--layers", "--out_dir", folder)
    shutil.rmtree(folder)  # 10 GB
