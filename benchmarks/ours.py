"""The measured operations of this software, in any backend."""

import tempfile
from pathlib import Path

import numpy as np

from benchmarks import cases, implementations
from guided_diffusion_core.backends import backend_module, start_backend
from guided_diffusion_core.config import DataConfig, resolve
from guided_diffusion_core.data import open_dataset
from guided_diffusion_core.data.phantoms import write_isic_phantoms
from guided_diffusion_core.networks.family import as_prediction
from guided_diffusion_core.noise import NoiseTape
from guided_diffusion_core.sampling.run import SamplingRun
from guided_diffusion_core.system.devices import CPU
from guided_diffusion_core.system.process_memory import peak_memory_mib
from guided_diffusion_core.training.stream import TrainingStream

PHANTOM_SIZE = 384  # height in pixels of the pictures for whole cases and loading
LOADED_BATCHES = 4  # per repetition of loading
# Parameters whose gradients are compared: near the output, in the middle and at the input.
GRADIENTS = ("out.2.weight", "middle_block.0.in_layers.2.weight", "input_blocks.0.0.weight", "time_embed.0.weight")


class Ours:
    """One implementation to measure. Call `prepare` once, then `check` once, then `repeat` any number of times.

    name:            of the implementation (`implementations.py`).
    threads, device: of the computation.
    """

    def __init__(self, name, threads, device=CPU):
        self.backend, _ = implementations.parts(name)
        self.runtime = start_backend(self.backend, threads=threads, device=device, **implementations.settings_of(name))

    def module(self, name):
        """Return a module of the backend's package."""
        return backend_module(self.backend, name)

    def versions(self):
        """Return name -> version of the software that the figures depend on."""
        return self.runtime.versions()

    def peak_memory_mib(self):
        """Return the largest memory so far, in MiB: of the process on a CPU, of its tensors on a GPU."""
        of_gpu = self.runtime.gpu_memory_mib()
        return peak_memory_mib() if of_gpu is None else of_gpu

    def prepare(self, case, **_):
        """Build what a `cases.Case` needs, and set `repeat`, a function that runs the measured operation once."""
        self.case = case
        self.arrays = cases.inputs(case)
        if case.what != "loading":
            # a new training starts from the initial weights
            state = None if case.what == "start" else cases.weights(case)
            self.model, self.diffusion = self.module("build").build(resolve(cases.settings(case)), state)
        self.repeat = {
            "evaluation": self._evaluation,
            "step": self._evaluation,
            "training": self._training,
            "start": self._training,
            "cases": self._cases,
            "scaling": self._cases,
            "loading": self._loading,
        }[case.what]()

    def check(self):
        """Return arrays by name that must be the same in all implementations."""
        return {
            "evaluation": self._check_evaluation,
            "step": self._check_evaluation,
            "cases": self._check_evaluation,
            "scaling": self._check_evaluation,
            "training": self._check_training,
        }.get(self.case.what, dict)()

    def scale(self):
        """Return the factor from the seconds of a repetition to those of one step, evaluation, case or image."""
        examples = self.case.batch * self.case.processes
        if self.case.what in ("cases", "scaling"):
            return 1 / examples
        if self.case.what == "loading":
            return 1 / (LOADED_BATCHES * examples)
        return 1

    def _tensors(self, *names):
        return [self.runtime.to_tensor(self.arrays[name]) for name in names]

    def _check_evaluation(self):
        prediction = as_prediction(self._evaluation()())
        outputs = {"out": prediction.value, "cal": prediction.calibration}
        return {name: self.runtime.to_numpy(value) for name, value in outputs.items() if value is not None}

    def _check_training(self):
        dropouts = [module for _, module in self.model.named_modules() if isinstance(module, self.module("nn").Dropout)]
        rates = [module.p for module in dropouts]
        for module in dropouts:
            module.p = 0
        noise, t = self._tensors("noise", "t")
        batch = np.concatenate([self.arrays["x"][:, :-1], self.arrays["mask"]], axis=1)
        terms, _ = self.diffusion.training_losses_segmentation(
            self.model, None, self.runtime.to_tensor(batch), t, noise=noise
        )
        total = (terms["loss"] + 10 * terms["loss_cal"]).mean() if "loss_cal" in terms else terms["loss"].mean()
        names = [name for name, _ in self.model.named_parameters()]
        params = dict(self.model.named_parameters())
        chosen = [name for name in names if name in GRADIENTS] or [names[0], names[-1]]  # of another network
        found = self.module("optim").gradients(total, [params[name] for name in chosen])
        for module, rate in zip(dropouts, rates):
            module.p = rate
        return {
            "total": self.runtime.to_numpy(total).reshape(()),
            **{name: self.runtime.to_numpy(value) for name, value in zip(chosen, found)},
        }

    def _evaluation(self):
        self.model.eval()
        x, t = self._tensors("x", "t")
        keywords = {}
        if self.case.what == "step":
            with self.runtime.no_grad():
                known = self.model.condition(x[:, :-1])
            keywords = {} if known is None else {"conditioning": known}

        def repeat():
            with self.runtime.no_grad():
                result = self.model(x, t, **keywords)
                self.runtime.synchronize()
            return result

        return repeat

    def _training(self):
        method = self.module("methods.diffusion").Diffusion(self.diffusion)
        loop = self.module("train_util").TrainLoop(
            model=self.model, method=method, data=None, tape=NoiseTape(0), batch_size=self.case.batch
        )
        x, mask = self._tensors("x", "mask")
        image = x[:, :-1]

        def repeat():
            loop.run_step(image, mask)
            self.runtime.synchronize()  # a step does not wait for the device

        return repeat

    def _phantoms(self):
        """Write ISIC phantoms and return their folders, (for training, for sampling)."""
        self.folder = tempfile.TemporaryDirectory()
        batch = self.case.batch
        return write_isic_phantoms(self.folder.name, LOADED_BATCHES * batch, batch, PHANTOM_SIZE, seed=0)

    def _cases(self):
        """Return a function that samples one batch of phantoms with the preset `fast`."""
        config = resolve(
            {**cases.settings(self.case), "num_ensemble": self.case.members, "sample_steps": self.case.steps},
            preset="fast",
        )
        sampler = self.module("sample_util").EnsembleSampler(self.model, self.diffusion, config.sampling, NoiseTape(0))
        data = DataConfig(data_name="ISIC", data_dir=self._phantoms()[1])
        self.model.eval()

        def repeat():
            dataset = open_dataset(data, self.case.size, "Test", need_masks=False)
            SamplingRun(dataset, Path(self.folder.name) / "masks", self.case.batch, 0.5, {}).run(sampler)

        return repeat

    def _loading(self):
        dataset = open_dataset(
            DataConfig(data_name="ISIC", data_dir=self._phantoms()[0]), self.case.size, "Training", need_masks=True
        )
        make_loader = self.module("train_util").make_loader
        return lambda: list(
            make_loader(TrainingStream(dataset, NoiseTape(0), self.case.batch, LOADED_BATCHES), self.case.batch)
        )
