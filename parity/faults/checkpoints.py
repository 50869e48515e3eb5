"""Faults in resuming, in the learning rate, in the choice of time steps and in validation."""

from unittest import mock

import numpy as np

from parity.faults.planting import assign, fault, replaced


@fault("a restart of the learning rate one step late", "learning rate step 2")
def late_restart(port):
    def late(original, lr, steps, step, schedule, cycles):
        begins = schedule == "cosine-restarts" and step and step * cycles % steps == 0
        return original(lr, steps, step, "cosine" if begins else schedule, cycles)

    return replaced(port.module("train_util"), "learning_rate", late)


@fault("no warm-up of the moving average", "average *")
def average_without_warmup(port):
    return mock.patch.object(port.module("train_util"), "ema_rate_at", lambda rate, step, warmup: rate)


@fault("time steps drawn by their losses without weights that undo it", "loss total, step 0")
def importance_weights(port):
    def unweighted(original, self, uniforms):
        t, weights = original(self, uniforms)
        return t, np.ones_like(weights)

    return replaced(port.module("resample").ScheduleSampler, "draw", unweighted)


def _changed_restore(port, change):
    """Apply change(loop, networks of the checkpoint, averages before it was read) to a loop after it was resumed."""

    def restore(original, self, step, networks):
        before = [[port.runtime.to_numpy(value) for value in averages] for averages in self.ema_params]
        original(self, step, networks)
        change(self, networks, before)
        port.runtime.synchronize()

    return replaced(port.module("train_util").TrainLoop, "restore", restore)


def _moments(loop, networks):
    return (
        [networks["trainer"][f"{kind}/{name}"] for name in loop.names] for kind in ("first_moment", "second_moment")
    )


@fault("second moments not restored", "second moment *, step 1")
def resumed_without_second_moment(port):
    def change(loop, networks, before):
        first, second = _moments(loop, networks)
        loop.opt.restore(first, [np.zeros_like(value) for value in second], loop.step)

    return _changed_restore(port, change)


@fault("the optimizer's step count not restored", "update *, step 1")
def resumed_step_count(port):
    return _changed_restore(port, lambda loop, networks, before: loop.opt.restore(*_moments(loop, networks), 0))


@fault("moving averages not restored", "average *, step 1")
def resumed_without_average(port):
    def change(loop, networks, before):
        for averages, arrays in zip(loop.ema_params, before):
            for average, array in zip(averages, arrays):
                assign(port, average, array)

    return _changed_restore(port, change)


@fault("a resumed run that begins its data anew", "noise tape: *")
def resumed_at_step_zero(port):
    return _changed_restore(port, lambda loop, networks, before: setattr(loop, "step", 0))


@fault("validation leaves the network in sampling mode", "noise tape: *")
def validation_leaves_eval(port):
    def leaving(original, self, config, sampling):
        self.model.eval()
        return original(self, config, sampling)

    return replaced(port.module("train_util").TrainLoop, "average_sampler", leaving)


@fault("validation of the network instead of its moving average", "members step 0")
def validation_of_the_network(port):
    loop = port.module("train_util").TrainLoop

    def of_the_network(original, self, config, sampling):
        # only here: checkpoints need it too
        with mock.patch.object(loop, "_average_state", lambda self, state, averages: state):
            return original(self, config, sampling)

    return replaced(loop, "average_sampler", of_the_network)
