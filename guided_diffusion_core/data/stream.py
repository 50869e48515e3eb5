"""The examples of a training run in order, for each framework's own loader to wrap."""
from guided_diffusion_core.noise import TRAIN_ORDER


class TrainingStream:
    """All examples that a run will see, by their number: `stream[k] -> (image, mask)`.

    Each epoch is a fresh permutation from the tape; the epochs follow each other without a
    gap, so a batch may hold the end of one and the start of the next. An unshuffled loader of any
    framework with any number of processes, batches of `batch_size`, gives the same run.

    dataset:    `Dataset` with masks. tape: `NoiseTape`.
    batch_size: examples per optimizer step. max_steps: steps of the whole run.
    start_step: steps that are done already; the stream starts behind them.
    """

    def __init__(self, dataset, tape, batch_size, max_steps, start_step=0):
        self.dataset, self.tape = dataset, tape
        self._start, self._end = start_step * batch_size, max_steps * batch_size
        self._epoch, self._order = None, None

    def __len__(self):
        return max(0, self._end - self._start)

    def __getitem__(self, k):
        """Image (C, S, S) and mask (1, S, S), float32, of the k-th example from the start step on."""
        if not 0 <= k < len(self):
            raise IndexError(f"example {k} of {len(self)}")
        epoch, place = divmod(self._start + k, len(self.dataset))
        if epoch != self._epoch:
            self._order = self.tape.permutation(TRAIN_ORDER, len(self.dataset), step=epoch)
            self._epoch = epoch
        example = self.dataset[int(self._order[place])]
        return example.image, example.mask
