"""All problems of a data set at once, and its fingerprint: what `scripts/check_data.py` reports."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
from tqdm import tqdm

from guided_diffusion_core.data.check.examine import ERROR, WARNING, Problem, as_problem, examine
from guided_diffusion_core.data.formats.volumes import AFFINE_TOLERANCE
from guided_diffusion_core.errors import join_names

QUANTILES = (0.5, 25, 50, 75, 99.5)  # percent, of the fingerprint's intensities


class Check:
    """The check of one or two sets of one layout.

    inventories: dict set name ("train", "test") -> `Inventory`.
    workers:     threads that read; decompression and numpy run side by side in them.
    """

    def __init__(self, inventories, workers):
        self.inventories = inventories
        queue = [(name, file) for name, inventory in inventories.items() for file in inventory.files]
        with ThreadPoolExecutor(workers) as pool:
            done = pool.map(lambda item: examine(item[1], inventories[item[0]].normalisation), queue)
            found = list(tqdm(done, total=len(queue), unit="file", desc="checking", dynamic_ncols=True))
        self.examined = {name: [] for name in inventories}  # set name -> list of `Examined`
        for (name, _), result in zip(queue, found):
            self.examined[name].append(result)
        self.problems = self._all_problems()

    def _all_problems(self):
        problems = []
        for name, inventory in self.inventories.items():
            results = self.examined[name]
            problems += [as_problem(error, "layout") for error in inventory.problems]
            problems += [problem for result in results for problem in result.problems]
            problems += [problem for files in _by_case(results).values() for problem in _disagreements(files)]
            problems += _without_labels(name, inventory)
        problems += _duplicates(self.examined) + _shared_names(self.examined)
        unique = list(dict.fromkeys(problems))  # a loader may complain of what was found here, too
        return sorted(unique, key=lambda problem: problem.severity != ERROR)

    @property
    def has_errors(self):
        """Whether anything is worse than a warning."""
        return any(problem.severity == ERROR for problem in self.problems)

    def report(self):
        """The problems as JSON values: their number by severity and kind, and each of them."""
        counts = Counter((problem.severity, problem.kind) for problem in self.problems)
        return {
            "files": {name: len(results) for name, results in self.examined.items()},
            "counts": [
                {"severity": severity, "kind": kind, "problems": count} for (severity, kind), count in counts.items()
            ],
            "problems": [asdict(problem) for problem in self.problems],
        }

    def fingerprint(self):
        """Sizes, spacings, intensities and foreground shares of each set, as JSON values."""
        return {name: _fingerprint(results, self.inventories[name]) for name, results in self.examined.items()}


def _by_case(results):
    cases = {}
    for result in results:
        cases.setdefault(result.file.case, []).append(result)
    return cases


def _disagreements(results):
    """Problems between the files of one case: another grid, twice the same image, masks that are empty."""
    problems = []
    places = {}
    for result in results:
        if result.shape is not None:
            places.setdefault(result.file.place, []).append(result)
    for first, *others in places.values():
        for other in others:
            problems += _other_grid(first, other)
    labels = [result for result in results if result.shares is not None]
    for name in labels[0].shares if labels else ():
        if not any(result.shares.get(name) for result in labels):
            problems.append(
                Problem(
                    WARNING,
                    "empty mask",
                    labels[0].file.path,
                    f"no pixel of {name!r} in case {labels[0].file.case}",
                    "some foreground",
                    "Look at the case: it is right if there is nothing to segment.",
                )
            )
    return problems


def _other_grid(first, other):
    def problem(kind, found, expected):
        return Problem(
            ERROR,
            kind,
            other.file.path,
            found,
            f"{expected} as in {first.file.path}",
            "Resample the files of a case to one grid, or use the one that belongs to it.",
        )

    if first.shape != other.shape:
        return [problem("shape", f"the size {_numbers(other.shape)}", _numbers(first.shape))]
    if first.affine is None or other.affine is None:
        return []
    if not np.allclose(first.spacing, other.spacing, rtol=0, atol=AFFINE_TOLERANCE):
        return [problem("spacing", f"a spacing of {_numbers(other.spacing)} mm", f"{_numbers(first.spacing)} mm")]
    if not np.allclose(first.affine, other.affine, rtol=0, atol=AFFINE_TOLERANCE):
        row = np.abs(first.affine - other.affine).max(axis=1).argmax()
        return [
            problem(
                "affine",
                f"another orientation or place: row {row} of the affine is {_numbers(other.affine[row])}",
                _numbers(first.affine[row]),
            )
        ]
    return []


def _without_labels(name, inventory):
    if not inventory.unlabelled or name != "test":
        return []  # of a training set each lacking file is a problem of its own
    return [
        Problem(
            WARNING,
            "no labels",
            f"{name} set",
            f"{len(inventory.unlabelled)} cases without labels ({join_names(inventory.unlabelled)})",
            "labels, if these cases are to be scored",
            "Nothing is to be done for sampling alone.",
        )
    ]


def _duplicates(examined):
    """Images that hold the same values as another one: an error between sets and between channels."""
    seen = {}
    problems = []
    for name, results in examined.items():
        for result in results:
            if result.file.label_map is not None or result.range is None or result.range[0] == result.range[1]:
                continue
            other_name, other = seen.setdefault(result.digest, (name, result))
            if other is result:
                continue
            same_case = (other_name, other.file.case) == (name, result.file.case)
            severe = other_name != name or same_case
            problems.append(
                Problem(
                    ERROR if severe else WARNING,
                    "duplicate",
                    result.file.path,
                    f"the same values as in {other.file.path}",
                    "images that differ" + (", or scores of the test set mean nothing" if other_name != name else ""),
                    "Put the right file there." if same_case else "Take one of the two out.",
                )
            )
    return problems


def _shared_names(examined):
    """Cases of the two sets that have one name, which may be one patient."""
    # the first file of each case, an image
    names = [{result.file.case: result.file.path for result in reversed(results)} for results in examined.values()]
    if len(names) < 2:
        return []
    return [
        Problem(
            WARNING,
            "name",
            names[1][case],
            f"the case name {case!r} in both sets",
            "different cases in the two sets",
            "Make sure that they are not of one patient.",
        )
        for case in sorted(names[0].keys() & names[1].keys())
    ]


def _fingerprint(results, inventory):
    readable = [result for result in results if result.shape is not None]
    first_of_case = {}
    for result in readable:
        if result.file.label_map is None:
            first_of_case.setdefault(result.file.case, result)
    channels = {}
    for result in readable:
        if result.moments:
            channels.setdefault(result.file.part, []).append(result)
    shares = {}
    for files in _by_case([result for result in readable if result.shares]).values():
        for label in files[0].shares:
            share = np.mean([result.shares.get(label, 0.0) for result in files])
            shares.setdefault(label, []).append(float(share))
    return {
        "cases": len(inventory.cases),
        "files": len(results),
        "normalisation": inventory.normalisation,
        "sizes": [list(result.shape) for result in first_of_case.values()],
        "spacings": [list(result.spacing) for result in first_of_case.values() if result.spacing],
        "intensities": {channel: _intensities(found) for channel, found in channels.items()},
        "foreground_share": {
            label: {
                "cases": values,
                "mean": float(np.mean(values)),
                "median": float(np.median(values)),
                "empty": sum(not value for value in values),
            }
            for label, values in shares.items()
        },
    }


def _intensities(results):
    """Of one channel over all its files: exact extremes, mean and deviation; quantiles of a sample."""
    numbers, means, deviations = np.array([result.moments for result in results]).T
    mean = np.average(means, weights=numbers)
    variance = np.average(deviations**2 + (means - mean) ** 2, weights=numbers)
    sample = np.concatenate([result.sample for result in results])
    return {
        "minimum": min(result.range[0] for result in results),
        "maximum": max(result.range[1] for result in results),
        "mean": float(mean),
        "standard_deviation": float(np.sqrt(variance)),
        "quantiles": {str(q): float(value) for q, value in zip(QUANTILES, np.percentile(sample, QUANTILES))},
    }


def _numbers(values):
    return " x ".join(f"{value:g}" for value in values)
