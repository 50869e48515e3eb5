"""Test the one message of a full disk: for every writer, with nothing half-written left behind."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file
from support.backends import ROOT
from support.commands import assert_refused, files_below
from support.disks import files_up_to, small_disk
from support.small import RandomDataset, small_config

from guided_diffusion_core import checkpoints
from guided_diffusion_core.data.dataset import Case
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.evaluation import write_summary
from guided_diffusion_core.results.outputs import CaseWriter
from guided_diffusion_core.sampling.run import SamplingRun
from guided_diffusion_core.system import room
from guided_diffusion_core.system.files import make_writable_folder, write_atomic, writing
from guided_diffusion_core.system.locks import locked_folder
from guided_diffusion_core.training.log import RunLog

NOISE = np.random.default_rng(3).integers(0, 255, 20000, np.uint8).tobytes()  # no compression makes it smaller
ARRAYS = {"a": np.arange(5000, dtype=np.float32)}


def write_case(folder):
    """Write the masks of an image whose files do not compress."""
    values = np.random.default_rng(3).uniform(size=(1, 1, 96, 96)).astype(np.float32)
    CaseWriter(folder).write(Case("a", (0,), (96, 96)), values, values / 2, 0.5)


def log_until_full(folder):
    log = RunLog(folder)
    try:
        for step in range(1, 400):
            log.record({"total": 1 / step})
            log.write(step=step, seconds=float(step))
    finally:
        log.close()


WRITERS = {
    "a file": lambda folder: write_atomic(folder / "a.json", NOISE),
    "a checkpoint": lambda folder: checkpoints.save(folder, 3, small_config(), {"model": ARRAYS}),
    "a mask": write_case,
    "scores": lambda folder: write_summary(folder / "summary.json", {"cases": list(range(4000))}),
    "a log": log_until_full,
}


@pytest.mark.parametrize("kind", ["limit", "disk"])
@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_says_what_it_needs_and_leaves_nothing_half_written(tmp_path, writer, kind, capsys):
    folder = tmp_path / "out"
    with files_up_to(9000) if kind == "limit" else small_disk(folder, 16) as _:
        folder.mkdir(exist_ok=True)
        (folder / "notes.txt").write_text("kept")
        before = files_below(folder)
        with pytest.raises(room.NoRoom) as error:
            WRITERS[writer](folder)
        left = set(files_below(folder)) - set(before)
    for text in (str(folder), "free", "expected room for", "Make room, then start the same command again."):
        assert text in str(error.value)
    if writer == "a log":
        assert {path.name for path in left} == {"progress.jsonl", "progress.csv"}
    else:
        assert not left


def test_the_message_has_the_bytes_that_are_needed(tmp_path):
    with files_up_to(9000), pytest.raises(room.NoRoom, match="room for 19.5 KiB"):
        write_atomic(tmp_path / "a.json", NOISE)
    with files_up_to(9000), pytest.raises(room.NoRoom, match="room for 39.1 KiB"):
        checkpoints.save(tmp_path, 3, small_config(), {"model": ARRAYS, "ema_0.9": ARRAYS})


def test_the_file_before_stays(tmp_path):
    write_atomic(tmp_path / "a.json", b"old")
    with files_up_to(9000), pytest.raises(room.NoRoom):
        write_atomic(tmp_path / "a.json", NOISE)
    assert (tmp_path / "a.json").read_bytes() == b"old"


@pytest.mark.parametrize(
    "error, full",
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EFBIG, "File too large"), True),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (SafetensorError("IoError(Os { code: 122, message: Disk quota exceeded }) (os error 122)"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (SafetensorError("Error while serializing: I/O error: Permission denied (os error 13)"), False),
        (SafetensorError("invalid header"), False),
        (ValueError("(os error 28)"), False),
    ],
)
def test_what_a_full_disk_is(error, full):
    assert room.is_full(error) == full


def test_safetensors_own_errors_become_messages(tmp_path):
    """Take the errors of the library as it is installed."""
    with files_up_to(9000), pytest.raises(room.NoRoom, match="File too large"), writing(tmp_path / "a"):
        save_file(ARRAYS, tmp_path / "a")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written") as error, writing(tmp_path / "folder"):
        save_file(ARRAYS, tmp_path / "folder")
    assert not isinstance(error.value, room.NoRoom)


def test_the_folder_of_a_run_on_a_full_disk(tmp_path):
    """A full disk may refuse a new folder, and the lock's line, which only names its process."""
    with small_disk(tmp_path / "disk", 8) as disk:
        with open(disk / "filler", "wb") as file, pytest.raises(OSError):
            while True:
                os.write(file.fileno(), bytes(512))
        with locked_folder(disk, "a training"), pytest.raises(UserError), locked_folder(disk, "another"):
            pass
        assert [path.name for path in disk.iterdir()] == ["filler"]
        with pytest.raises(room.NoRoom):
            write_atomic(make_writable_folder(disk / "new", "--out_dir") + "/a.json", NOISE)


def test_a_sampling_says_how_it_goes_on(tmp_path):
    """The finished cases stay, and the same command with --continue samples the rest."""

    class Images(RandomDataset):
        def cases(self):
            sizes = [(40, 40), (400, 400)]
            return [Case(f"case{index}", (index,), sizes[index]) for index in range(2)]

    def sampler(images, keys):
        return np.random.default_rng(len(keys)).uniform(size=(2, len(keys), 1, 32, 32)).astype(np.float32)

    def sample(**more):
        SamplingRun(Images(), tmp_path, 1, 0.5, {"seed": 1}, **more).run(sampler)

    with files_up_to(100_000), pytest.raises(room.NoRoom, match="case1_.*Make room, then go on with --continue."):
        sample()
    assert not list(tmp_path.glob("*writing*")) and (tmp_path / "case0_mask.png").exists()
    first = (tmp_path / "case0_mask.png").stat().st_mtime_ns
    sample(resume=True)
    assert (tmp_path / "case1_mask.png").exists() and (tmp_path / "case0_mask.png").stat().st_mtime_ns == first


@pytest.mark.parametrize(
    "work",
    [
        "print('short')",
        "print('x' * 100_000)",
        "open('/dev/full', 'w').write('x' * 100_000)",
        "__import__('tqdm').tqdm.write('a line of a log')",
    ],
)
def test_what_no_function_of_ours_writes_is_one_message_too(work):
    code = f"from guided_diffusion_core.command_line.run import run_command\nrun_command(lambda: {work}, 'medsegdiff')"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert_refused((done.returncode, "", done.stderr), "medsegdiff: ", "No space left on device", "Make room")


@pytest.mark.parametrize(
    "count, text",
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (1.7 * 2**30, "1.7 GiB"), (2**42, "4.0 TiB")],
)
def test_sizes_as_texts(count, text):
    assert room.size_text(count) == text


def test_free_room_where_a_folder_will_be_made(tmp_path):
    with small_disk(tmp_path / "disk", 64) as disk:
        assert room.free_bytes(disk / "new" / "folder") == 64 * 1024


def test_the_memory_limit_is_at_most_the_machines():
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    swap = room._meminfo().get("SwapTotal", 0)
    assert 0 < room.memory_limit() <= machine + swap


def test_limits_of_control_groups(monkeypatch):
    monkeypatch.setattr(room, "_group_limits", lambda: [3 * 2**30, 5 * 2**30])
    monkeypatch.setattr(room, "_meminfo", lambda: {"MemTotal": 8 * 2**30, "SwapTotal": 2**30})
    assert room.memory_limit() == 4 * 2**30
