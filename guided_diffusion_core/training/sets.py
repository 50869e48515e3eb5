"""The two sets of a training: the cases that it is trained on, and those on which it is validated.

The validation set is one of these: another folder (`--val_dir`); a share of the patients (`--val_share`) or one of five
parts of them (`--fold`), which are then not trained on; the folders of the data that are named val.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from guided_diffusion_core.data import list_truths, open_dataset
from guided_diffusion_core.data.patients import RULE, patient_rule
from guided_diffusion_core.data.splits import NoSplit, folder_of, has_split
from guided_diffusion_core.data.subset import Subset
from guided_diffusion_core.data.walk import noting_left_out, take_back
from guided_diffusion_core.errors import UserError, found_expected, join_names
from guided_diffusion_core.noise import TRAIN_SPLIT, NoiseTape
from guided_diffusion_core.system.files import write_text
from guided_diffusion_core.system.processes import launched
from guided_diffusion_core.training.folder import SPLIT
from guided_diffusion_core.training.rates import last_step

FOLDS = 5


@dataclass(frozen=True)
class ValidationCases:
    """The cases on which a training is validated.

    dataset: `Dataset` of them, with masks. truths: their ground truth, a list of `Truth`.
    source:  where they come from, in words.
    """

    dataset: object
    truths: list
    source: str


def split_sets(config, dataset):
    """Return (`Dataset` to train on, `ValidationCases` or None), and print a line about the latter.

    config: `Config` of the training, after `fit_to_data`. dataset: the training set of `data_dir`, from which cases
            are held out.
    Raises `UserError` for too few patients, and for data that cannot be validated on; the folders named val are not
    used then, and a line says why.
    """
    training = config.training
    if training.val_dir:
        cases = open_val_dir(config)
    elif training.val_share or training.fold >= 0:
        dataset, cases = _hold_out(config, dataset)
    else:
        cases = _of_folders(config)
    if cases:
        count = len(cases.dataset.cases())
        _say(f"validation: {count} cases every {training.val_interval} steps, {cases.source}")
    return dataset, cases


def open_val_dir(config):
    """Return the `ValidationCases` in the folder `--val_dir`."""
    data = dataclasses.replace(config.data, data_dir=config.training.val_dir, slices=config.training.val_slices)
    return _opened(config, data, "Test", f"of --val_dir {data.data_dir}")


def write_split(out_dir, dataset, cases):
    """Write the names of the cases of both sets into the folder of a training."""
    tree = {
        "validation": [case.name for case in cases.dataset.cases()],
        "training": [case.name for case in dataset.cases()],
        "source": cases.source,
    }
    write_text(Path(out_dir) / SPLIT, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


def held_out_patients(names, training, seed):
    """Return the patients that are held out, a frozenset.

    names:    names of all cases. training: `TrainingConfig` with `val_share` or `fold`.
    The patients are put in a random order that the seed decides. A share takes the first ones, at least one; fold k is
    the k-th of five parts of equal size. Raises `UserError` for too few patients.
    """
    patients = sorted(set(map(patient_rule(names), names)))
    needed = FOLDS if training.fold >= 0 else 2
    if len(patients) < needed:
        flag = "--fold" if training.fold >= 0 else "--val_share"
        raise found_expected(
            flag,
            f"{len(names)} cases of {len(patients)} patients ({join_names(patients)}; {RULE})",
            f"at least {needed} patients",
            "Put the cases for validation into a folder, and give it as --val_dir.",
        )
    order = NoiseTape(seed).permutation(TRAIN_SPLIT, len(patients))
    if training.fold >= 0:
        chosen = np.array_split(order, FOLDS)[training.fold]
    else:
        count = round(training.val_share * len(patients))
        chosen = order[: min(max(count, 1), len(patients) - 1)]
    return frozenset(patients[index] for index in chosen)


def _hold_out(config, dataset):
    """Return (`Subset` without the patients that are held out, `ValidationCases` of these)."""
    training = config.training
    names = [case.name for case in dataset.cases()]
    patient_of = patient_rule(names)
    patients = held_out_patients(names, training, config.seed)
    kept = [case for case in dataset.cases() if patient_of(case.name) not in patients]
    data = dataclasses.replace(config.data, slices=training.val_slices)
    flag = f"--fold {training.fold} of {FOLDS}" if training.fold >= 0 else f"--val_share {training.val_share:g}"
    example = max(names, key=lambda name: len(name) - len(patient_of(name)))  # one in which the rule shows
    every = len({patient_of(name) for name in names})
    source = f"held out by {flag}: {len(patients)} of {every} patients; {RULE} ({patient_of(example)!r} of {example!r})"
    with noting_left_out():  # the training set of the same folder has said it
        cases = _opened(config, data, "Training", source, lambda name: patient_of(name) in patients)
    return Subset(dataset, kept), cases


def _of_folders(config):
    """Return the `ValidationCases` in the folders of the data that are named val, or None if there are none."""
    training = config.training
    data = dataclasses.replace(config.data, slices=training.val_slices)
    kind = folder_of("Validation")
    with noting_left_out():  # to the validation set, the others are left out
        if not has_split(data.data_dir, "Validation"):
            return None
        if training.val_interval > last_step(training):
            _say(
                f"the {kind} is not used: the training ends at step {last_step(training)}, before the first validation "
                f"(--val_interval {training.val_interval})"
            )
            return None
        try:
            cases = _opened(config, data, "Validation", "in folders named val")
        except NoSplit:
            return None
        except UserError as error:
            _say(f"the {kind} is not used: {error}")
            return None
    take_back(kind)
    return cases


def _opened(config, data, split, source, is_wanted=None):
    """Return the first `val_cases` of a split as `ValidationCases`.

    is_wanted: function of the name of a case; None for all cases.
    """
    dataset = open_dataset(data, config.model.image_size, split, need_masks=True)
    cases = [case for case in dataset.cases() if is_wanted is None or is_wanted(case.name)]
    chosen = cases[: config.training.val_cases or None]
    names = {case.name for case in chosen}
    # the ground truth of the same cases, at its full size
    truths = [truth for truth in list_truths(data, split) if truth.name in names]
    return ValidationCases(Subset(dataset, chosen), truths, source)


def _say(line):
    if launched().rank == 0:
        print(line, file=sys.stderr)
