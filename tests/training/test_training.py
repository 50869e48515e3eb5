"""Test the training loop of either backend: batches, averages, optimizer, loader, memory."""

import os

import numpy as np
import pytest
from support.backends import BACKENDS, Backend
from support.generic import KINDS, operators
from support.small import RandomDataset, computing, small_config

from guided_diffusion_core import training
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.networks.state import is_buffer
from guided_diffusion_core.noise import TRAIN_NOISE, TRAIN_TIMESTEP, NoiseTape


@pytest.fixture(autouse=True)
def one_thread():
    with computing("float32"):
        yield


def create_loop(backend, dataset=None, **settings):
    dataset = dataset or RandomDataset()
    return backend.module("train_util").create_train_loop(small_config(**settings), dataset)


def run(loop, steps):
    return [values for _, values in loop.run_loop(steps)]


def arrays(backend, loop, tensors):
    return {name: backend.module("runtime").to_numpy(value) for name, value in zip(loop.names, tensors)}


def whole_batch(dataset, size):
    """Return the images and masks of the first examples, (N, C + 1, S, S)."""
    return np.concatenate([dataset.images[:size], dataset.masks[:size]], axis=1)


def gradients_of_slots(backend, loop, batch, slots):
    """Return the gradients of one forward pass over some slots of a batch, without the loop."""
    runtime = backend.module("runtime")
    tape = loop.tape
    uniforms = [float(tape.uniform(TRAIN_TIMESTEP, step=0, case=slot)) for slot in slots]
    t, weights = loop.method.schedule_sampler.sample(np.array(uniforms))
    noise = tape.normal_batch(TRAIN_NOISE, (1, *batch.shape[2:]), step=0, cases=slots)
    backend.module("nn").set_dropout_noise(loop.model, tape, 0, slots)
    terms, _ = loop.method.process.training_losses_segmentation(
        loop.model, None, runtime.to_tensor(batch[slots]), t, noise=runtime.to_tensor(noise)
    )
    total = backend.module("gaussian_diffusion").total_loss(terms, weights)
    return arrays(backend, loop, backend.module("optim").gradients(total, loop.params)), float(
        runtime.to_numpy(total).reshape(())
    )


def test_every_microbatch_takes_part_by_its_share(backend):
    """Compare with the mean over the microbatches, since batch norm sees one microbatch at a time."""
    dataset = RandomDataset()
    loop = create_loop(backend, dataset, batch_size=5, microbatch=3)
    batch = whole_batch(dataset, 5)
    values, found = loop.forward_backward(backend.module("runtime").to_tensor(batch))
    found = arrays(backend, loop, found)
    (first, loss), (second, other_loss) = (
        gradients_of_slots(backend, loop, batch, slots) for slots in ([0, 1, 2], [3, 4])
    )
    assert values["total"] == pytest.approx(0.6 * loss + 0.4 * other_loss, rel=1e-5)
    scale = max(np.abs(value).max() for value in found.values())
    assert max(np.abs(first[name] - second[name]).max() for name in found) > 0.01 * scale, "they differ"
    for name, value in found.items():
        expected = 0.6 * first[name] + 0.4 * second[name]
        assert np.abs(value - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1e-3 * scale), name


def test_the_loop_tells_its_sampler_the_losses_of_the_whole_batch(backend):
    """Require the time steps from the tape, in the order of the slots, and the logged mean of `loss`."""
    loop = create_loop(backend, batch_size=5, microbatch=3, schedule_sampler="loss-second-moment", diffusion_steps=30)
    sampler = loop.method.schedule_sampler
    seen = []
    update = sampler.update_with_all_losses
    sampler.update_with_all_losses = lambda ts, losses: seen.append((ts, losses)) or update(ts, losses)
    uniforms = [float(loop.tape.uniform(TRAIN_TIMESTEP, step=0, case=slot)) for slot in range(5)]
    values = run(loop, 1)[0]
    ((ts, losses),) = seen
    assert ts.tolist() == [int(30 * value) for value in uniforms]
    assert losses.shape == (5,) and len(set(losses.tolist())) == 5
    assert values["loss"] == pytest.approx(losses.mean(), rel=1e-6)
    assert sampler.history.counts.sum() == 5 and sampler.history.losses.sum() == pytest.approx(losses.sum(), rel=1e-6)


def test_averages_rates_and_gradients_over_steps(backend):
    """Check one short run: moving averages by their formula, the falling rate, and a network that changes."""
    loop = create_loop(backend, ema_rate="0.9,0.15", ema_warmup=True, lr=1e-3, lr_anneal_steps=4)
    runtime = backend.module("runtime")
    state = runtime.state_arrays(loop.model)
    expected = [dict(state), dict(state)]
    rates = []
    history = [state]
    for step, values in loop.run_loop(100):
        state = runtime.state_arrays(loop.model)
        rates.append(values["lr"])
        history.append(state)
        for rate, average in zip((0.9, 0.15), expected):
            used = min(rate, (1 + step) / (10 + step))  # 0.1, 0.18, 0.25, 0.31: the first rate is not reached
            for name in loop.names:
                average[name] = used * average[name].astype(np.float64) + (1 - used) * state[name]
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4]), "and then the annealing ends the training"
    networks = loop.networks()
    assert list(networks) == ["model", "ema_0.9", "ema_0.15", "trainer"]
    for average, name in zip(expected, ("ema_0.9", "ema_0.15")):
        for key in loop.names:
            np.testing.assert_allclose(networks[name][key], average[key], rtol=1e-5, atol=1e-7)
    _, gradients = loop.forward_backward(runtime.to_tensor(whole_batch(RandomDataset(), 2)))
    for name, gradient in arrays(backend, loop, gradients).items():
        # the layers that start at zero let no gradient through in the first steps
        moved = np.abs(history[-1][name] - history[-2][name]).max()
        assert gradient.ndim == 1 or np.abs(gradient).max() > 0 < moved, f"{name} is not trained any more"


def test_learning_rates():
    def rates(steps, *schedule):
        return [training.learning_rate(2.0, steps, step, *schedule) for step in range(steps or 8)]

    assert rates(0) == rates(0, "constant") == rates(8, "constant") == [2.0] * 8
    assert rates(8) == rates(8, "linear") == [2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25]
    cosine = rates(8, "cosine")
    assert cosine[0] == 2.0 and cosine[4] == pytest.approx(1.0) and cosine[2] == pytest.approx(1 + np.sqrt(0.5))
    assert np.add(cosine[1:], cosine[:0:-1]) == pytest.approx(np.full(7, 2.0)), "falls as it would rise"
    assert rates(8, "cosine-restarts", 1) == cosine
    assert rates(16, "cosine-restarts", 2) == pytest.approx(2 * cosine)
    # cycles of no whole number of steps: each still begins with its first step at the rate's top
    uneven = rates(10, "cosine-restarts", 3)
    assert [step for step in range(1, 10) if uneven[step] > uneven[step - 1]] == [4, 7]


@pytest.mark.skipif("pytorch" not in BACKENDS, reason="torch's own schedulers are the oracle")
def test_learning_rates_are_those_of_torch():
    import torch

    for schedule, cycles, name, settings in (
        ("cosine", 1, "CosineAnnealingLR", {"T_max": 12}),
        ("cosine-restarts", 3, "CosineAnnealingWarmRestarts", {"T_0": 4}),
        ("linear", 1, "LinearLR", {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 12}),
    ):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **settings)
        for step in range(12):
            expected = optimizer.param_groups[0]["lr"]
            assert training.learning_rate(0.3, 12, step, schedule, cycles) == pytest.approx(expected, abs=1e-12), name
            optimizer.step()
            scheduler.step()


def test_the_loop_follows_its_schedule_and_ends_with_it(backend):
    loop = create_loop(backend, lr=1e-3, lr_anneal_steps=4, lr_schedule="cosine-restarts", lr_cycles=2)
    assert [values["lr"] for values in run(loop, 100)] == pytest.approx([1e-3, 5e-4] * 2)


def test_running_statistics_are_not_the_optimizers(backend):
    """Require the statistics of the forward pass, whatever the rate and the weight decay."""
    dataset = RandomDataset()
    loop, other = (create_loop(backend, dataset, lr=0.1, weight_decay=0.5) for _ in range(2))
    assert not [name for name in loop.names if is_buffer(name)]
    runtime = backend.module("runtime")
    image, mask = next(iter(loop.data))
    other.forward_backward(runtime.to_tensor(np.concatenate([runtime.to_numpy(image), runtime.to_numpy(mask)], axis=1)))
    loop.run_step(image, mask)
    stepped = runtime.state_arrays(loop.model)
    passed = runtime.state_arrays(other.model)
    buffers = [name for name in stepped if is_buffer(name)]
    assert len(buffers) == 22 * 3
    for name in buffers:
        np.testing.assert_array_equal(stepped[name], passed[name])
    assert int(stepped[next(name for name in buffers if name.endswith("tracked"))]) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-5), ("float64", 1e-12)])
def test_adamw_is_its_algorithm(backend, precision, tolerance, kind):
    """Compare with algorithm 2 of Loshchilov & Hutter 2019 in numpy, for five steps at changing rates.

    float32 comes first: Jittor once read its numbers as float32 in a later float64 run of the same process.
    """
    generator = np.random.default_rng(0)
    values = [generator.standard_normal(shape) for shape in ((3, 4), (5,))]
    runtime = backend.module("runtime")
    runtime.set_precision(precision)
    params = [runtime.to_tensor(value, precision) for value in values]
    for param in params:
        param.requires_grad = True
    optimizer = backend.module("optim").AdamW(params, weight_decay=0.1)
    first, second = ([np.zeros_like(value) for value in values] for _ in range(2))
    for step, lr in enumerate((1e-2, 3e-2, 1e-3, 2e-2, 5e-2), start=1):
        gradients = [generator.standard_normal(value.shape) for value in values]
        with operators(kind, backend):
            optimizer.step([runtime.to_tensor(gradient, precision) for gradient in gradients], lr)
        for k, gradient in enumerate(gradients):
            first[k] = 0.9 * first[k] + 0.1 * gradient
            second[k] = 0.999 * second[k] + 0.001 * gradient**2
            mean = first[k] / (1 - 0.9**step)
            spread = second[k] / (1 - 0.999**step)
            values[k] = values[k] - lr * 0.1 * values[k] - lr * mean / (np.sqrt(spread) + 1e-8)
            np.testing.assert_allclose(runtime.to_numpy(params[k]), values[k], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_the_stream_in_order(backend, workers):
    dataset = RandomDataset()
    stream = backend.module("train_util").TrainingStream(dataset, NoiseTape(5), batch_size=4, max_steps=3)
    runtime = backend.module("runtime")
    batches = [
        (runtime.to_numpy(image), runtime.to_numpy(mask))
        for image, mask in backend.module("train_util").make_loader(stream, 4, workers)
    ]
    assert len(batches) == 3
    for number, (image, mask) in enumerate(batches):
        assert image.dtype == mask.dtype == np.float32
        expected = [stream[k] for k in range(4 * number, 4 * number + 4)]
        np.testing.assert_array_equal(image, np.stack([image for image, _ in expected]))
        np.testing.assert_array_equal(mask, np.stack([mask for _, mask in expected]))


@pytest.mark.parametrize("workers", [0, 2])
def test_user_error_of_a_loader_is_one_message(backend, workers):
    loop = create_loop(backend, RandomDataset(broken=UserError("x.nii: cut in half.")), num_workers=workers)
    with pytest.raises(UserError) as error:
        run(loop, 10)
    assert str(error.value) == "x.nii: cut in half."


def test_other_error_of_a_loader_process_brings_its_traceback(backend):
    loop = create_loop(backend, RandomDataset(broken=ZeroDivisionError("a defect")), num_workers=2)
    with pytest.raises(RuntimeError, match="(?s)Traceback.*in __getitem__.*ZeroDivisionError: a defect"):
        run(loop, 10)


@pytest.mark.parametrize("settings", [{}, {"microbatch": 2}, {"schedule_sampler": "loss-second-moment"}])
def test_noise_that_the_loader_draws_ahead_is_that_of_the_step(backend, settings):
    """Require the same bits with and without processes that load, and no noise drawn in the training process."""

    def train(workers):
        loop = create_loop(backend, batch_size=4, max_steps=3, num_workers=workers, **settings)
        drawn = []
        draw = loop.tape.normal
        loop.tape.normal = lambda site, *place, **rest: drawn.append(site) or draw(site, *place, **rest)
        values = [dict(found) for found in run(loop, 3)]
        return values, loop.networks(), drawn

    values, networks, drawn = train(0)
    ahead_values, ahead_networks, ahead_drawn = train(2)
    assert drawn == [TRAIN_NOISE] * 12 and ahead_drawn == []
    assert values == ahead_values
    for kind, arrays_of_kind in networks.items():
        for name, value in arrays_of_kind.items():
            np.testing.assert_array_equal(ahead_networks[kind][name], value, err_msg=f"{kind} {name}")


@pytest.mark.skipif("jittor" not in BACKENDS, reason="Jittor is not among MEDSEGDIFF_BACKENDS")
def test_memory_does_not_grow():
    """Require constant memory: Jittor keeps the graph of every value that is not computed."""
    loop = create_loop(Backend("jittor"), max_steps=40)
    held = [resident_mib() for _ in loop.run_loop(40)]
    assert held[39] - held[9] < 60, "2 million parameters: a lost graph takes about 10 MiB a step"


def resident_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_nan_in_the_data_reaches_the_loss(backend):
    dataset = RandomDataset()
    dataset.images[:] = np.nan
    assert np.isnan(run(create_loop(backend, dataset), 1)[0]["total"])
