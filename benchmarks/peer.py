"""The original's code, loaded from the folder in which the user keeps it.

Nothing of it is contained here. What it imports and does not need for network, training step and sampling
(picture files, augmentation, a summary of layers) is replaced by empty modules where it is not installed.
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

PACKAGE = "guided_diffusion"
# Module -> names that are imported from it. Each becomes an empty module if it is not installed.
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
    """Stands for a name that the measured code imports and never calls."""

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
    """Refuse a folder that does not hold the original; `UserError`."""
    if not (Path(folder) / PACKAGE / "script_util.py").is_file():
        raise found_expected(
            "--peer",
            folder,
            f"a folder that holds {PACKAGE}/script_util.py, the original's",
            "Give the top folder of the original's repository.",
        )


def load(folder):
    """A function name -> module of the original's package in `folder`. `UserError` if there is none."""
    check_folder(folder)
    sys.path.insert(0, str(Path(folder).resolve()))
    _install_stubs()
    return lambda name: importlib.import_module(f"{PACKAGE}.{name}")


def start_process_group():
    """What the original's training loop asks for even alone: a group of this one process."""
    import torch.distributed as dist

    if not dist.is_initialized():
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


class Peer:
    """The original as something to measure, with the methods of `ours.Ours`.

    folder: that holds it. threads: of the computation.
    """

    # Steps of its 1000 that are sampled, for one of the members, one case; the rest costs the same each.
    CASE_STEPS = 2

    def __init__(self, folder, threads):
        import torch

        self.th = torch
        self.module = load(folder)
        torch.set_num_threads(threads)

    def versions(self):
        """Name -> version of what the figures depend on."""
        return {"torch": self.th.__version__}

    def prepare(self, case, scratch):
        """Build what a `cases.Case` needs; sets `repeat`. scratch: folder for its log."""
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
        self.scratch = scratch
        self.repeat = {
            "evaluation": self._evaluation,
            "step": self._evaluation,
            "training": self._training,
            "start": self._training,
            "cases": self._cases,
        }[case.what]()

    def check(self):
        """Arrays that must be the same in all implementations; none of version 1, whose bottleneck the
        original draws at random in every call."""
        if self.case.version == "1":
            return {}
        return {
            "evaluation": self._check_evaluation,
            "step": self._check_evaluation,
            "cases": self._check_evaluation,
            "training": self._check_training,
        }.get(self.case.what, dict)()

    def scale(self):
        """What a repetition's seconds are multiplied by to give those of one step, evaluation or case."""
        if self.case.what != "cases":
            return 1
        return cases.ENSEMBLE * cases.settings(self.case)["diffusion_steps"] / self.CASE_STEPS

    def _tensors(self, *names):
        return [self.th.from_numpy(self.arrays[name].copy()) for name in names]

    def _check_evaluation(self):
        self.model.eval()
        with self.th.no_grad():
            out, cal = self.model(*self._tensors("x", "t"))
        return {"out": out.numpy(), "cal": cal.numpy()}

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
        return {"total": total.detach().numpy(), **{name: value.numpy() for name, value in zip(GRADIENTS, found)}}

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
        """Some steps of the sampler that its README's command uses: 1000 ancestral ones, one case and one
        member at a time."""
        self.model.eval()
        img = self._tensors("x")[0][:1]

        def repeat():
            self.diffusion.p_sample_loop_known(
                self.model, (1, 3, self.case.size, self.case.size), img, step=self.CASE_STEPS, model_kwargs={}
            )

        return repeat
