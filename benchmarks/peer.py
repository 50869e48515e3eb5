"""The measured operations of the original, whose code is loaded from a folder of the user.

None of that code is contained here. It imports some packages that network, training step and sampling do not
need (picture files, augmentation, a summary of layers). Empty modules replace those that are not installed.
"""

import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path

import numpy as np

from benchmarks import cases
from benchmarks.ours import GRADIENTS
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.networks.medsegdiff.state_shapes import BOTTLENECK_EMBED
from guided_diffusion_core.system.devices import CPU
from guided_diffusion_core.system.process_memory import peak_memory_mib

PACKAGE = "guided_diffusion"
# Module -> names that the original imports from it. An empty module replaces one that is not installed.
STUBS = {
    "torchvision": (),
    "torchvision.transforms": (),
    "torchvision.utils": ("save_image", "make_grid"),
    "batchgenerators": (),
    "batchgenerators.augmentations": (),
    "batchgenerators.augmentations.utils": ("pad_nd_image",),
    "scipy.ndimage.filters": ("gaussian_filter",),
    "visdom": ("Visdom",),
    "torchsummary": ("summary",),
}


class _Unavailable:
    """Stand-in for a name that the measured code imports but never calls."""

    def __init__(self, name):
        self.name = name

    def __call__(self, *_, **__):
        raise RuntimeError(f"the measured code calls {self.name}, which is not installed")


def _installed(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _install_stubs():
    for name, attributes in STUBS.items():
        if _installed(name):
            continue
        module = types.ModuleType(name)
        module.__path__ = []
        for attribute in attributes:
            setattr(module, attribute, _Unavailable(f"{name}.{attribute}"))
        sys.modules[name] = module
        parent, _, last = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], last, module)


def check_folder(folder):
    """Raise `UserError` if a folder does not contain the original."""
    if not (Path(folder) / PACKAGE / "script_util.py").is_file():
        raise found_expected(
            "--peer",
            folder,
            f"a folder with the original's {PACKAGE}/script_util.py",
            "Give the top folder of the original's repository.",
        )


def load(folder):
    """Return a function that imports a module of the original's package by name.

    Raises `UserError` if the folder does not contain the original.
    """
    check_folder(folder)
    sys.path.insert(0, str(Path(folder).resolve()))
    _install_stubs()
    return lambda name: importlib.import_module(f"{PACKAGE}.{name}")


def start_process_group():
    """Start a process group of this one process, which the original's training loop requires."""
    import torch.distributed as dist

    if not dist.is_initialized():
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


class Peer:
    """The original, with the methods of `ours.Ours`.

    folder: of its code. threads, device: of the computation. The original takes the first GPU where PyTorch finds one.
    """

    # A whole case takes 1000 steps per member. Each costs the same, so a repetition runs only these, of one member.
    CASE_STEPS = 2

    def __init__(self, folder, threads, device):
        import torch

        self.th = torch
        self.device = device
        self.module = load(folder)
        torch.set_num_threads(threads)

    def versions(self):
        """Return name -> version of the software that the figures depend on."""
        return {"torch": self.th.__version__}

    def prepare(self, case, scratch):
        """Build what a `cases.Case` needs, and set `repeat`. scratch: folder for the original's log."""
        self.case = case
        self.arrays = cases.inputs(case)
        script_util = self.module("script_util")
        flags = {**script_util.model_and_diffusion_defaults(), **cases.settings(case)}
        self.model, self.diffusion = script_util.create_model_and_diffusion(**flags)
        state = {
            name: self.th.from_numpy(np.asarray(value))
            for name, value in cases.weights(case).items()
            if not name.startswith(BOTTLENECK_EMBED)
        }
        self.model.load_state_dict(state)
        self.model.to(self.device)
        self.scratch = scratch
        operation = {
            "evaluation": self._evaluation,
            "step": self._evaluation,
            "training": self._training,
            "start": self._training,
            "cases": self._cases,
        }[case.what]()

        def repeat():
            operation()
            if self.device != CPU:
                self.th.cuda.synchronize()

        self.repeat = repeat

    def peak_memory_mib(self):
        """Return the largest memory so far, in MiB: of the process on a CPU, of its tensors on a GPU."""
        return peak_memory_mib() if self.device == CPU else self.th.cuda.max_memory_allocated() / 2**20

    def check(self):
        """Return arrays by name that must be the same in all implementations.

        There are none for version 1: the original draws weights of its bottleneck at random in every call.
        """
        if self.case.version == "1":
            return {}
        return {
            "evaluation": self._check_evaluation,
            "step": self._check_evaluation,
            "cases": self._check_evaluation,
            "training": self._check_training,
        }.get(self.case.what, dict)()

    def scale(self):
        """Return the factor from the seconds of a repetition to those of one step, evaluation or case."""
        if self.case.what != "cases":
            return 1
        return cases.ENSEMBLE * cases.settings(self.case)["diffusion_steps"] / self.CASE_STEPS

    def _tensors(self, *names):
        return [self.th.from_numpy(self.arrays[name].copy()).to(self.device) for name in names]

    def _check_evaluation(self):
        self.model.eval()
        with self.th.no_grad():
            out, cal = self.model(*self._tensors("x", "t"))
        return {"out": out.cpu().numpy(), "cal": cal.cpu().numpy()}

    def _check_training(self):
        kind = self.th.nn.modules.dropout._DropoutNd
        dropouts = [module for module in self.model.modules() if isinstance(module, kind)]
        rates = [module.p for module in dropouts]
        for module in dropouts:
            module.p = 0.0
        x, mask, noise, t = self._tensors("x", "mask", "noise", "t")
        batch = self.th.cat([x[:, :-1], mask], dim=1)
        terms, _ = self.diffusion.training_losses_segmentation(self.model, None, batch, t, noise=noise)
        total = (terms["loss"] + terms["loss_cal"] * 10).mean()
        params = dict(self.model.named_parameters())
        found = self.th.autograd.grad(total, [params[name] for name in GRADIENTS])
        for module, rate in zip(dropouts, rates):
            module.p = rate
        gradients = {name: value.cpu().numpy() for name, value in zip(GRADIENTS, found)}
        return {"total": total.detach().cpu().numpy(), **gradients}

    def _evaluation(self):
        self.model.eval()
        x, t = self._tensors("x", "t")

        def repeat():
            with self.th.no_grad():
                self.model(x, t)

        return repeat

    def _training(self):
        start_process_group()
        self.module("logger").configure(dir=str(self.scratch))
        sampler = self.module("resample").create_named_schedule_sampler("uniform", self.diffusion, maxt=1000)
        loop = self.module("train_util").TrainLoop(
            model=self.model,
            classifier=None,
            diffusion=self.diffusion,
            data=None,
            dataloader=None,
            batch_size=self.case.batch,
            microbatch=-1,
            lr=1e-4,
            ema_rate="0.9999",
            log_interval=100,
            save_interval=5000,
            resume_checkpoint=None,
            schedule_sampler=sampler,
        )
        self.model.train()
        x, mask = self._tensors("x", "mask")
        return lambda: loop.run_step(x[:, :-1], mask)

    def _cases(self):
        """Return a function that runs some steps of the ancestral sampler, as in the command of the original's README.

        The original samples one case and one member at a time.
        """
        self.model.eval()
        img = self._tensors("x")[0][:1]

        def repeat():
            self.diffusion.p_sample_loop_known(
                self.model, (1, 3, self.case.size, self.case.size), img, step=self.CASE_STEPS, model_kwargs={}
            )

        return repeat
