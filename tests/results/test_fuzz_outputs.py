"""Test damaged checkpoints, images and predictions: one clear error, and no half-written file stays."""

import contextlib
import io
import json
from collections import Counter

import numpy as np
import pytest
from support.fuzzing import outcome, pictures, try_all
from support.mutants import inner_mutants, mutants
from support.small import small_config

from guided_diffusion_core import checkpoints, evaluation, sampling
from guided_diffusion_core.checkpoints import files
from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.conversion import convert
from guided_diffusion_core.data import list_truths, open_dataset, phantoms
from guided_diffusion_core.data.formats.rasters import read_raster
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.networks.registry import initial_state, make_plan
from guided_diffusion_core.results.outputs import read_output

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries warn of what they find, each in its own way


@pytest.fixture(scope="module")
def weights():
    config = small_config(normalisation="RGB / 255", data_name="ISIC")
    arrays = initial_state(config.model, config.seed)
    return config, arrays


def test_checkpoints(weights, tmp_path):
    """Damage the header, which has the configuration and the positions of the arrays, and the whole file."""
    config, arrays = weights
    small = {name: value for name, value in arrays.items() if value.size < 200}
    folder = checkpoints.save(tmp_path / "run", 3, config, {"model": small, "trainer": {"a": np.ones(9, np.float32)}})
    path = folder / "model.safetensors"
    header = int.from_bytes(path.read_bytes()[:8], "little")
    content = path.read_bytes()
    about_config = [(done, damaged + content[header:]) for done, damaged in mutants(content[:header], 90, 1)]
    expected = {name: value.shape for name, value in small.items()}

    def sample():
        trained, loaded = checkpoints.load(checkpoints.find(path))
        checkpoints.check_state(expected, loaded, path)
        make_plan(sampling.sampling_config(path, {}).model)

    def convert_it():
        out = tmp_path / "out.safetensors"
        try:
            convert.write(str(out), convert.read(str(path)))
        finally:
            assert [each.name for each in tmp_path.iterdir() if each.name not in ("run", out.name)] == []
            out.unlink(missing_ok=True)

    whole = checkpoints.load
    try_all(path, [*about_config, *mutants(content, 60, 2)], [sample])
    for done, damaged in [*about_config[:20], *mutants(content, 20, 3)]:
        path.write_bytes(damaged)
        outcome(convert_it, done)
        if damaged != content:
            with pytest.raises(UserError, match="bytes that differ from those written"):
                checkpoints.find_whole("last", tmp_path / "run")
    path.write_bytes(content)
    assert whole(path)[0] == config


@pytest.mark.parametrize("value", [None, "x", [1], -7, 0, 1e30, True])
def test_any_value_of_a_setting_in_a_checkpoint(weights, tmp_path, monkeypatch, value):
    """A complete file with another value of one setting is refused."""
    written = []
    monkeypatch.setattr(
        files,
        "_metadata",
        lambda step, config, network: {
            "format": checkpoints.FORMAT,
            "step": "3",
            "config": json.dumps(written[-1]),
            "network": network,
        },
    )
    path = tmp_path / "model.safetensors"
    seen = Counter()
    for section, name in (
        (section, name)
        for section, tree in weights[0].to_dict().items()
        for name in (tree if isinstance(tree, dict) else [None])
    ):
        changed = weights[0].to_dict()
        if name is None:
            changed[section] = value
        else:
            changed[section][name] = value
        written.append(changed)
        path.write_bytes(checkpoints.to_bytes(3, weights[0], "model", {"a": np.ones(2, np.float32)}))

        def sample():
            config = sampling.sampling_config(path, {})
            make_plan(config.model)
            checkpoints.load_all(tmp_path)

        seen[outcome(sample, f"{section} {name}: {value}")] += 1
    assert seen["refused"] > 10


@pytest.mark.parametrize("name", ["contents.json", "../last"])
def test_pointers_and_contents_of_a_checkpoint(weights, tmp_path, name):
    folder = checkpoints.save(tmp_path, 3, weights[0], {"model": {"a": np.ones(9, np.float32)}})
    path = (folder / name).resolve()
    for done, damaged in mutants(path.read_bytes(), 40, 4):
        path.write_bytes(damaged)
        outcome(lambda: checkpoints.find_whole("last", tmp_path), done)
        outcome(lambda: checkpoints.load(checkpoints.find(tmp_path)), done)


def halves(images, keys):
    """Sample two members without a network: (2, N, 1, S, S)."""
    return np.stack([images[:, :1] > 0.4, images[:, :1] > 0.6]).astype(np.float32)


def is_finished(report):
    return report.exists() and json.loads(report.read_text())["finished"]


def assert_only_whole_files(folder):
    """Require that every file in a folder of masks can be read and that no temporary file is left."""
    for path in folder.iterdir() if folder.exists() else ():
        assert not path.name.startswith(".") and "writing" not in path.name
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.stem.endswith(("_overlay", "_uncertainty_map")):
            read_raster(path)
        else:
            read_output(str(path))


def test_sampling_leaves_no_half_written_file(shared_data, tmp_path):
    photograph, _, _ = pictures(shared_data)
    (tmp_path / "images").mkdir()
    for number in (1, 2):
        photograph.save(tmp_path / "images" / f"{number}.jpg")
    path = tmp_path / "images" / "2.jpg"
    out_dir = tmp_path / "out"

    def sample():
        dataset = open_dataset(DataConfig("IMAGES", str(tmp_path / "images")), 32, "Test", need_masks=False)
        sampling.SamplingRun(dataset, out_dir, 1, 0.5, {}).run(halves)

    content = path.read_bytes()
    seen = Counter()
    with contextlib.redirect_stderr(io.StringIO()):
        for done, damaged in mutants(content, 40, 7):
            path.write_bytes(damaged)
            result = outcome(sample, done)
            seen[result] += 1
            assert_only_whole_files(out_dir)
            assert is_finished(out_dir / "run_report.json") == (result == "loaded")
            for left in out_dir.iterdir() if out_dir.exists() else ():
                left.unlink()
    assert seen["loaded"] and seen["refused"]


@pytest.mark.parametrize("kind", ["probability.tiff", "mask.png", "uncertainty.tiff", "volume"])
def test_predictions(tmp_path, kind):
    """Damage the files of a sampling run, then score them."""
    if kind == "volume":
        data = tmp_path / "data"
        name = "VOLUMES"
        phantoms.write_volume_phantoms(data, 1, (16, 16, 6), 1)
    else:
        data = tmp_path / "data"
        name = "IMAGES"
        phantoms.write_image_phantoms(data, 1, 32, 1)
    config = DataConfig(name, str(data))
    out_dir = tmp_path / "out"
    with contextlib.redirect_stderr(io.StringIO()):
        sampling.SamplingRun(open_dataset(config, 32, "Test", need_masks=False), out_dir, 2, 0.5, {}).run(halves)
    if kind == "mask.png":
        next(out_dir.glob("*probability*")).unlink()
    path = next(out_dir.glob("*probability.nii.gz" if kind == "volume" else f"*{kind}"))
    damaged = [*mutants(path.read_bytes(), 60, 5)]
    if kind in ("mask.png", "volume"):
        damaged += inner_mutants(path.read_bytes(), 30, 5, "png" if kind == "mask.png" else "gzip")

    def score():
        summary = evaluation.evaluate(out_dir, list_truths(config, "Test"), 0.5)
        evaluation.write_summary(out_dir / "summary.json", summary)

    content = path.read_bytes()
    seen = Counter()
    for done, mutant in damaged:
        path.write_bytes(mutant)
        seen[outcome(score, done)] += 1
        for left in out_dir.glob("summary*"):
            json.loads(left.read_text())
            left.unlink()
        assert not list(out_dir.glob("*writing*"))
    path.write_bytes(content)
    assert seen["loaded"] and seen["refused"], seen
