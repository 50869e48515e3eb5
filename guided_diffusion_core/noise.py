"""The noise tape: every random number of training and sampling, as a function of its place.

A draw is keyed by (seed, site, step, case, member) and made by a counter-based generator
(Philox; Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). No draw depends on
another one. So the numbers do not change with the batch size, the order of the cases, the device,
the number of processes or the framework.

Sites are names such as "train/noise" or "dropout/input_blocks.1.0.out_layers.2". In training, a
draw's case is the position of the example in the whole batch (0, 1, ...). In sampling it is the name
of the case, so that a case gets the same noise by itself as among others. The steps of
`TRAIN_AUGMENT` count the examples of the run, whatever the batches.
"""

import hashlib

import numpy as np

TRAIN_SPLIT = "train/split"
TRAIN_ORDER = "train/order"
TRAIN_AUGMENT = "train/augment"
TRAIN_TIMESTEP = "train/timestep"
TRAIN_NOISE = "train/noise"
SAMPLE_INITIAL = "sample/initial"
SAMPLE_STEP = "sample/step"
INITIAL_WEIGHT = "initial_weight"

_CHUNK = 2**15  # numbers drawn at a time


def _draw_float32(shape, draw):
    """Return a float32 array of the numbers that `draw(count)` gives as float64.

    The numbers are drawn in chunks: to get memory for all of them at once takes as long as to draw them.
    """
    values = np.empty(shape, np.float32)
    flat = values.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        chunk[...] = draw(chunk.size)
    return values


class NoiseTape:
    """Random numbers by place, from one seed.

    seed: int, of any size and sign.
    """

    def __init__(self, seed):
        self.seed = int(seed)

    def _generator(self, site, step, case, member):
        # The hash of the whole place is the generator's key, so that nearby places share nothing.
        place = repr((self.seed, str(site), int(step), str(case), int(member)))
        key = hashlib.blake2b(place.encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))

    def normal(self, site, shape, *, step=0, case=0, member=0):
        """Draw standard normal values: float32 of the given shape."""
        return _draw_float32(shape, self._generator(site, step, case, member).standard_normal)

    def uniform(self, site, shape=(), *, step=0, case=0, member=0):
        """Draw values from U[0, 1): float64 of the given shape."""
        return self._generator(site, step, case, member).random(shape)

    def symmetric_uniform(self, site, shape, bound):
        """Draw values from U[-bound, bound): float32 of the given shape."""
        generator = self._generator(site, 0, 0, 0)
        return _draw_float32(shape, lambda count: (2 * generator.random(count) - 1) * bound)

    def permutation(self, site, n, *, step=0):
        """Draw a random order of the numbers 0 to n - 1: int64 (n,)."""
        return self._generator(site, step, 0, 0).permutation(n)

    def normal_batch(self, site, shape, *, step, cases, members=None):
        """Draw standard normal values of `shape` for each case: float32 (len(cases), *shape).

        members: the ensemble member of each row; None means 0 for all rows.
        """
        if members is None:
            members = [0] * len(cases)
        rows = [self.normal(site, shape, step=step, case=case, member=member) for case, member in zip(cases, members)]
        return np.stack(rows)

    def keep_mask(self, site, shape, rate, *, step, cases):
        """Draw inverted-dropout masks (Srivastava et al. 2014): float32 (len(cases), *shape).

        A value is 0 with probability `rate`, otherwise 1 / (1 - rate).
        """
        kept = np.stack([self.uniform(site, shape, step=step, case=case) >= rate for case in cases])
        return (kept / (1.0 - rate)).astype(np.float32)
