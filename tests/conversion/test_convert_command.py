"""Test the command that converts checkpoints: no framework, messages, --dry_run and --verify."""

import pathlib
import shlex
import subprocess
import sys

import pytest
from support.backends import BACKENDS, ROOT
from support.conversions import FLAGS

from guided_diffusion_core import checkpoints
from guided_diffusion_core.conversion import convert, verify
from guided_diffusion_core.errors import UserError

CONVERT_WITHOUT = """
import runpy, sys

sys.path.insert(0, "scripts")

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocked())
for source, target in {pairs!r}:
    sys.argv = ["convert_checkpoint", source, target, *{flags!r}]
    try:
        runpy.run_path("scripts/convert_checkpoint.py", run_name="__main__")
    except SystemExit as end:
        assert not end.code
print("loaded", sorted({blocked!r} & sys.modules.keys()))
"""


class TestCommand:
    def test_needs_no_framework(self, tmp_path, source):
        paths = [str(tmp_path / name) for name in ("a.pt", "b.safetensors", "c.pkl", "d.pt")]
        convert.write(paths[0], source)
        code = CONVERT_WITHOUT.format(
            blocked={"torch", "jittor", "jittor_utils"}, pairs=list(zip(paths, paths[1:])), flags=FLAGS
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "loaded []"
        assert pathlib.Path(paths[3]).read_bytes() == pathlib.Path(paths[0]).read_bytes()

    def test_says_what_it_assumes(self, tmp_path, source, convert_checkpoint):
        convert.write(tmp_path / "a.pt", source)
        code, printed, _ = convert_checkpoint(
            tmp_path / "a.pt", tmp_path / "b.safetensors", "--image_size", 32, "--num_heads", 2
        )
        assert code == 0
        seen, assumed = (line for line in printed.splitlines() if line.startswith(("From", "Not")))
        assert "num_channels 32" in seen and "num_heads 2" in seen
        assert "num_heads " not in assumed and "diffusion_steps 1000" in assumed and "RGB / 255" in assumed

    def test_dry_run_writes_nothing(self, tmp_path, source, convert_checkpoint):
        convert.write(tmp_path / "a.pt", source)
        code, printed, _ = convert_checkpoint(tmp_path / "a.pt", tmp_path / "b.pkl", *FLAGS, "--dry_run")
        assert code == 0 and "Nothing written" in printed and "num_channels 32" in printed
        assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]

    def test_an_existing_file_stays(self, tmp_path, source, convert_checkpoint):
        convert.write(tmp_path / "a.pt", source)
        (tmp_path / "b.pkl").write_bytes(b"mine")
        code, _, errors = convert_checkpoint(tmp_path / "a.pt", tmp_path / "b.pkl", *FLAGS)
        assert code == 2 and "b.pkl: found an existing file" in errors
        assert (tmp_path / "b.pkl").read_bytes() == b"mine"

    @pytest.mark.parametrize(
        "names, text",
        [
            (("a.pt", "b.onnx"), "OUT"),
            (("a.bin", "b.pt"), "IN"),
            (("a.pt", "b"), "OUT"),
            (("no.pt", "b.pkl"), "no.pt"),
            (("a.pt", "no/such/folder/b.pkl"), "folder"),
        ],
    )
    def test_bad_paths_are_refused(self, tmp_path, source, convert_checkpoint, names, text):
        convert.write(tmp_path / "a.pt", source)
        (tmp_path / "a.bin").write_bytes(b"")
        code, _, errors = convert_checkpoint(*(tmp_path / name for name in names), *FLAGS)
        assert code == 2 and text in errors and "Traceback" not in errors

    def test_sampling_names_the_command(self, tmp_path, source):
        convert.write(tmp_path / "a.pt", source)
        with pytest.raises(UserError, match="medsegdiff convert .*a.pt .*a.safetensors"):
            checkpoints.find(tmp_path / "a.pt")

    @pytest.mark.parametrize("name", ["my model.pt", "it's $HOME.pth", "模型 (1).pkl", "a;b&c.pt", "plain.pt"])
    def test_the_suggested_command_can_be_typed(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UserError) as error:
            checkpoints.find(tmp_path / name)
        suggested = str(error.value).partition("Run: ")[2].partition(", with those")[0]
        target = (tmp_path / name).with_suffix(".safetensors")
        words = ["medsegdiff", "convert", str(tmp_path / name), str(target)]
        assert shlex.split(suggested) == [*words, "--num_heads", "HEADS", "--image_size", "PIXELS"]


@pytest.mark.skipif(set(BACKENDS) != {"pytorch", "jittor"}, reason="compares both backends")
class TestVerify:
    def test_both_backends_agree(self, tmp_path, source, convert_checkpoint):
        convert.write(tmp_path / "a.pt", source)
        code, printed, errors = convert_checkpoint(tmp_path / "a.pt", tmp_path / "b.pkl", *FLAGS, "--verify")
        assert code == 0, errors
        lines = [line for line in printed.splitlines() if line.startswith("--verify")]
        assert f"{len(source.arrays)} of {len(source.arrays)} tensors" in lines[0]
        assert all("largest difference 0" in line for line in lines[1:3])
        difference, scale = (float(text.rstrip(")")) for text in lines[3].split() if text[0].isdigit())
        # sums in another order: measured 1.5e-6 of the largest output
        assert 0 < difference < 1e-5 * scale

    def test_backends_that_disagree_are_an_error(self, tmp_path, source, convert_checkpoint, monkeypatch):
        monkeypatch.setattr(verify, "BACKENDS_AGREE", 0.0)
        convert.write(tmp_path / "a.pt", source)
        assert convert_checkpoint(tmp_path / "a.pt", tmp_path / "b.safetensors", *FLAGS, "--verify")[0] == 1

    def test_a_wrong_file_is_found(self, tmp_path, source, convert_checkpoint, monkeypatch):
        convert.write(tmp_path / "a.pt", source)
        write = convert.write

        def spoil(path, found):
            write(
                path,
                convert.Checkpoint(
                    {**found.arrays, "out.2.bias": found.arrays["out.2.bias"] + 1},
                    found.config,
                    found.network,
                    found.step,
                    (),
                ),
            )

        monkeypatch.setattr(convert, "write", spoil)
        code, printed, _ = convert_checkpoint(tmp_path / "a.pt", tmp_path / "b.pkl", *FLAGS, "--verify")
        assert code == 1 and f"{len(source.arrays) - 1} of {len(source.arrays)} tensors" in printed
        assert "pytorch, IN against OUT: largest difference 1" in printed
