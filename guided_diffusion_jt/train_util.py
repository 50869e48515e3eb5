"""The training loop and the loader of its batches."""

import numpy as np

from guided_diffusion_core.checkpoints.files import NETWORK, TRAINER, average_name, check_state
from guided_diffusion_core.config import ema_rates
from guided_diffusion_core.networks.state import is_buffer
from guided_diffusion_core.noise import TRAIN_NOISE, TRAIN_TIMESTEP, NoiseTape
from guided_diffusion_core.system.processes import own_slots
from guided_diffusion_core.training.augment import create_augmentation
from guided_diffusion_core.training.rates import ema_rate_at, last_step, learning_rate
from guided_diffusion_core.training.stream import ErrorCarrier, TrainingStream, checked, first_error
from guided_diffusion_jt import dist_util, runtime
from guided_diffusion_jt.build import build, build_network
from guided_diffusion_jt.gaussian_diffusion import total_loss
from guided_diffusion_jt.nn import set_dropout_noise, update_ema
from guided_diffusion_jt.optim import AdamW, gradients
from guided_diffusion_jt.resample import UniformSampler, create_named_schedule_sampler
from guided_diffusion_jt.runtime import jt
from guided_diffusion_jt.sample_util import EnsembleSampler

# Prefixes of the names in a checkpoint's `trainer`.
MOMENTS = ("first_moment", "second_moment")
SAMPLER = "schedule_sampler"


def make_loader(stream, batch_size, num_workers=0):
    """Batches of a `TrainingStream`, in its order: pairs of tensors, image (N, C, S, S) and mask
    (N, K, S, S), read by `num_workers` processes beside (0: none), whose errors are raised here."""
    examples = ErrorCarrier(stream) if num_workers else stream
    return checked(
        _StreamDataset(examples).set_attrs(
            batch_size=batch_size, total_len=len(stream), shuffle=False, drop_last=False, num_workers=num_workers
        )
    )


class _StreamDataset(jt.dataset.Dataset):
    """A `TrainingStream` as Jittor's loader takes it."""

    def __init__(self, stream):
        super().__init__()
        self.stream = stream

    def __getitem__(self, index):
        return self.stream[index]

    def collate_batch(self, examples):
        """A batch of the examples, or the first error among them."""
        return first_error(examples) or super().collate_batch(examples)


def create_train_loop(config, dataset, step=0, networks=None):
    """The `TrainLoop` of a `Config` on a `Dataset`: network, process, loader and tape from its seed.

    step, networks: of a checkpoint to go on from (`TrainLoop.networks`, `checkpoint.load_all`).
    """
    runtime.set_mixed_precision(config.compute.mixed_precision)
    training = config.training
    tape = NoiseTape(config.seed)
    model, diffusion = build(config, networks[NETWORK] if networks else None)
    augment = create_augmentation(training, dataset.normalisation, tape)
    microbatch = training.microbatch if training.microbatch > 0 else training.batch_size
    group = dist_util.group()
    stream = TrainingStream(
        dataset,
        tape,
        training.batch_size * group.size,
        last_step(training),
        start_step=step,
        augment=augment,
        slots=own_slots(training.batch_size, microbatch, group.rank, group.size),
    )
    loop = TrainLoop(
        model=model,
        diffusion=diffusion,
        data=make_loader(stream, training.batch_size, training.num_workers),
        tape=tape,
        batch_size=training.batch_size,
        microbatch=microbatch,
        lr=training.lr,
        ema_rate=ema_rates(training),
        ema_warmup=training.ema_warmup,
        schedule_sampler=create_named_schedule_sampler(training.schedule_sampler, diffusion),
        weight_decay=training.weight_decay,
        lr_anneal_steps=training.lr_anneal_steps,
        lr_schedule=training.lr_schedule,
        lr_cycles=training.lr_cycles,
    )
    if networks:
        loop.restore(step, networks)
    return loop


class TrainLoop:
    """Optimizes a network on batches of images and masks; logging and files are the caller's.

    model:            the network. diffusion: its `GaussianDiffusion`.
    data:             iterable of (image, mask) batches (`make_loader`).
    tape:             NoiseTape of time steps, noise and dropout.
    batch_size:       examples per optimizer step of this process, the size of the batches. Several processes
                      (`dist_util.setup_dist`) make one batch of theirs, and all have its gradients.
    microbatch:       examples per forward pass; their gradients add up to the whole batch's. -1: all.
    lr:               learning rate of AdamW. weight_decay: its decoupled decay.
    ema_rate:         rates of the moving averages, a tuple of floats. ema_warmup: `ema_rate_at`.
    schedule_sampler: `ScheduleSampler`, uniform if None.
    lr_anneal_steps, lr_schedule, lr_cycles: how the rate falls (`training.learning_rate`).
    """

    def __init__(
        self,
        *,
        model,
        diffusion,
        data,
        tape,
        batch_size,
        microbatch=-1,
        lr=1e-4,
        ema_rate=(0.9999,),
        ema_warmup=False,
        schedule_sampler=None,
        weight_decay=0.0,
        lr_anneal_steps=0,
        lr_schedule="linear",
        lr_cycles=1,
    ):
        self.model = model
        self.diffusion = diffusion
        self.data = data
        self.tape = tape
        self.group = dist_util.group()
        self.microbatch = microbatch if microbatch > 0 else batch_size
        self.lr = lr
        self.lr_anneal_steps = lr_anneal_steps
        self.lr_schedule = lr_schedule
        self.lr_cycles = lr_cycles
        self.ema_rate = tuple(ema_rate)
        self.ema_warmup = ema_warmup
        self.schedule_sampler = schedule_sampler or UniformSampler(diffusion)
        self.names = [name for name, _ in model.named_parameters() if not is_buffer(name)]
        self.params = [param for name, param in model.named_parameters() if not is_buffer(name)]
        self.opt = AdamW(self.params, weight_decay=weight_decay)
        self.ema_params = [[param.copy().stop_grad() for param in self.params] for _ in self.ema_rate]
        self.step = 0
        model.train()

    def run_loop(self, steps):
        """Yield (step, values) after each optimizer step, from the next one to number `steps` - 1."""
        for batch, cond in self.data:
            if self.step >= steps:
                return
            step = self.step
            yield step, self.run_step(batch, cond)

    def run_step(self, batch, cond):
        """One optimizer step on images `batch` (N, C, S, S) and masks `cond` (N, K, S, S).

        Returns the means over the batch: `total` and the terms of `training_losses_segmentation`,
        and the learning rate `lr`; floats.
        """
        values, grads = self.forward_backward(jt.concat([batch, cond], dim=1).cast(self.params[0].dtype))
        lr = learning_rate(self.lr, self.lr_anneal_steps, self.step, self.lr_schedule, self.lr_cycles)
        self.opt.step(grads, lr)
        for rate, averages in zip(self.ema_rate, self.ema_params):
            update_ema(averages, self.params, rate=ema_rate_at(rate, self.step, self.ema_warmup))
        runtime.synchronize()
        self.step += 1
        return {**values, "lr": lr}

    def forward_backward(self, batch):
        """Losses and gradients of the whole batch, of which (N, C + K, S, S) is this process' share:
        (dict of floats, list of tensors), the same in all processes."""
        size = batch.shape[0]
        places = own_slots(size, self.microbatch, self.group.rank, self.group.size)
        values = {}
        grads = None
        drawn = []
        losses = []
        for start in range(0, size, self.microbatch):
            slots = places[start : start + self.microbatch]
            terms, micro_grads, t = self._microbatch(batch[start : start + len(slots)], slots)
            share = len(slots) / size
            terms = {name: runtime.to_numpy(value) for name, value in terms.items()}
            for name, value in terms.items():
                values[name] = values.get(name, 0.0) + share * float(np.mean(value))
            drawn.append(runtime.to_numpy(t))
            losses.append(terms["loss"])
            if share != 1:
                micro_grads = [runtime.scalar(share) * grad for grad in micro_grads]
            grads = micro_grads if grads is None else [a + b for a, b in zip(grads, micro_grads)]
        # once for the whole batch: the choice of its time steps does not depend on the microbatches
        self.schedule_sampler.update_with_losses(
            *self._of_whole_batch(places, np.concatenate(drawn), np.concatenate(losses))
        )
        means = self.group.gather(list(values.values())).mean(0)
        return {name: float(mean) for name, mean in zip(values, means)}, dist_util.average(grads)

    def _of_whole_batch(self, places, *arrays):
        """Arrays (N,) over the examples of this process as those over the whole batch, in its order."""
        order = np.argsort(self.group.gather(places).reshape(-1))
        return [self.group.gather(array).reshape(-1)[order] for array in arrays]

    def _microbatch(self, micro, slots):
        """Loss terms, gradients and time steps of some slots of the batch."""
        uniforms = [float(self.tape.uniform(TRAIN_TIMESTEP, step=self.step, case=slot)) for slot in slots]
        t, weights = self.schedule_sampler.sample(np.array(uniforms))
        shape = (self.diffusion.mask_channels, *micro.shape[2:])
        noise = self.tape.normal_batch(TRAIN_NOISE, shape, step=self.step, cases=slots)
        set_dropout_noise(self.model, self.tape, self.step, slots)
        terms, _ = self.diffusion.training_losses_segmentation(
            self.model, None, micro, t, noise=runtime.to_tensor(noise, dtype=runtime.precision())
        )
        total = total_loss(terms, weights)
        return {"total": total, **terms}, gradients(total, self.params), t

    def networks(self):
        """The network, its moving averages and the optimizer's moments as `checkpoint.save` takes them;
        the averages share the network's running statistics."""
        state = runtime.state_arrays(self.model)
        networks = {NETWORK: state}
        for rate, averages in zip(self.ema_rate, self.ema_params):
            networks[average_name(rate)] = self._average_state(state, averages)
        networks[TRAINER] = {
            f"{kind}/{name}": runtime.to_numpy(value)
            for kind, values in zip(MOMENTS, self.opt.moments())
            for name, value in zip(self.names, values)
        }
        networks[TRAINER] |= {f"{SAMPLER}/{name}": value for name, value in self.schedule_sampler.state().items()}
        return networks

    def _average_state(self, state, averages):
        """The network's state with a moving average for its parameters."""
        return {**state, **{name: runtime.to_numpy(value) for name, value in zip(self.names, averages)}}

    def average_sampler(self, config, sampling):
        """An `EnsembleSampler` of the first moving average as it is now, with the noise of the seed.

        config: `Config` of the training. sampling: `SamplingConfig`. It has a network of its own, so that
        the training goes on as if nothing had been sampled.
        """
        model = build_network(config.model)
        state = self._average_state(runtime.state_arrays(self.model), self.ema_params[0])
        runtime.load_state(model, state, where="moving average")
        model.eval()
        return EnsembleSampler(model, self.diffusion, sampling, NoiseTape(config.seed))

    def restore(self, step, networks):
        """Go on after `step` steps from what `networks` returned then. Raises `UserError` if it does not
        fit this loop."""
        runtime.load_state(self.model, networks[NETWORK], where=f"checkpoint of step {step}")
        trainer = networks[TRAINER]
        sampled = self.schedule_sampler.state()
        shapes = {name: tuple(param.shape) for name, param in zip(self.names, self.params)}
        check_state(
            {
                **{f"{kind}/{name}": shape for kind in MOMENTS for name, shape in shapes.items()},
                **{f"{SAMPLER}/{name}": value.shape for name, value in sampled.items()},
            },
            trainer,
            f"optimizer of step {step}",
        )
        self.schedule_sampler.restore({name: trainer[f"{SAMPLER}/{name}"] for name in sampled})
        first, second = ([trainer[f"{kind}/{name}"] for name in self.names] for kind in MOMENTS)
        self.opt.restore(first, second, step)
        for rate, averages in zip(self.ema_rate, self.ema_params):
            arrays = networks[average_name(rate)]
            for name, average in zip(self.names, averages):
                runtime.assign(average, arrays[name])
        runtime.synchronize()
        self.step = step
