"""The training loop, and the loader of its batches."""

from functools import partial

import numpy as np
import torch as th
from torch.utils.data import DataLoader, default_collate

from guided_diffusion_core.checkpoints.files import NETWORK, TRAINER, average_name, check_state
from guided_diffusion_core.config import ema_rates
from guided_diffusion_core.networks.registry import initial_state
from guided_diffusion_core.networks.state import is_buffer
from guided_diffusion_core.noise import NoiseTape
from guided_diffusion_core.system import devices
from guided_diffusion_core.system.processes import own_slots
from guided_diffusion_core.training.augment import create_augmentation
from guided_diffusion_core.training.draws import BatchDraws
from guided_diffusion_core.training.loss_scale import LossScale
from guided_diffusion_core.training.rates import ema_rate_at, last_step, learning_rate
from guided_diffusion_core.training.stream import ErrorCarrier, TrainingStream, checked, first_error
from guided_diffusion_core.training.values import StepValues
from guided_diffusion_pt import dist_util, runtime
from guided_diffusion_pt.build import build_network
from guided_diffusion_pt.methods import create_method
from guided_diffusion_pt.nn import set_dropout_noise, update_ema
from guided_diffusion_pt.optim import AdamW, all_finite, gradients

# Prefixes of the names of arrays in the part `trainer` of a checkpoint.
MOMENTS = ("first_moment", "second_moment")
SCALE = "loss_scale"


def make_loader(stream, batch_size, num_workers=0):
    """Return the loader of a `TrainingStream`: batches in its order, of image (N, C, S, S) and mask (N, K, S, S), and
    of the stream's noise, site -> (N, *shape), if it has any.

    batch_size:  N.
    num_workers: processes that read the examples; 0 reads them in this process. Their errors are raised here.
    """
    examples = ErrorCarrier(stream) if num_workers else stream
    on_gpu = runtime.current.device.kind == devices.CUDA
    return checked(
        DataLoader(
            examples,
            batch_size=batch_size,
            shuffle=False,
            num_workers=num_workers,
            collate_fn=_collate,
            pin_memory=on_gpu,
        )
    )


def _collate(examples):
    """Return a batch of the examples, or the first error among them."""
    return first_error(examples) or default_collate(examples)


def create_train_loop(config, dataset, step=0, networks=None, initial=None):
    """Build the `TrainLoop` of a configuration: network, method, loader, and the noise tape of its seed.

    config:   `Config`.
    dataset:  `Dataset` of the images and masks.
    step:     number of steps so far, of a checkpoint from which the training continues.
    networks: the arrays of that checkpoint (`TrainLoop.networks`); None starts a new training.
    initial:  name -> array of the network with which a new training starts; None draws it from the seed.
    """
    runtime.set_mixed_precision(config.compute.mixed_precision)
    runtime.set_tf32(config.compute.tf32)
    runtime.set_compile(config.compute.compile)
    training = config.training
    tape = NoiseTape(config.seed)
    if networks:
        initial = networks[NETWORK]
    model = build_network(config.model, initial or initial_state(config.model, config.seed))
    augment = create_augmentation(training, dataset.normalisation, tape)
    microbatch = training.microbatch if training.microbatch > 0 else training.batch_size
    group = dist_util.group()
    method = create_method(config)
    # Without processes that load ahead there is no time before the step to draw the noise in.
    noise = method.noise_shapes(config.model.image_size) if training.num_workers else {}
    stream = TrainingStream(
        dataset,
        tape,
        training.batch_size * group.size,
        last_step(training),
        start_step=step,
        augment=augment,
        slots=own_slots(training.batch_size, microbatch, group.rank, group.size),
        noise=noise,
    )
    loop = TrainLoop(
        model=model,
        method=method,
        data=make_loader(stream, training.batch_size, training.num_workers),
        tape=tape,
        batch_size=training.batch_size,
        microbatch=microbatch,
        lr=training.lr,
        ema_rate=ema_rates(training),
        ema_warmup=training.ema_warmup,
        weight_decay=training.weight_decay,
        lr_anneal_steps=training.lr_anneal_steps,
        lr_schedule=training.lr_schedule,
        lr_cycles=training.lr_cycles,
    )
    if networks:
        loop.restore(step, networks)
    return loop


def _part(arrays, prefix):
    """Return the arrays whose names begin with a prefix, by their names without it."""
    return {name.removeprefix(f"{prefix}/"): value for name, value in arrays.items() if name.startswith(f"{prefix}/")}


class TrainLoop:
    """The optimization of a network on batches of images and masks. The caller logs and writes files.

    model:            the network.
    method:           `Method`, which gives the losses and the sampler.
    data:             iterable of batches (`make_loader`).
    tape:             `NoiseTape` of the dropout masks and of the method's random numbers.
    batch_size:       examples per optimizer step in this process. The batches of several processes
                      (`dist_util.setup_dist`) form one whole batch, and all processes get its gradients.
    microbatch:       examples per forward pass; the gradients of the batch are the mean of theirs. -1 takes all.
    lr:               learning rate of AdamW at the start.
    ema_rate:         rates of the moving averages, a tuple of floats.
    ema_warmup:       lower these rates in the first steps (`training.rates.ema_rate_at`).
    weight_decay:     decoupled weight decay of AdamW.
    lr_anneal_steps:  steps over which the learning rate falls to zero; 0 keeps it.
    lr_schedule:      curve on which it falls (`training.rates.learning_rate`).
    lr_cycles:        number of times that "cosine-restarts" falls.
    """

    def __init__(
        self,
        *,
        model,
        method,
        data,
        tape,
        batch_size,
        microbatch=-1,
        lr=1e-4,
        ema_rate=(0.9999,),
        ema_warmup=False,
        weight_decay=0.0,
        lr_anneal_steps=0,
        lr_schedule="linear",
        lr_cycles=1,
    ):
        self.model = model
        self.method = method
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
        self.names = [name for name, _ in model.named_parameters() if not is_buffer(name)]
        self.params = [param for name, param in model.named_parameters() if not is_buffer(name)]
        # the running ones, which a forward pass changes
        self.statistics = list(model.buffers())
        self.opt = AdamW(self.params, weight_decay=weight_decay)
        self.ema_params = [[param.detach().clone() for param in self.params] for _ in self.ema_rate]
        self.loss_scale = LossScale() if runtime.mixed_precision() == "fp16" else None
        self.step = 0
        model.train()

    def run_loop(self, steps):
        """Yield (step, values of `run_step`) after each optimizer step, from the next one to number `steps` - 1."""
        for batch, cond, *ahead in self.data:
            if self.step >= steps:
                return
            step = self.step
            yield step, self.run_step(batch, cond, *ahead)

    def run_step(self, batch, cond, ahead=None):
        """Take one optimizer step.

        batch: images (N, C, S, S).
        cond:  masks (N, K, S, S).
        ahead: site -> values (N, *shape) of the noise that the loader has drawn; None for none.
        Returns `StepValues`: the means over the batch of `total` and of the method's other losses;
        the learning rate `lr`; in float16 the `loss_scale`.
        """
        # from pinned memory (`make_loader`) a GPU fetches them while it computes
        parts = [part.to(runtime.device(), self.params[0].dtype, non_blocking=True) for part in (batch, cond)]
        examples = th.cat(parts, dim=1)  # (N, C + K, S, S)
        kept = [buffer.clone() for buffer in self.statistics]
        try:
            values, grads = self.forward_backward(examples, ahead)
        except Exception:
            # A step that fails, as when memory runs out, leaves no trace: the steps before can still be saved.
            for buffer, before in zip(self.statistics, kept):
                buffer.copy_(before)
            raise
        lr = learning_rate(self.lr, self.lr_anneal_steps, self.step, self.lr_schedule, self.lr_cycles)
        # In float16, a step whose gradients overflow is left out, and lowers the scale of the loss.
        scale = self.loss_scale
        if scale is None or scale.update(all_finite(grads)):
            self.opt.step(grads, lr)
            for rate, averages in zip(self.ema_rate, self.ema_params):
                update_ema(averages, self.params, rate=ema_rate_at(rate, self.step, self.ema_warmup))
        self.step += 1
        known = {"lr": lr, "loss_scale": scale.factor} if scale else {"lr": lr}
        return StepValues(lambda: {**values, **known})

    def forward_backward(self, batch, ahead=None):
        """Return the losses and gradients of the whole batch: (`StepValues`, list of tensors).

        batch: (N, C + K, S, S), the examples of this process. The results are the same in all processes.
        ahead: as in `run_step`.
        """
        size = batch.shape[0]
        drawn = {site: runtime.to_numpy(values) for site, values in (ahead or {}).items()}
        places = own_slots(size, self.microbatch, self.group.rank, self.group.size)
        grads = None
        parts = []
        for start in range(0, size, self.microbatch):
            part = slice(start, start + self.microbatch)
            slots = places[part]
            draws = BatchDraws(self.tape, self.step, slots, {site: values[part] for site, values in drawn.items()})
            total, losses, micro_grads = self._microbatch(batch[part], draws)
            parts.append((total, losses))
            # The mean over the batch is the sum of the microbatches' means, each with its share of the examples.
            share = len(slots) / size
            if share != 1:
                micro_grads = [runtime.scalar(share) * grad for grad in micro_grads]
            grads = micro_grads if grads is None else [a + b for a, b in zip(grads, micro_grads)]
        if self.method.observes:
            # The method gets the losses of the whole batch at once, so that the microbatches make no difference.
            draws = BatchDraws(self.tape, self.step, range(size * self.group.size))
            self.method.observe(draws, self._gather_batch(places, parts))
        return StepValues(partial(self._means, parts)), dist_util.average(grads)

    def _means(self, parts):
        """Return the means of the losses over the whole batch, a dict of floats.

        parts: (mean of `total`, all losses) of each microbatch of this process.
        """
        size = sum(len(losses["total"]) for _, losses in parts)
        values = {}
        for total, losses in parts:
            share = len(losses["total"]) / size
            for name, value in {**losses, "total": total}.items():
                values[name] = values.get(name, 0.0) + share * float(np.mean(runtime.to_numpy(value)))
        means = self.group.gather(list(values.values())).mean(0)  # over the processes
        return {name: float(mean) for name, mean in zip(values, means)}

    def _gather_batch(self, places, parts):
        """Return the losses of the whole batch, name -> numpy (N,), in its order.

        places: index in the whole batch of each example of this process.
        parts:  as in `_means`.
        """
        order = np.argsort(self.group.gather(places).reshape(-1))
        names = list(parts[0][1])
        own = []
        for name in names:
            own.append(np.concatenate([runtime.to_numpy(losses[name]) for _, losses in parts]))  # (N,)
        every = np.concatenate(list(self.group.gather(np.stack(own))), axis=-1)  # (losses, processes * N)
        return dict(zip(names, every[:, order]))

    def _microbatch(self, micro, draws):
        """Return the mean of `total`, all losses and the gradients of a microbatch, tensors.

        micro: (n, C + K, S, S).
        draws: `BatchDraws` of the n examples.
        """
        set_dropout_noise(self.model, self.tape, self.step, draws.slots)
        images = micro[:, : -self.method.mask_channels]
        masks = micro[:, -self.method.mask_channels :]
        losses = self.method.losses(self.model, images, masks, draws)
        total = losses["total"].mean()
        grads = self._gradients(total)
        return total.detach(), {name: value.detach() for name, value in losses.items()}, grads

    def _gradients(self, total):
        """Return the gradients of the loss.

        The backward pass in float16 is that of the loss times a scale, so that small gradients do not vanish. Large
        ones may overflow: the result may not be finite.
        """
        if self.loss_scale is None:
            return gradients(total, self.params)
        factor = self.loss_scale.factor
        return [grad / factor for grad in gradients(total * factor, self.params)]

    def gpu_memory_mib(self):
        """Return the largest memory of the GPU so far, for the log; None on a CPU."""
        return runtime.gpu_memory_mib()

    def networks(self):
        """Return the network, its moving averages and the optimizer's moments, as `checkpoints.save` takes them.

        The averages have the running statistics of the network.
        """
        state = runtime.state_arrays(self.model)
        networks = {NETWORK: state}
        for rate, averages in zip(self.ema_rate, self.ema_params):
            networks[average_name(rate)] = self._average_state(state, averages)
        trainer = {}
        for kind, moments in zip(MOMENTS, self.opt.moments()):
            trainer |= {f"{kind}/{name}": runtime.to_numpy(value) for name, value in zip(self.names, moments)}
        networks[TRAINER] = trainer | self._small_states()
        return networks

    def _small_states(self):
        """Return the arrays of `trainer` other than the optimizer's moments, by name."""
        scale = self.loss_scale.state() if self.loss_scale else {}
        return {**self.method.state(), **{f"{SCALE}/{name}": value for name, value in scale.items()}}

    def _average_state(self, state, averages):
        """Return the state of the network with a moving average in place of its parameters."""
        averaged = {name: runtime.to_numpy(value) for name, value in zip(self.names, averages)}
        return {**state, **averaged}

    def average_sampler(self, config, sampling):
        """Return a sampler of the first moving average as it is now, with the noise of the seed (`Method.sampler`).

        config:   `Config` of the training.
        sampling: `SamplingConfig`.

        The sampler gets its own network, so that sampling changes nothing in the training.
        """
        model = build_network(config.model)
        state = self._average_state(runtime.state_arrays(self.model), self.ema_params[0])
        runtime.load_state(model, state, where="moving average")
        model.eval()
        return self.method.sampler(model, sampling, NoiseTape(config.seed))

    def restore(self, step, networks):
        """Continue after `step` steps from the arrays that `networks` returned then.

        Raises `UserError` if they do not fit this loop.
        """
        runtime.load_state(self.model, networks[NETWORK], where=f"checkpoint of step {step}")
        trainer = networks[TRAINER]
        expected = {}
        for kind in MOMENTS:
            expected |= {f"{kind}/{name}": tuple(param.shape) for name, param in zip(self.names, self.params)}
        expected |= {name: value.shape for name, value in self._small_states().items()}
        check_state(expected, trainer, f"optimizer of step {step}")
        self.method.restore({name: trainer[name] for name in self.method.state()})
        if self.loss_scale:
            self.loss_scale.restore(_part(trainer, SCALE))
        first = [trainer[f"{MOMENTS[0]}/{name}"] for name in self.names]
        second = [trainer[f"{MOMENTS[1]}/{name}"] for name in self.names]
        skipped = self.loss_scale.skipped if self.loss_scale else 0
        self.opt.restore(first, second, step - skipped)
        for rate, averages in zip(self.ema_rate, self.ema_params):
            arrays = networks[average_name(rate)]
            for name, average in zip(self.names, averages):
                runtime.assign(average, arrays[name])
        runtime.synchronize()
        self.step = step
