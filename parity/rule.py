"""The rule: when two tensors of two implementations agree.

Scale-free, and without a floor set by hand. Every number comes from what the reference framework's
own rounding does to the same tensor:

    own     = largest error of the reference, over its runs from numbers moved by one ulp and, in float32,
              its plain run, against its plain float64 run
    allowed = M * own + K * eps * scale

once for the root mean square over the tensor and once for its largest element; scale is the same
norm of the float64 values. The candidate's error is taken against the same float64 run. In float64
`own` is at least what float32 shows, scaled by eps64 / eps32: PyTorch accumulates some float32
sums in float64, which hides how ill-conditioned they are.

What is moved is every weight, up in one run and down in another; where a layer runs alone, the weights
and all that it is given, each number up or down at random (equal ones alike, so that a maximum pooling
chooses as before), in several draws. One run would not do: in one of many tensors the error of a single
number, such as the gradient of one channel's bias, is small by luck.

A gradient that cancels to nothing in truth (a bias before a norm) is rounding noise in both, whose
size is chance. Where a tensor's scale lies below one float32 eps of the largest of its kind in the
network, that largest counts as its scale.

The multiples are calibrated from recorded runs: `parity/README.md`, "The multiples".
"""

from dataclasses import dataclass

import numpy as np

EPS = {"float32": float(np.finfo(np.float32).eps), "float64": float(np.finfo(np.float64).eps)}


@dataclass(frozen=True)
class Rule:
    """The multiples of the rule.

    multiple:         M, of the reference's own error.
    last_places:      K, in eps of the tensor's scale, in float32. gate_last_places: the same in float64.
    """

    multiple: float
    last_places: float
    gate_last_places: float


RULE = Rule(multiple=16.0, last_places=32.0, gate_last_places=1024.0)


@dataclass(frozen=True)
class Judgement:
    """How far a tensor is from the reference's.

    ratio:   error as a share of what is allowed, the larger of the two norms; above 1 diverges.
    error:   relative RMS error against float64. own: the reference's own, in float32.
    ulps:    median, 99th percentile and largest distance from the reference in the same precision, in
             units in the last place.
    cosine:  of the two tensors as vectors; 1.0 where both are zero.
    problem: what cannot be measured, as text, or "".
    """

    ratio: float
    error: float = 0.0
    own: float = 0.0
    ulps: tuple = (0.0, 0.0, 0.0)
    cosine: float = 1.0
    problem: str = ""


def norms(values):
    """Root mean square and largest magnitude of an array; zeros if it is empty."""
    if values.size == 0:
        return np.zeros(2)
    largest = np.abs(values).max()
    if largest == 0:
        return np.zeros(2)
    scaled = (values / largest).ravel()  # squares of tiny gradients would underflow
    return np.array([largest * np.sqrt(np.dot(scaled, scaled) / values.size), largest])


def distance(truth, run):
    """Both norms of the difference of a run from the truth; where one is not finite it does not count."""
    return norms(_finite(run, truth) - _finite(truth, run))


def _finite(values, other):
    return np.asarray(values, np.float64)[np.isfinite(values) & np.isfinite(other)]


def allowance(truth, own, precision, kind_scale=0.0):
    """The error that the rule allows, by norm.

    truth:      float64 array. own: "float32" and "float64" -> the reference's own error, two norms: the
                largest `distance` over its runs.
    precision:  of the run that is judged.
    kind_scale: largest RMS among tensors of the same kind in the network, 0 if there is none.
    Returns (allowed, own), two norms each.
    """
    scale = norms(_finite(truth, truth))
    eps = EPS[precision]
    amount = own["float32"]
    if precision == "float64":
        amount = np.maximum(amount * (EPS["float64"] / EPS["float32"]), own["float64"])
    if scale[0] <= EPS["float32"] * kind_scale:
        scale = np.full(2, kind_scale)
    places = RULE.last_places if precision == "float32" else RULE.gate_last_places
    return RULE.multiple * amount + places * eps * scale, amount


def judge(candidate, beside, truth, own, precision, kind_scale=0.0, detail=True):
    """`Judgement` of a candidate's floating-point tensor.

    candidate: its array. beside: the reference's plain run in the same precision.
    truth, own, precision, kind_scale: as of `allowance`.
    detail:    measure ulps and cosine too; the verdict does not depend on them.
    """
    if not np.array_equal(np.isnan(candidate), np.isnan(beside)):
        return Judgement(np.inf, problem="NaN at other places")
    if not np.array_equal(_infinities(candidate), _infinities(beside)):
        return Judgement(np.inf, problem="infinite at other places")
    allowed, amount = allowance(truth, own, precision, kind_scale)
    error = distance(truth, candidate)
    ratio = float(max(_share(e, a) for e, a in zip(error, allowed)))
    size = norms(_finite(truth, truth))[0] or 1.0
    if not detail:
        return Judgement(ratio, error[0] / size, amount[0] / size)
    first = _finite(candidate, beside)
    second = _finite(beside, candidate)
    return Judgement(
        ratio, error[0] / size, amount[0] / size, ulp_quantiles(first, second, precision), cosine(first, second)
    )


def _share(error, allowed):
    return 0.0 if error == 0 else (error / allowed if allowed > 0 else np.inf)


def _infinities(values):
    return np.where(np.isinf(values), np.sign(values), 0)


def ulp_quantiles(first, second, precision):
    """Median, 99th percentile and maximum of the distance in units in the last place of `second`."""
    if first.size == 0:
        return (0.0, 0.0, 0.0)
    kind = np.dtype(precision).type
    # what is smaller counts as this: its spacing would be a subnormal number, which Jittor's import turns to 0
    smallest = np.finfo(kind).tiny / np.finfo(kind).eps
    spacing = np.spacing(np.maximum(np.abs(second.astype(kind)), smallest)).astype(np.float64)
    with np.errstate(over="ignore"):
        ulps = np.minimum(np.abs(first - second) / spacing, np.finfo(np.float32).max)
    places = [int(share * (ulps.size - 1)) for share in (0.5, 0.99, 1.0)]
    return tuple(float(value) for value in np.partition(ulps.ravel(), places)[places])


def cosine(first, second):
    """Cosine of the angle between two arrays as vectors; 1 where both are zero, 0 where one is."""
    largest = [np.abs(values).max(initial=0.0) for values in (first, second)]
    if min(largest) == 0:
        return float(max(largest) == 0)
    units = [(values / size).ravel() for values, size in zip((first, second), largest)]
    return float(np.dot(*units) / (np.linalg.norm(units[0]) * np.linalg.norm(units[1])))


def judge_exact(candidate, beside):
    """`Judgement` of tensors that have to agree to the bit."""
    equal = candidate.tobytes() == beside.tobytes()
    return Judgement(0.0 if equal else np.inf, problem="" if equal else "not equal to the bit")


def judge_mask(candidate, beside, probability, allowed, threshold):
    """`Judgement` of a mask: where it differs, the probability lies as near to the threshold as
    rounding can move it.

    candidate, beside: masks. probability: the reference's in float64. allowed: largest error that the
    rule allows there (`allowance`).
    """
    margin = np.abs(np.float64(probability) - threshold)[candidate != beside]
    if margin.size == 0:
        return Judgement(0.0)
    ratio = _share(margin.max(), allowed)
    return Judgement(
        ratio, error=margin.size / candidate.size, problem="pixels differ far from the threshold" if ratio > 1 else ""
    )
