"""The rule: when tensors of two implementations agree.

The rule has no absolute scale and no tolerance set by hand. It compares with the effect of the reference
framework's own rounding on the same tensor:

    own     = largest error of the reference against its plain float64 run, over its runs from numbers
              perturbed by one ulp and, in float32, its plain run
    allowed = M * own + K * eps * scale

It is applied twice: to the root mean square over the tensor and to its largest element. `scale` is the
same norm of the float64 values. The error of the candidate is taken against the same float64 run. In
float64, `own` is at least the value of float32 scaled by eps64 / eps32: PyTorch accumulates some float32
sums in float64, which hides how ill-conditioned they are.

The perturbation changes every weight, up in one run and down in another. If a layer runs by itself, it
changes the weights and all inputs, each number up or down at random, in several draws. Equal numbers get
the same direction, so that a maximum pooling chooses as before. One run would not be enough: among many
tensors the error of a single number, such as the gradient of one channel's bias, may be small by luck.

The exact value of some gradients is zero (a bias before a norm). Both implementations then show rounding
noise of a random size. If a tensor's scale is below one float32 eps of the largest scale of its rung in
the network, that largest scale takes its place.

The multiples are calibrated from recorded runs: `parity/README.md`, "The multiples".
"""

from dataclasses import dataclass

import numpy as np

EPS = {"float32": float(np.finfo(np.float32).eps), "float64": float(np.finfo(np.float64).eps)}


@dataclass(frozen=True)
class Rule:
    """The constants of the rule.

    multiple:         M, factor of the reference's own error.
    last_places:      K in float32, in eps of the tensor's scale. gate_last_places: K in float64.
    """

    multiple: float
    last_places: float
    gate_last_places: float


RULE = Rule(multiple=16.0, last_places=32.0, gate_last_places=1024.0)


@dataclass(frozen=True)
class Judgement:
    """The distance of a tensor from the reference's.

    ratio:   error divided by the allowed error, the larger one of the two norms; above 1 diverges.
    error:   relative RMS error against float64. own: that of the reference itself.
    ulps:    median, 99th percentile and largest distance from the reference in the same precision, in
             units in the last place.
    cosine:  of the two tensors as vectors; 1.0 if both are zero.
    problem: text about a difference that cannot be measured, or "".
    """

    ratio: float
    error: float = 0.0
    own: float = 0.0
    ulps: tuple = (0.0, 0.0, 0.0)
    cosine: float = 1.0
    problem: str = ""


def norms(values):
    """Return the root mean square and the largest magnitude of an array: (2,); zeros if it is empty."""
    if values.size == 0:
        return np.zeros(2)
    largest = np.abs(values).max()
    if largest == 0:
        return np.zeros(2)
    scaled = (values / largest).ravel()  # without this, squares of tiny gradients would underflow
    return np.array([largest * np.sqrt(np.dot(scaled, scaled) / values.size), largest])


def distance(truth, run):
    """Return both norms of the difference between a run and the truth, over the places where both are finite."""
    return norms(_finite(run, truth) - _finite(truth, run))


def _finite(values, other):
    """Return the values at the places where both arrays are finite: float64 (n,)."""
    both = np.isfinite(values) & np.isfinite(other)
    values = np.asarray(values, np.float64)
    # Picking by a mask takes longer than everything else that is done with the values.
    return values.ravel() if both.all() else values[both]


def allowance(truth, own, precision, rung_scale=0.0):
    """Compute the error that the rule allows, for both norms.

    truth:      float64 array.
    own:        "float32" and "float64" -> error of the reference itself, two norms: the largest `distance`
                over its runs.
    precision:  of the run that is judged.
    rung_scale: largest RMS among the tensors of the same rung in the network, 0 if it does not count.
    Returns (allowed, own), two norms each.
    """
    scale = norms(_finite(truth, truth))
    eps = EPS[precision]
    amount = own["float32"]
    if precision == "float64":
        amount = np.maximum(amount * (EPS["float64"] / EPS["float32"]), own["float64"])
    if scale[0] <= EPS["float32"] * rung_scale:  # the tensor cancels to nothing
        scale = np.full(2, rung_scale)
    places = RULE.last_places if precision == "float32" else RULE.gate_last_places
    allowed = RULE.multiple * amount + places * eps * scale  # M * own + K * eps * scale
    return allowed, amount


def judge(candidate, reference, truth, own, precision, rung_scale=0.0, detail=True):
    """Judge a floating-point tensor of a candidate: return its `Judgement`.

    candidate: its array. reference: array of the reference's plain run in the same precision.
    truth, own, precision, rung_scale: see `allowance`.
    detail:    measure ulps and cosine too; the ratio does not depend on them.
    """
    if not np.array_equal(np.isnan(candidate), np.isnan(reference)):
        return Judgement(np.inf, problem="NaN at other places")
    if not np.array_equal(_infinities(candidate), _infinities(reference)):
        return Judgement(np.inf, problem="infinite at other places")
    allowed, amount = allowance(truth, own, precision, rung_scale)
    error = distance(truth, candidate)
    ratio = float(max(_share(e, a) for e, a in zip(error, allowed)))
    size = norms(_finite(truth, truth))[0] or 1.0
    relative_error = error[0] / size
    relative_own = amount[0] / size
    if not detail:
        return Judgement(ratio, relative_error, relative_own)
    first = _finite(candidate, reference)
    second = _finite(reference, candidate)
    ulps = ulp_quantiles(first, second, precision)
    return Judgement(ratio, relative_error, relative_own, ulps, cosine(first, second))


def _share(error, allowed):
    if error == 0:
        return 0.0
    return error / allowed if allowed > 0 else np.inf


def _infinities(values):
    """Return 1 and -1 where a value is infinite, otherwise 0."""
    return np.where(np.isinf(values), np.sign(values), 0)


def ulp_quantiles(first, second, precision):
    """Return the median, the 99th percentile and the maximum of the distance, in ulps of `second`."""
    if first.size == 0:
        return (0.0, 0.0, 0.0)
    kind = np.dtype(precision).type
    # Smaller numbers count as this one: their spacing is subnormal, and importing Jittor makes subnormals 0.
    smallest = np.finfo(kind).tiny / np.finfo(kind).eps
    spacing = np.spacing(np.maximum(np.abs(second.astype(kind)), smallest)).astype(np.float64)
    with np.errstate(over="ignore"):
        ulps = np.minimum(np.abs(first - second) / spacing, np.finfo(np.float32).max)
    places = [int(share * (ulps.size - 1)) for share in (0.5, 0.99, 1.0)]
    return tuple(float(value) for value in np.partition(ulps.ravel(), places)[places])


def cosine(first, second):
    """Return the cosine of the angle between two arrays as vectors: 1 if both are zero, 0 if only one is."""
    first_largest = np.abs(first).max(initial=0.0)
    second_largest = np.abs(second).max(initial=0.0)
    if min(first_largest, second_largest) == 0:
        return float(max(first_largest, second_largest) == 0)
    # scaled first, so that squares of tiny numbers do not underflow
    a = (first / first_largest).ravel()
    b = (second / second_largest).ravel()
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def judge_exact(candidate, reference):
    """Judge a tensor that has to agree to the bit."""
    if candidate.tobytes() == reference.tobytes():
        return Judgement(0.0)
    return Judgement(np.inf, problem="not equal to the bit")


def judge_mask(candidate, reference, probability, allowed, threshold):
    """Judge a mask. It may differ only where rounding can move the probability across the threshold.

    candidate, reference: masks. probability: the reference's in float64.
    allowed: largest error of a probability that the rule allows (`allowance`).
    """
    margin = np.abs(np.float64(probability) - threshold)[candidate != reference]  # one value per differing pixel
    if margin.size == 0:
        return Judgement(0.0)
    ratio = _share(margin.max(), allowed)
    problem = "pixels differ far from the threshold" if ratio > 1 else ""
    return Judgement(ratio, error=margin.size / candidate.size, problem=problem)
