"""The log of a training as curves, and for TensorBoard."""

from contextlib import suppress
from pathlib import Path

from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.html_report import figure_bytes, make_figure
from guided_diffusion_core.system.files import write_atomic, writing
from guided_diffusion_core.training.folder import BOARD, CURVES
from guided_diffusion_core.training.log import read_log

# Values of a line that are neither a loss nor a score.
_OTHERS = ("step", "seconds", "memory_mib", "gpu_memory_mib", "lr", "loss_scale", "val_dice")


def write_curves(out_dir, done):
    """Write the losses, and the Dice of the validations if there are some, as a picture into a run's folder.

    done: number of steps so far. Raises `NoRoom` on a full disk.
    """
    lines = read_log(out_dir, done)
    if len(lines) > 1:  # one point is no curve
        write_atomic(Path(out_dir) / CURVES, _drawn(lines))


def _drawn(lines):
    """Return the curves of the lines of a log as the bytes of a PNG file."""
    validations = [line for line in lines if line.get("val_dice") is not None]
    figure = make_figure(9.2 if validations else 4.6, 3.8)
    left, *right = figure.subplots(1, 2 if validations else 1, squeeze=False)[0]
    losses = []
    for name in lines[-1]:
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        if name not in _OTHERS and points:
            left.plot(*zip(*points), ".-", label=name)
            losses += [value for _, value in points]
    # losses fall by orders of magnitude; a logarithm shows positive ones alone
    scale = "log" if losses and min(losses) > 0 else "linear"
    left.set(xlabel="step", ylabel="loss, mean since the line before", yscale=scale)
    left.legend()
    for panel in right:
        panel.plot([line["step"] for line in validations], [line["val_dice"] for line in validations], "o-")
        panel.set(xlabel="step", ylabel="Dice of the validation", ylim=(0, 1))
    return figure_bytes(figure)


def require_tensorboard():
    """Raise `UserError` if the package that writes for TensorBoard is not installed."""
    try:
        import tensorboardX  # noqa: F401, an extra that only this flag needs
    except ImportError as error:
        raise found_expected(
            "--tensorboard",
            f"no package tensorboardX ({error})",
            "the one that writes for TensorBoard",
            "Run: pip install tensorboardX",
        ) from error


class Board:
    """The log for TensorBoard, in the folder `tensorboard` of a run.

    done: number of steps so far; TensorBoard drops what an interrupted run has logged after them.
    """

    def __init__(self, out_dir, done):
        from tensorboardX import SummaryWriter

        self.folder = Path(out_dir) / BOARD
        with writing(self.folder):
            # A file's name has the second of its start, which two starts may share.
            self._writer = SummaryWriter(
                str(self.folder), purge_step=done + 1 if done else None, filename_suffix=f".from_{done}"
            )

    def add(self, line):
        """Add a line of the log, a dict with its "step"."""
        with writing(self.folder):
            for name, value in line.items():
                if name != "step" and value is not None:
                    self._writer.add_scalar(name, value, line["step"])
            self._writer.flush()

    def close(self):
        """Close the file."""
        with suppress(OSError):  # a full disk has been reported already
            self._writer.close()
