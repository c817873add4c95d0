"""Every limit of the harness, with its reason. No other module and no test holds a tolerance."""

import dataclasses
import math
from typing import Any

UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8}
_FEWEST = 24
"""Of fewer numbers a ratio of norms is no longer normally distributed: they get the allowance of so many."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tolerance:
    """One row of the table.

    Attributes:
        limit: Largest relative L2 error, or for ratios the factor on the reference's own distance to float64.
        peak: Largest difference over largest value; the same number as the limit when None. Ratios have none.
        floor: For ratios: errors below this always pass.
        ratio: The limit is a factor on the reference's own error, so it says nothing without one.
        peak_ratio: For ratios: factor on the reference's own largest deviation.
        largest_own: For ratios: a reference that is off by more than this decides nothing.
        scale: What differences are related to in place of the reference's own size, for quantities that have a size by
            nature and may be near zero.
        spread: For ratios: so many standard deviations of a ratio of two norms over as many numbers as were compared,
            but at least 24.
        looks: For ratios: on so many other inputs one is measured that exceeds its limit, and the limit then holds for
            the norms over all inputs, the first among them.
        reason: Where the number comes from.
    """

    limit: float
    peak: float | None = None
    floor: float = 0.0
    ratio: bool = False
    peak_ratio: float = 0.0
    largest_own: float = 0.0
    scale: float | None = None
    spread: float = 0.0
    looks: int = 0
    reason: str

    @property
    def largest_peak(self) -> float:
        """The bound on single elements."""
        return self.limit if self.peak is None else self.peak

    def bound(self, reference_error: float | None = None, count: int | None = None) -> float:
        """The largest error that passes.

        Args:
            reference_error: The reference's own error, where the row is a ratio.
            count: Over how many numbers both errors were taken; as good as infinitely many when None. A norm over n
                rounding errors is off from its expectation by a share of 1 / √(2n), a ratio of two by 1 / √n. That
                holds for many numbers; fewer than 24 are judged as 24 are.
        """
        if reference_error is None:
            return self.limit
        chance = 0.0 if count is None else self.spread / math.sqrt(max(count, _FEWEST))
        return max(self.limit * (1 + chance) * reference_error, self.floor)


def _rounding_floor(precision: str, roundings: int) -> float:
    # Rounding to nearest moves a number by at most u of itself, and an array by at most u of its norm.
    return roundings * UNIT_ROUNDOFF[precision]


TABLE: dict[str, Tolerance] = {
    "exact": Tolerance(
        limit=0.0,
        reason="Weights and exported constants are copied, not computed: every bit is kept.",
    ),
    "float64": Tolerance(
        limit=1e-12,
        reason="Sums of up to 1e4 terms that round at 1.1e-16 differ by about 1e-14 when summed in another order; two "
        "decimal digits are left for depth. The smallest semantic fault of the catalogue (an epsilon of 1e-6 in the "
        "attention's denominator) moves the output by 2e-12 to 2e-9, its own layer by more.",
    ),
    "correlation": Tolerance(
        limit=1e-12,
        scale=1.0,
        reason="Pearson correlations of two float64 runs, as a difference and not as a share: predictions p that move "
        "by a share e of their norm move r = cos(y - mean y, p - mean p) by at most e |p| / |p - mean p|, whatever r "
        "is, so the size of r is 1 and one near zero has no size of its own. Limit as float64, which e has to keep "
        "as well: predictions that vary by a thirtieth of themselves, as after few steps, amplify e by thirty.",
    ),
    "float32": Tolerance(
        limit=2.0,
        ratio=True,
        peak_ratio=16.0,
        largest_own=1e-2,
        spread=3.0,
        looks=16,
        floor=_rounding_floor("float32", 2),
        reason="Distance to the float64 result, at most twice the reference's own: two correct summation orders differ "
        "by a random walk each. Floor: rounding the input once and the exact result once. Peak: the worst of up to 1e6 "
        "elements is five standard deviations out and that of two draws differs by less than a factor of 16. A "
        "reference off by 1 % decides nothing. Spread: of two dozen numbers the ratio of two correct draws is off by a "
        "fifth already; three such deviations are allowed, which of 10,000 numbers are 3 % and of 24 are 61 %. Fewer "
        "than 24 get no more: the normal theory that this rests on does not hold there. Looks: where one rounding "
        "decides the errors of all numbers, the ratio of two correct draws is beyond 2 in 30 of 100 cases; that of two "
        "norms over 17 draws in 3 of 1000. A port that rounds worse than the limit is beyond it on all.",
    ),
    "bfloat16": Tolerance(
        limit=1.5,
        ratio=True,
        peak_ratio=16.0,
        largest_own=0.25,
        spread=3.0,
        looks=16,
        floor=_rounding_floor("bfloat16", 1),
        reason="As float32; rounding to 8 bits dominates the order of summation, so the two come closer. The spread "
        "between the reference's eager and graph execution counts as its own. Floor: rounding the exact result "
        "once; a second rounding inside a layer, as of a norm computed in bfloat16, is a fault. Peak as for float32; "
        "a reference off by a quarter decides nothing. Spread: as for float32, three deviations of the ratio, 3 % of "
        "10,000 numbers and at most the 61 % of 24. Looks: as for float32; where one rounding decides all, 37 of 100 "
        "become 5 of 100, where three do, 2 of 1000.",
    ),
    "gradient": Tolerance(
        limit=1e-10,
        reason="Against a recording: a backward pass sums as a forward pass does, over all positions at once, and "
        "passes through every layer twice; the recording was made by another version of TensorFlow. Two digits more "
        "than float64.",
    ),
    "gradient_live": Tolerance(
        limit=1e-11,
        reason="As gradient, on one machine and with one version: one digit more than float64.",
    ),
    "gradient_float32": Tolerance(
        limit=4.0,
        ratio=True,
        peak_ratio=16.0,
        largest_own=1e-2,
        floor=32 * UNIT_ROUNDOFF["float32"],
        looks=16,
        reason="As float32, but a gradient comes through one long chain, so few roundings move all elements of a small "
        "tensor together: the ratio of two single draws, not of two norms over many. Floor: some sixty layers there "
        "and back round once each, a random walk of sqrt(120) = 11 roundings, three standard deviations wide; a "
        "reference that came closer by luck, as a bias of one element may, is no measure. Looks: as float32, on other "
        "batches; a ReLU or a maximum that one rounding sends the other way moves whole gradients at once, on either "
        "side, so what fails on few batches is held against references that are moved (`second_look`), by this limit.",
    ),
    "gradient_bfloat16": Tolerance(
        limit=2.0,
        ratio=True,
        peak_ratio=16.0,
        largest_own=0.5,
        floor=_rounding_floor("bfloat16", 2),
        reason="All gradients of a training step as one array. Rounding to 8 bits in every layer, there and back, "
        "moves them by 5 to 20 % of the norm on either side, so single parameters decide nothing; but the norm of that "
        "error over all of them is a stable number, and two that round as often differ by less than a factor of 2. A "
        "wrong backward pass is off by the norm itself, five times as far. Floor: rounding the input and the exact "
        "result once each. A reference off by half the norm decides nothing.",
    ),
    "zero_gradient": Tolerance(
        limit=1e-12,
        peak=1e-10,
        reason="Gradients that are zero in exact arithmetic, in units of the root mean square of all gradients: sums "
        "of up to 1e4 terms of both signs leave 1e-14 of the terms' size, and single terms exceed the mean.",
    ),
    "optimizer": Tolerance(
        limit=1e-10,
        reason="Weights and moments after optimizer steps: the arithmetic is elementwise and rounds a dozen times, but "
        "gradients that went in are as accurate as the row gradient says.",
    ),
    "optimizer_update": Tolerance(
        limit=1e-11,
        peak=1e-10,
        reason="How far given gradients moved the weights: the weight itself rounds at 1.1e-16 of its size in each of "
        "five steps, and a step of 1e-6 of that size, the smallest here, shows 1e-10 of itself at single elements and "
        "less in the norm.",
    ),
    "state": Tolerance(
        limit=1e-10,
        reason="Statistics and losses of whole training steps: as accurate as the weights, see optimizer.",
    ),
    "recorded_rate": Tolerance(
        limit=1e-14,
        reason="Python floats on both sides, formulas written in another order of operations.",
    ),
    "float32_metric": Tolerance(
        limit=1e-4,
        reason="Correlations from sums kept in float32, as the original keeps them: a sum of n terms rounds at sqrt(n) "
        "* 6e-8, and the differences of squares of the formula amplify that by the ratio of second moment and "
        "variance, which is up to 30 here.",
    ),
    "trajectory_float64": Tolerance(
        limit=2.0,
        ratio=True,
        peak_ratio=16.0,
        largest_own=1e-6,
        floor=2.0**-50,
        looks=16,
        reason="The reference's own divergence from itself when every weight is moved by one unit in the last place "
        "before every step, the farthest of three runs. Port and reference each round on their own, the perturbed "
        "reference only moves: sqrt(2) of its divergence, and as much again for the spread between draws. Floor: eight "
        "roundings. Looks: where one rounding that a ReLU or a maximum turns decides, a sound port may be beyond that "
        "by chance, as for float32; so on runs of other batches, and what fails on few of them is held against 16 "
        "references that are moved (`second_look`), by the same limits.",
    ),
    "trajectory_float32": Tolerance(
        limit=2.0,
        ratio=True,
        peak_ratio=16.0,
        largest_own=0.1,
        floor=2.0**-21,
        looks=16,
        reason="As trajectory_float64; a reference that diverges from itself by a tenth decides nothing.",
    ),
    "bfloat16_other_processor": Tolerance(
        limit=8.0,
        ratio=True,
        peak_ratio=16.0,
        largest_own=0.25,
        floor=_rounding_floor("bfloat16", 1),
        reason="The living reference in bfloat16 on a processor without bfloat16 arithmetic, against a recording made "
        "with it: TensorFlow then rounds partial sums to 8 bits that the other kept in 32. Over the 64 positions of "
        "the recorded windows that is a random walk of sqrt(64) roundings in place of one. The port is not judged by "
        "this row.",
    ),
    "bfloat16_flips": Tolerance(
        limit=0.01,
        reason="Share of elements that differ in the last bit where two versions of TensorFlow round at the same "
        "places: another order of sums in a convolution flips single ones, a misplaced rounding a third of them.",
    ),
    "copy_float64": Tolerance(
        limit=1e-12,
        reason="A model and its copy in the same precision are one program run twice; see float64.",
    ),
    "copy_float32": Tolerance(
        limit=1e-5,
        reason="A model and its copy in the same precision are one program run twice; threads may sum in another "
        "order.",
    ),
    "copy_bfloat16": Tolerance(
        limit=0.1,
        peak=0.2,
        reason="As copy_float32; eager and graph execution of one model differ by 2e-2 of the maximum in bfloat16.",
    ),
    "float32_only": Tolerance(
        limit=2e-6,
        reason="A reference that cannot be lifted to float64 proves a layer only to its own rounding: a sum of 1000 "
        "terms in random order, sqrt(1000) * 6e-8. Fed with the reference's own inputs; faults smaller than this stay "
        "invisible.",
    ),
    "float32_only_accumulated": Tolerance(
        limit=1e-4,
        reason="As float32_only, through a whole network: fifty such layers in a row, each passing the last one's "
        "error on.",
    ),
    "own_projection": Tolerance(
        limit=1e-5,
        peak=4e-5,
        reason="Projection matrix from our own Philox and a float64 QR: the original's float32 QR amplifies rounding "
        "by the condition of the Gaussian draw. Measured on the recorded matrices: up to 1.5e-5 of the largest entry.",
    ),
    "own_rotary_table": Tolerance(
        limit=5e-4,
        peak=2.0**-7,
        reason="Rotary table from correctly rounded powers: TensorFlow's own float32 pow, sin and cos put up to 0.5 % "
        "of the entries (2268 of 524416 in TensorFlow 2.21) one bfloat16 ulp (2^-8 relative, 2^-8 of 1 at most) aside: "
        "sqrt(0.005) * 2^-8 = 3e-4.",
    ),
    "own_constants": Tolerance(
        limit=1e-5,
        peak=4e-5,
        reason="The output with constants of our own making: the specification measured 1.5e-8 (projection matrix) and "
        "3e-6 to 5e-6 (rotary table) relative on four layers of 4,096 positions.",
    ),
    "rounded_constant": Tolerance(
        limit=5e-9,
        reason="TensorFlow keeps the constants of both GELUs at float32 precision in float64. The port does the same; "
        "this bounds what the exact constants, off by up to 3.5e-8, would change in the output.",
    ),
    "rounded_update_rate": Tolerance(
        limit=1.5e-8,
        reason="TensorFlow keeps the BatchNorm update rate at float32 precision in float64. The port does the same; "
        "the exact 0.1 differs by a relative 1.49e-8, and no statistic can move by a larger share of itself than the "
        "rate does. Ports of other people's models, which know nothing of this, are held to it.",
    ),
    "convergence": Tolerance(
        limit=1.0,
        reason="The 90 % confidence interval of the mean paired difference, in units of the reference's own standard "
        "deviation from seed to seed: a port that is nearer to the reference than the reference's runs are to each "
        "other is one more seed.",
    ),
    "convergence_power": Tolerance(
        limit=0.1,
        reason="Probability that a port without any difference fails the equivalence test, one minus its power: the "
        "power of 0.9 that the gate promises.",
    ),
    "convergence_learned": Tolerance(
        limit=0.5,
        reason="Share of the reference's mean change from the first to the last validation that a run may lack: two "
        "models that have not learned are equivalent too, and half of the way is far outside the spread of either.",
    ),
    "fault_effect": Tolerance(
        limit=2.0**-50,
        reason="Relative change of what a port computes in float64 that a seeded fault must exceed to be one: eight "
        "roundings. A sound port run twice gives the same bits, and one that only sums in another order moves by less.",
    ),
    "fault_location": Tolerance(
        limit=0.95,
        reason="Share of the seeded faults that must turn the right rung red first, and of which the layer named first "
        "must be the broken one: promised by the gate of the attack, a floor and no target.",
    ),
}


def table() -> dict[str, dict[str, Any]]:
    """The table as plain data, for reports."""
    return {name: dataclasses.asdict(row) for name, row in TABLE.items()}
