"""Check a whole data set: find all problems at once, and take its fingerprint."""

import itertools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np

from guided_diffusion_core.data.case_grids import turn_onto
from guided_diffusion_core.data.check.examine import ERROR, WARNING, Problem, as_problem, examine
from guided_diffusion_core.data.formats.grids import TOLERANCE
from guided_diffusion_core.data.pairs import require_same_size
from guided_diffusion_core.errors import UserError, join_names
from guided_diffusion_core.system.progress import progress

QUANTILES = (0.5, 25, 50, 75, 99.5)  # percent, of the intensities in the fingerprint


class Check:
    """The check of one or more sets of the same layout.

    inventories: dict of set name ("train", "val", "test") -> `Inventory`.
    workers:     number of threads that read files; decompression and numpy run in parallel in them.
    """

    def __init__(self, inventories, workers):
        self.inventories = inventories
        self.examined = {name: [] for name in inventories}  # set name -> list of `Examined`
        queue = [(name, file) for name, inventory in inventories.items() for file in inventory.files]
        with ThreadPoolExecutor(workers) as pool:
            results = pool.map(lambda item: examine(item[1], inventories[item[0]].normalisation), queue)
            read = progress(results, total=len(queue), unit="file", desc="checking")
            for (name, _), result in zip(queue, read):
                self.examined[name].append(result)
        self.problems = self._all_problems()

    def _all_problems(self):
        """Return all problems, errors before warnings."""
        problems = []
        for name, inventory in self.inventories.items():
            results = self.examined[name]
            problems += [as_problem(error, "layout") for error in inventory.problems]
            for result in results:
                problems += result.problems
            for results_of_case in _by_case(results).values():
                problems += _different_grids(results_of_case)
                problems += _empty_masks(results_of_case)
            problems += _orientations(name, results)
            problems += _without_labels(name, inventory)
        problems += _duplicates(self.examined)
        problems += _shared_names(self.examined)
        unique = list(dict.fromkeys(problems))  # the layout may have reported some of these too
        return sorted(unique, key=lambda problem: problem.severity != ERROR)

    @property
    def has_errors(self):
        """Return True if a problem is worse than a warning."""
        return any(problem.severity == ERROR for problem in self.problems)

    def report(self):
        """Return the problems as JSON values: their number by severity and kind, each problem, and what is left out."""
        counts = Counter((problem.severity, problem.kind) for problem in self.problems)
        return {
            "files": {name: len(results) for name, results in self.examined.items()},
            "counts": [
                {"severity": severity, "kind": kind, "problems": count} for (severity, kind), count in counts.items()
            ],
            "problems": [asdict(problem) for problem in self.problems],
            "left_out": {name: inventory.left_out.kinds() for name, inventory in self.inventories.items()},
        }

    def fingerprint(self):
        """Return the sizes, spacings, intensities and foreground shares of each set as JSON values."""
        return {name: _fingerprint(results, self.inventories[name]) for name, results in self.examined.items()}


def _by_case(results):
    """Return a dict of case name -> list of `Examined`."""
    cases = {}
    for result in results:
        cases.setdefault(result.file.case, []).append(result)
    return cases


def _different_grids(results):
    """Return the problems of files in one case that do not have the same grid.

    The files of a slice are compared with each other, because slices may have different origins.
    """
    places = {}  # slice number or None -> list of `Examined`
    for result in results:
        if result.shape is not None:
            places.setdefault(result.file.place, []).append(result)
    problems = []
    for first, *others in places.values():
        for other in others:
            problems += _different_grid(first, other)
    return problems


def _different_grid(first, other):
    """Return a list with the difference between the grids of two files; empty if they have the same points."""
    if first.geometry is None or other.geometry is None:
        return _different_size(first, other)
    try:
        turn_onto(other.geometry, other.file.path, first.geometry, first.file.path)
    except UserError as error:
        if sorted(first.shape) != sorted(other.shape):
            return [as_problem(error, "shape")]
        is_spaced_alike = np.allclose(first.spacing, other.spacing, rtol=TOLERANCE)
        return [as_problem(error, "affine" if is_spaced_alike else "spacing")]
    return []


def _orientations(name, results):
    """Return a warning for a set whose volumes are stored in several orientations."""
    cases = {}  # orientation -> names of the cases
    for case, files in _by_case(results).items():
        whole = [result for result in files if result.geometry and result.file.place is None]
        if whole:
            cases.setdefault(whole[0].geometry.orientation or "none stated", []).append(case)
    if len(cases) < 2:
        return []
    return [
        Problem(
            WARNING,
            "orientation",
            f"{name} set",
            "volumes in several orientations: "
            + "; ".join(f"{orientation} ({join_names(names)})" for orientation, names in cases.items()),
            "one orientation",
            "Nothing has to be done: training and sampling turn the volumes to one, see --orientation.",
        )
    ]


def _different_size(first, other):
    """Return a list with the difference in size between two pictures; empty if there is none."""
    try:
        require_same_size(other.file.path, other, first.file.path, first)
    except UserError as error:
        return [as_problem(error, "shape")]
    return []


def _empty_masks(results):
    """Return a warning for each label that no file of one case contains."""
    labelled = [result for result in results if result.shares is not None]
    if not labelled:
        return []
    first = labelled[0]
    return [
        Problem(
            WARNING,
            "empty mask",
            first.file.path,
            f"no pixel of {name!r} in case {first.file.case}",
            "some foreground",
            "Look at the case: an empty mask is right if there is nothing to segment.",
        )
        for name in first.shares
        if not any(result.shares.get(name) for result in labelled)
    ]


def _without_labels(name, inventory):
    """Return a warning for a test set, or a validation set, with unlabelled cases."""
    # in a training set, each missing label file is already a problem of its own
    if not inventory.unlabelled or name == "train":
        return []
    return [
        Problem(
            WARNING,
            "no labels",
            f"{name} set",
            f"{len(inventory.unlabelled)} cases without labels ({join_names(inventory.unlabelled)})",
            "labels, if these cases are to be scored",
            "Nothing has to be done if the cases are only sampled.",
        )
    ]


def _duplicates(examined):
    """Return the problems of images that hold the same values as another image.

    A duplicate in the other set, or as another channel of the same case, is an error. Others are warnings.
    """
    first_with_digest = {}  # digest -> (set name, `Examined`)
    problems = []
    for name, results in examined.items():
        for result in results:
            is_label = result.file.label_map is not None
            is_constant = result.range is None or result.range[0] == result.range[1]
            if is_label or is_constant:
                continue
            other_name, other = first_with_digest.setdefault(result.digest, (name, result))
            if other is not result:
                problems.append(_duplicate(result, other, other_name == name))
    return problems


def _duplicate(result, other, is_same_set):
    is_same_case = is_same_set and other.file.case == result.file.case
    is_error = is_same_case or not is_same_set
    consequence = "" if is_same_set else ", because scores of a test set that was trained on mean nothing"
    return Problem(
        ERROR if is_error else WARNING,
        "duplicate",
        result.file.path,
        f"the same values as in {other.file.path}",
        f"different images{consequence}",
        "Replace it with the right file." if is_same_case else "Remove one of the two.",
    )


def _shared_names(examined):
    """Return a warning for each case name that two sets have, because the cases may be of one patient."""
    names = {}  # for each set a dict of case name -> path of its first file, an image
    for name, results in examined.items():
        names[name] = {case: files[0].file.path for case, files in _by_case(results).items()}
    return [
        Problem(
            WARNING,
            "name",
            names[second][case],
            f"the case name {case!r} in both sets, {first} and {second}",
            "different cases in the two sets",
            "Make sure that the two cases are not of the same patient.",
        )
        for first, second in itertools.combinations(names, 2)
        for case in sorted(names[first].keys() & names[second].keys())
    ]


def _fingerprint(results, inventory):
    """Return the fingerprint of one set as JSON values."""
    readable = [result for result in results if result.shape is not None]
    first_images = {}  # case -> its first image
    channels = {}  # channel -> images with intensities
    for result in readable:
        if result.file.label_map is None:
            first_images.setdefault(result.file.case, result)
        if result.moments:
            channels.setdefault(result.file.part, []).append(result)
    return {
        "cases": len(inventory.cases),
        "files": len(results),
        "normalisation": inventory.normalisation,
        "sizes": [list(result.shape) for result in first_images.values()],
        "spacings": [list(result.spacing) for result in first_images.values() if result.spacing],
        "intensities": {channel: _intensities(images) for channel, images in channels.items()},
        "foreground_share": {label: _share_summary(shares) for label, shares in _label_shares(readable).items()},
    }


def _label_shares(results):
    """Return a dict of label -> list of the shares that it covers, one for each case."""
    shares = {}
    labelled = [result for result in results if result.shares]
    for files in _by_case(labelled).values():
        for label in files[0].shares:
            share = np.mean([result.shares.get(label, 0.0) for result in files])
            shares.setdefault(label, []).append(float(share))
    return shares


def _share_summary(shares):
    return {
        "cases": shares,
        "mean": float(np.mean(shares)),
        "median": float(np.median(shares)),
        "empty": sum(not share for share in shares),
    }


def _intensities(results):
    """Return the intensities of one channel: exact extremes, mean and deviation, and quantiles of a sample."""
    numbers, means, deviations = np.array([result.moments for result in results]).T
    mean = np.average(means, weights=numbers)
    # the law of total variance: variance within the files plus variance of their means
    variance = np.average(deviations**2 + (means - mean) ** 2, weights=numbers)
    sample = np.concatenate([result.sample for result in results])
    quantiles = zip(QUANTILES, np.percentile(sample, QUANTILES))
    return {
        "minimum": min(result.range[0] for result in results),
        "maximum": max(result.range[1] for result in results),
        "mean": float(mean),
        "standard_deviation": float(np.sqrt(variance)),
        "quantiles": {str(percent): float(value) for percent, value in quantiles},
    }


def _product(values):
    """Return numbers in the form 10 x 20 x 30."""
    return " x ".join(f"{value:g}" for value in values)
