"""The noise tape: every random number of training and sampling, as a function of its place.

A draw is keyed by (seed, site, step, case, member) and made by a counter-based generator
(Philox; Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). No draw depends on
another one, so the numbers are the same whatever the batch size, the order of the cases, the
device, the number of processes and the framework.

Sites are names such as "train/noise" or "dropout/input_blocks.1.0.out_layers.2". In training a
draw's case is the slot of the example in the whole batch (0, 1, ...); in sampling it is the
name of the case, so that a case gets the same noise alone and among others. The steps of
`TRAIN_AUGMENT` are the examples of the run, one after the other, whatever the batches.
"""

import hashlib

import numpy as np

TRAIN_ORDER = "train/order"
TRAIN_AUGMENT = "train/augment"
TRAIN_TIMESTEP = "train/timestep"
TRAIN_NOISE = "train/noise"
SAMPLE_INITIAL = "sample/initial"
SAMPLE_STEP = "sample/step"
INITIAL_WEIGHT = "initial_weight"


_PIECE = 2**15  # numbers that are drawn at a time


def _filled(shape, draw):
    """A float32 array of what `draw(count)` gives as float64, a piece at a time: memory for all of it takes as long
    as the numbers."""
    values = np.empty(shape, np.float32)
    flat = values.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        piece[...] = draw(piece.size)
    return values


class NoiseTape:
    """Random numbers by place, from one seed.

    seed: int, any size and sign.
    """

    def __init__(self, seed):
        self.seed = int(seed)

    def _generator(self, site, step, case, member):
        place = repr((self.seed, str(site), int(step), str(case), int(member)))
        key = hashlib.blake2b(place.encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))

    def normal(self, site, shape, *, step=0, case=0, member=0):
        """Standard normal values, float32, of the given shape."""
        return _filled(shape, self._generator(site, step, case, member).standard_normal)

    def uniform(self, site, shape=(), *, step=0, case=0, member=0):
        """Values of U[0, 1), float64, of the given shape."""
        return self._generator(site, step, case, member).random(shape)

    def symmetric_uniform(self, site, shape, bound):
        """Values of U[-bound, bound), float32, of the given shape."""
        generator = self._generator(site, 0, 0, 0)
        return _filled(shape, lambda count: (2 * generator.random(count) - 1) * bound)

    def permutation(self, site, n, *, step=0):
        """The numbers 0 to n - 1 in random order, int64."""
        return self._generator(site, step, 0, 0).permutation(n)

    def normal_batch(self, site, shape, *, step, cases, members=None):
        """One draw of `shape` for each case, stacked: float32 (len(cases), *shape).

        members: the ensemble member of each row; 0 for all if None.
        """
        members = [0] * len(cases) if members is None else members
        return np.stack(
            [self.normal(site, shape, step=step, case=case, member=member) for case, member in zip(cases, members)]
        )

    def keep_mask(self, site, shape, rate, *, step, cases):
        """Inverted-dropout masks (Srivastava et al. 2014): 0 with probability `rate`, else
        1 / (1 - rate); float32 (len(cases), *shape)."""
        kept = np.stack([self.uniform(site, shape, step=step, case=case) >= rate for case in cases])
        return (kept / (1.0 - rate)).astype(np.float32)
