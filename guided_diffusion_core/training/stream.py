"""The examples of a training run in their order, for the loaders of both frameworks."""

import traceback

from guided_diffusion_core.errors import UserError
from guided_diffusion_core.noise import TRAIN_ORDER


class TrainingStream:
    """All examples of a run by their number: `stream[k] -> (image, mask)`.

    Each epoch is a new permutation from the tape. The epochs follow each other without a gap: a batch may contain the
    end of one and the start of the next. Every loader that does not shuffle gives the same run, whatever its framework
    and its number of processes.

    dataset:    `Dataset` with masks.
    tape:       `NoiseTape`.
    batch_size: examples per optimizer step, over all processes.
    max_steps:  steps of the whole run.
    start_step: steps so far, after which the stream starts.
    augment:    `Augmentation`, or None for the examples as they are.
    slots:      the indices in every batch that this stream has; None for all.
    noise:      site -> shape of the normal values of each example that are drawn here, so that a loader's processes
                draw them ahead of the step (`BatchDraws`).
    """

    def __init__(self, dataset, tape, batch_size, max_steps, start_step=0, augment=None, slots=None, noise=None):
        self.dataset = dataset
        self.tape = tape
        self.augment = augment
        self.batch_size = batch_size
        self.slots = range(batch_size) if slots is None else slots
        self.noise = noise or {}
        self._start = start_step
        self._steps = max(0, max_steps - start_step)
        self._epoch = None
        self._order = None

    def __len__(self):
        return self._steps * len(self.slots)

    def __getitem__(self, k):
        """Return image (C, S, S) and mask (K, S, S), float32, of the k-th example from the start step on.

        With `noise`, the third value is its site -> values.
        """
        if not 0 <= k < len(self):
            raise IndexError(f"example {k} of {len(self)}")
        # k counts the examples of this stream, `number` all examples of the run, over all processes
        step, index = divmod(k, len(self.slots))
        step += self._start
        slot = self.slots[index]
        image, mask = self._example(step * self.batch_size + slot)
        if not self.noise:
            return image, mask
        drawn = {site: self.tape.normal(site, shape, step=step, case=slot) for site, shape in self.noise.items()}
        return image, mask, drawn

    def _example(self, number):
        """Return image and mask of an example by its number in the run."""
        epoch, place = divmod(number, len(self.dataset))
        # the order of the current epoch is kept, since a permutation of a large dataset takes time
        if epoch != self._epoch:
            self._order = self.tape.permutation(TRAIN_ORDER, len(self.dataset), step=epoch)
            self._epoch = epoch
        example = self.dataset[int(self._order[place])]
        if self.augment is None:
            return example.image, example.mask
        return self.augment(example.image, example.mask, number)


class ErrorCarrier:
    """A `TrainingStream` that returns its errors as examples, so that they reach the training process.

    The loaders cannot pass on an error: PyTorch hides its message in a traceback, and Jittor interrupts the training
    process and then waits for the batch forever.
    """

    def __init__(self, stream):
        self.stream = stream

    def __len__(self):
        return len(self.stream)

    def __getitem__(self, k):
        """Return the example or its exception: a `UserError`, or a RuntimeError with the traceback of any other."""
        try:
            return self.stream[k]
        except UserError as error:
            return error
        except Exception:
            return RuntimeError(f"a loader process failed\n{traceback.format_exc()}")


def first_error(examples):
    """Return the first exception among the examples of a batch, or None."""
    return next((example for example in examples if isinstance(example, Exception)), None)


def checked(batches):
    """Yield the batches of a loader; raise the exception that comes in place of one."""
    for batch in batches:
        if isinstance(batch, Exception):
            raise batch
        yield batch
