"""What a network is trained for, and how masks come out of it."""

from typing import Protocol


class Method(Protocol):
    """The part of training and sampling that differs between diffusion and other ways to segment.

    The training loop keeps everything else: optimizer, averages, microbatches, processes, checkpoints. A method of
    a backend is a module in its folder `methods/` with a function `create(config)`, and an entry in `METHODS`.
    """

    mask_channels: int  # K, one for each label

    def losses(self, network, images, masks, draws):
        """Return name -> tensor (N,) of the losses of N examples; the mean of `total` is minimised, all are logged.

        images: (N, C, S, S). masks: (N, K, S, S), above 0 where they hold. draws: `BatchDraws` of the examples.
        """

    def observe(self, draws, losses):
        """Take note of an optimizer step, after it.

        draws: `BatchDraws` of its whole batch. losses: name -> numpy (N,), what `losses` returned for it.
        """

    def state(self):
        """Return name -> numpy array of what a checkpoint has to keep of the method; {} for nothing."""

    def restore(self, arrays):
        """Go on from what `state` returned."""

    def sampler(self, network, sampling, tape):
        """Return the function of (images (N, C, S, S), keys) that returns masks (M, N, K, S, S), both float32 numpy.

        network: in eval mode. sampling: `SamplingConfig`, whose `num_ensemble` is M. tape: NoiseTape.
        keys: N strings, the cases' names on the tape. Values are about 0 to 1.
        """


# The values of `--method`, for each the module of a backend that creates it.
METHODS = {"diffusion": "methods.diffusion"}
