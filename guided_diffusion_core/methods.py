"""Methods: the losses of a network, and the sampler of its masks."""

from typing import Protocol


class Method(Protocol):
    """The part of training and sampling that differs between diffusion and other ways to segment.

    The training loop has everything else: optimizer, averages, microbatches, processes, checkpoints. A method of a
    backend is a module in its folder `methods/` with a function `create(config)`, and an entry in `METHODS`.
    """

    mask_channels: int  # K, one for each label
    observes: bool  # call `observe`, for which each step has to wait until its losses are computed

    def noise_shapes(self, size):
        """Return site -> shape of the normal values that `losses` draws for each example of `size` x `size` pixels.

        The loader's processes draw these ahead; {} leaves all to the step.
        """

    def losses(self, network, images, masks, draws):
        """Return the losses of N examples, name -> tensor (N,). The mean of `total` is minimised, and all are logged.

        images: (N, C, S, S).
        masks:  (N, K, S, S), above 0 inside.
        draws:  `BatchDraws` of the examples.
        """

    def observe(self, draws, losses):
        """Record an optimizer step, if `observes` is true.

        draws:  `BatchDraws` of its whole batch.
        losses: name -> numpy (N,), the results of `losses` for the whole batch.
        """

    def state(self):
        """Return the state of the method for a checkpoint, name -> numpy array; {} for none."""

    def restore(self, arrays):
        """Continue from the arrays that `state` returned."""

    def sampler(self, network, sampling, tape):
        """Return a function from (images, keys) to masks.

        network:  the network, in eval mode.
        sampling: `SamplingConfig`, whose `num_ensemble` is M.
        tape:     `NoiseTape`.

        The function takes images, float32 numpy (N, C, S, S), and keys, N names of the cases on the tape. It returns
        masks, float32 numpy (M, N, K, S, S) of about 0 to 1.
        """


# Value of `--method` -> the module of a backend that creates the method.
METHODS = {"diffusion": "methods.diffusion"}
