"""The property that `check-data` and training agree: what one refuses, the other reports in the same words."""

from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import list_files, open_dataset
from guided_diffusion_core.data.check import checking
from guided_diffusion_core.data.check.inventory import take_inventory
from guided_diffusion_core.errors import UserError

SIZE = 32
# Problems that only a comparison of all files shows, which a training does not make.
OF_THE_WHOLE_SET = ("duplicate",)


def agree(folder, layout, **settings):
    """Check that training and `check-data` agree on a folder; return what training refuses, a list of texts.

    layout:   value of `--data_name`.
    settings: further fields of `DataConfig`.
    Fails if training refuses something that the check does not report in the same words, or if the check reports an
    error in a folder that training accepts.
    """
    config = DataConfig(layout, str(folder), **settings)
    refused = refused_by_training(config)
    reported = reported_by_check(config)
    missing = [text for text in refused if text not in reported]
    assert not missing, f"training refuses {missing}, the check reports {reported}"
    assert refused or not reported, f"training accepts what the check reports: {reported}"
    return refused


def refused_by_training(config):
    """Return what stops a training, a list of texts: its one error, or those that this error summarises.

    Errors in single examples are all in the list.
    """
    try:
        dataset = open_dataset(config, SIZE, "Training", need_masks=True)
    except UserError as error:
        return [str(single) for single in error.each or [error]]
    refused = []
    for index in range(len(dataset)):
        try:
            dataset[index]
        except UserError as error:
            if str(error) not in refused:  # all slices of a volume have the same one
                refused.append(str(error))
    return refused


def reported_by_check(config):
    """Return the errors that `check-data` reports on a training set, a list of texts."""
    try:
        inventory = take_inventory(lambda: list_files(config, "Training", True))
    except UserError as error:
        return [str(error)]
    problems = checking.Check({"train": inventory}, workers=1).problems
    errors = [problem for problem in problems if problem.severity == checking.ERROR]
    return [str(problem) for problem in errors if problem.kind not in OF_THE_WHOLE_SET]
