"""Check the requirements of a machine: Python, its headers, a compiler, room on the disk."""

import os

import pytest

from guided_diffusion_core.errors import UserError
from guided_diffusion_core.system import environment


def test_machine_of_the_tests_is_complete():
    environment.check_python()
    environment.check_compiler()
    assert os.access(environment.python_config(), os.X_OK)


@pytest.mark.parametrize("version", [(3, 8), (3, 13)])
def test_unsuitable_python_is_refused(monkeypatch, version):
    monkeypatch.setattr(environment.sys, "version_info", (*version, 0))
    with pytest.raises(UserError, match="expected Python 3.11 or 3.12"):
        environment.check_python()


def test_missing_headers_name_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(environment.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(UserError, match=rf"Python.h: .*apt-get install {environment.PYTHON}-dev"):
        environment.python_config()


def test_full_disk_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "NEEDED_BYTES", 2**60)
    with pytest.raises(UserError, match="Make room"):
        environment.check_disk(tmp_path)
    assert environment.main(str(tmp_path)) == 2
