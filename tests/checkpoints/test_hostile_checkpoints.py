"""Test checkpoints whose configuration or files would take all time or memory: each is refused before it does."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from support import hostile
from support.backends import BACKENDS, ROOT
from support.fuzzing import time_limit
from support.small import small_config

from guided_diffusion_core import checkpoints
from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.conversion import convert
from guided_diffusion_core.data import list_files, open_dataset, phantoms
from guided_diffusion_core.data.check.inventory import take_inventory
from guided_diffusion_core.errors import UserError

CONFIG = small_config()
HUGE = 10**9
# name -> (section, setting, value) of a configuration in a file with a few small arrays
CHANGES = {
    "wide": ("model", "num_channels", 65536),
    "as wide as the range allows": ("model", "num_channels", 8192),
    "large": ("model", "image_size", 2**30),
    "deep": ("model", "num_res_blocks", HUGE),
    "one wide level": ("model", "channel_mult", f"1,{HUGE}"),
    "many levels": ("model", "channel_mult", "1," * 100_000 + "1"),
    "many masks": ("model", "mask_channels", HUGE),
    "many images": ("model", "in_ch", HUGE),
    "many heads": ("model", "num_heads", HUGE),
    "much attention": ("model", "attention_resolutions", "16," * 100_000 + "16"),
    "many members": ("sampling", "num_ensemble", HUGE),
    "many evaluations": ("sampling", "sample_steps", HUGE),
    "many diffusion steps": ("diffusion", "diffusion_steps", HUGE),
    "many averages": ("training", "ema_rate", "0.9," * 100_000 + "0.9"),
    "many processes": ("training", "num_workers", HUGE),
    "a number below its range": ("training", "batch_size", -1),
    "no number": ("training", "lr", float("nan")),
}


def with_config(tree, step="3", arrays=None):
    """Return a checkpoint's file of any configuration (JSON values, or a text) around a few arrays."""
    text = tree if isinstance(tree, str) else json.dumps(tree)
    metadata = {"format": checkpoints.FORMAT, "step": step, "network": "model", "config": text}
    header = {"__metadata__": metadata, "out.2.bias": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    return hostile.safetensors(header, bytes(8))


def hostile_configurations():
    files = {}
    for name, (section, setting, value) in CHANGES.items():
        tree = CONFIG.to_dict()
        tree[section] = {**tree[section], setting: value}
        files[name] = with_config(tree)
    first = small_config(version="1", channel_mult="1,1,2,2").to_dict()
    first["model"]["num_channels"] = 8192
    files["a large layer that files lack"] = with_config({**first, "network": "medsegdiff_v1"})
    files["a deep text"] = with_config("[" * 200_000 + "]" * 200_000)
    files["a deep object"] = with_config('{"a":' * 200_000 + "1" + "}" * 200_000)
    files["a long number"] = with_config('{"seed": ' + "1" * 100_000 + "}")
    return files


READ_WITH_LITTLE_MEMORY = """
import importlib, json, pathlib, resource, sys
from guided_diffusion_core import checkpoints, sampling
from guided_diffusion_core.backends import backend_module, start_backend
from guided_diffusion_core.conversion import convert
from guided_diffusion_core.errors import UserError
start_backend({backend!r})
build = backend_module({backend!r}, "build")

def sample(path):
    sampling.sampling_config(checkpoints.find(path), {{}})
    build.load_network(path)

used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {spare}, used + {spare}))
for path in sys.argv[1:]:
    for action in (sample, convert.read, build.load_network):
        try:
            action(path)
            found = "read"
        except UserError as error:
            found = str(error)
        print(json.dumps([pathlib.Path(path).stem, found]), flush=True)
"""


@pytest.fixture(scope="module", params=BACKENDS)
def refusals(request, tmp_path_factory):
    """Return name -> messages of every hostile configuration, read by a process that has 500 MiB of memory left."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = []
    for name, content in hostile_configurations().items():
        paths.append(folder / f"{name}.safetensors")
        paths[-1].write_bytes(content)
    code = READ_WITH_LITTLE_MEMORY.format(spare=500 * hostile.MEGABYTE, backend=request.param)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)], cwd=ROOT, text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith("["):
            name, message = json.loads(line)
            found.setdefault(name, []).append(message)
    return found


@pytest.mark.parametrize("name", hostile_configurations())
def test_a_configuration_is_refused_before_anything_is_allocated(refusals, name):
    messages = refusals[name]
    assert len(messages) == 3
    for message in messages:
        assert f"{name}.safetensors" in message and len(message) < 3000


def test_the_setting_is_named(refusals):
    for name, (_, setting, _) in CHANGES.items():
        if name not in ("as wide as the range allows", "much attention"):  # which are possible in themselves
            assert f"--{setting}" in refusals[name][0], name
    assert "of another shape: out.2.bias" not in refusals["as wide as the range allows"][1]
    assert "missing" in refusals["as wide as the range allows"][2]


@pytest.mark.parametrize("step", ["", "x", "-1", "1" * 5000, "1.5"])
def test_a_step_that_is_no_number(tmp_path, step):
    (tmp_path / "model.safetensors").write_bytes(with_config(CONFIG.to_dict(), step))
    with pytest.raises(UserError, match="step"):
        checkpoints.load_all(tmp_path)


@pytest.mark.parametrize("kind", ["BF16", "F8_E4M3", "F4"])
def test_types_that_numpy_lacks(tmp_path, kind):
    metadata = {"format": checkpoints.FORMAT, "step": "1", "network": "model", "config": json.dumps(CONFIG.to_dict())}
    size = {"BF16": 2, "F8_E4M3": 1, "F4": 1}[kind]
    header = {"__metadata__": metadata, "a": {"dtype": kind, "shape": [2], "data_offsets": [0, 2 * size]}}
    path = tmp_path / "x.safetensors"
    path.write_bytes(hostile.safetensors(header, bytes(2 * size)))
    with pytest.raises(UserError, match="x.safetensors: found .*convert|no readable safetensors"):
        checkpoints.load(path)


@pytest.mark.parametrize(
    "contents",
    [
        "[]",
        '{"model.safetensors": 3}',
        '{"../../../../../../dev/zero": {}}',
        '{"/dev/zero": {}}',
        '{"zero": {}}',
        '{"pipe": {}}',
        '{"folder": {}}',
        "[" * 100_000,
        '{"a": ' * 100_000,
    ],
)
def test_contents_that_lead_elsewhere(tmp_path, contents):
    folder = checkpoints.save(tmp_path, 3, CONFIG, {"model": {"a": np.ones(3, np.float32)}})
    (folder / "zero").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    (folder / "contents.json").write_text(contents)
    with time_limit(), pytest.raises(UserError, match="no whole checkpoint"):
        checkpoints.find_whole("last", tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, '{"step": "x"}', '{"step": 1, "best": {"step": 1}}', "3"])
def test_a_record_of_validations_of_another_form(tmp_path, text):
    (tmp_path / "validation.json").write_text(text)
    with pytest.raises(UserError, match="validation.json: found no record of validations"):
        checkpoints.load_validation(tmp_path)


def make_pipe(path):
    os.mkfifo(path)


def make_link_to_device(path):
    path.symlink_to("/dev/zero")


def make_folder(path):
    path.mkdir()


def make_socket(path):
    place = os.getcwd()
    os.chdir(path.parent)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(place)


NO_FILES = {"a pipe": make_pipe, "a device": make_link_to_device, "a folder": make_folder, "a socket": make_socket}


@pytest.mark.parametrize("kind", NO_FILES)
class TestNoFiles:
    def refused(self, action, kind):
        with time_limit(), pytest.raises(UserError, match=f"found {kind}; expected a file"):
            action()

    @pytest.mark.parametrize("name", ["x.pt", "x.pkl", "x.safetensors"])
    def test_in_place_of_a_checkpoint(self, tmp_path, kind, name):
        NO_FILES[kind](tmp_path / name)
        self.refused(lambda: convert.read(tmp_path / name), kind)

    @pytest.mark.parametrize("folder", ["images", "masks"])
    def test_in_place_of_a_picture(self, tmp_path, kind, folder):
        phantoms.write_image_phantoms(tmp_path, 2, 32, 1)
        path = sorted((tmp_path / folder).iterdir())[0]
        path.unlink()
        NO_FILES[kind](path)
        self.without_a_hang(tmp_path, "IMAGES", kind)

    @pytest.mark.parametrize("folder", ["images", "masks"])
    def test_in_place_of_a_volume(self, tmp_path, kind, folder):
        phantoms.write_volume_phantoms(tmp_path, 2, (12, 12, 4), 1)
        path = sorted((tmp_path / folder).iterdir())[0]
        path.unlink()
        NO_FILES[kind](path)
        self.without_a_hang(tmp_path, "VOLUMES", kind)

    def without_a_hang(self, folder, name, kind):
        """Read the whole data set and check it; a folder is no file of data at all."""
        config = DataConfig(name, str(folder))

        def read():
            dataset = open_dataset(config, 32, "Training", need_masks=True)
            for index in range(len(dataset)):
                dataset[index]

        with time_limit(), pytest.raises(UserError):
            read()
        with time_limit():
            take_inventory(lambda: list_files(config, "Training", True))


@pytest.mark.parametrize("kind", [kind for kind in NO_FILES if kind != "a folder"])  # which may be a checkpoint's
def test_no_file_in_place_of_a_network(tmp_path, kind):
    NO_FILES[kind](tmp_path / "x.safetensors")
    with time_limit(), pytest.raises(UserError, match=f"found {kind}; expected a file"):
        checkpoints.load(checkpoints.find(tmp_path / "x.safetensors"))
