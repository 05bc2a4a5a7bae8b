from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bounds import tango_bounds
from edgekit.devices import PRECISIONS
from edgekit.gate import (
    DataLimits,
    Limits,
    Policy,
    PrecisionLimits,
    TaskLimits,
    compare_ranges,
    judge,
    load_limits,
    lost_classes,
    measure_metric,
)
from edgekit.manifest import CalibrationFit, GateResult, MetricEvidence, ParityEvidence
from edgekit.metrics import METRICS

LIMITS = load_limits()
GOOD = ParityEvidence(
    n=256, max_error=1e-5, p95_error=1e-6, argmax_agreement=1.0, batch2_error=0.0, batch2_p95=0.0
)
SAME = MetricEvidence("top1", n=1000, source=0.98, artifact=0.98, drop_pp=0.0, low_pp=-0.27, bound_pp=0.27)


def parity(**changes: Any) -> ParityEvidence:
    return msgspec.structs.replace(GOOD, **changes)


def metric(**changes: Any) -> MetricEvidence:
    return msgspec.structs.replace(SAME, **changes)


def verdict(precision: str = "fp32", policy: Policy | None = None, **evidence: Any) -> GateResult:
    return judge(
        precision,
        policy or Policy(),
        LIMITS,
        parity=evidence.get("parity", GOOD),
        metric=evidence.get("metric", SAME),
        calibration_fit=evidence.get("fit", ()),
        noise=evidence.get("noise", False),
        lost=evidence.get("lost", ()),
    )


# The limits


def test_the_limits_are_those_that_the_documentation_states() -> None:
    assert (
        Limits(
            precision={
                "fp32": PrecisionLimits(batch2_error=1e-4, max_error=1e-4),
                "fp16": PrecisionLimits(batch2_error=5e-3, max_error=5e-3),
                "int8-dynamic": PrecisionLimits(batch2_p95=0.05, p95_error=0.05, argmax_agreement=0.97),
                "int8": PrecisionLimits(batch2_p95=0.05, p95_error=0.05, argmax_agreement=0.97),
                "int16x8": PrecisionLimits(batch2_p95=0.01, p95_error=0.01, argmax_agreement=0.99),
            },
            data=DataLimits(
                parity_samples=32,
                parity_most=256,
                calibration_shift=0.25,
                float16_most=65504.0,
                lost_class_answers=3,
                lost_class_score=0.3,
                bootstrap_samples=100,
            ),
            task={
                "detection": {
                    "int8-dynamic": TaskLimits(active_error=0.1, batch2_error=0.05),
                    "int8": TaskLimits(active_error=0.1, batch2_error=0.05),
                    "int16x8": TaskLimits(active_error=0.02, batch2_error=0.01),
                },
                "embedding": {
                    "int8-dynamic": TaskLimits(p95_error=0.08, cosine=0.97),
                    "int8": TaskLimits(p95_error=0.08, cosine=0.97),
                    "int16x8": TaskLimits(cosine=0.999),
                    "fp16": TaskLimits(cosine=0.999),
                },
                "generation": {
                    "int8-dynamic": TaskLimits(snr_db=20.0),
                    "int8": TaskLimits(snr_db=20.0),
                    "int16x8": TaskLimits(snr_db=35.0),
                    "fp16": TaskLimits(snr_db=40.0),
                },
            },
        )
        == LIMITS
    )
    assert set(LIMITS.precision) == set(PRECISIONS)
    assert load_limits() is LIMITS


def test_the_default_policy_is_one_point_and_not_strict() -> None:
    assert Policy() == Policy(max_drop_pp=1.0, min_metric=None, strict=False)


# The metric, measured


def classified(classes: list[int]) -> dict[str, np.ndarray]:
    return {"scores": np.eye(10, dtype=np.float32)[classes]}


def test_top1_counts_lost_and_gained_pairs() -> None:
    labels = np.array([0, 1, 2, 3] * 50)
    source = [*labels[:190].tolist(), *[9] * 10]  # ten wrong
    artifact = list(source)
    artifact[0] = artifact[1] = artifact[2] = 8  # three lost
    artifact[195] = int(labels[195])  # one gained
    seen = measure_metric(METRICS["top1"], classified(source), classified(artifact), labels, max_drop_pp=1.0)
    low, high = tango_bounds(3, 1, 200)
    assert (seen.name, seen.n, seen.source, seen.artifact) == ("top1", 200, 0.95, 0.94)
    assert seen.drop_pp == 1.0
    assert (seen.low_pp, seen.bound_pp) == (100.0 * low, 100.0 * high)
    assert seen.needed_n == 0  # a drop of exactly the budget stays undecided at any size


def test_a_sample_that_decides_needs_no_more() -> None:
    labels = np.arange(10).repeat(100)
    same = classified(labels.tolist())
    assert measure_metric(METRICS["top1"], same, same, labels, max_drop_pp=1.0).needed_n is None


def test_needed_n_is_the_least_that_accepts_when_no_pair_differs() -> None:
    """z²/(n + z²) ≤ 1 % from n = 99 z² = 267.8 on."""
    labels = np.arange(10).repeat(4)
    same = classified(labels.tolist())
    seen = measure_metric(METRICS["top1"], same, same, labels, max_drop_pp=1.0)
    assert (seen.n, seen.drop_pp, seen.needed_n) == (40, 0.0, 268)
    assert measure_metric(METRICS["top1"], same, same, labels, max_drop_pp=0.5).needed_n == 539
    enough = np.arange(268) % 10
    whole = classified(enough.tolist())
    assert measure_metric(METRICS["top1"], whole, whole, enough, max_drop_pp=1.0).needed_n is None


def test_needed_n_to_refuse_counts_too() -> None:
    labels = np.zeros(40, np.int64)
    lost = classified([1] + [0] * 39)  # 2.5 pp, but not above zero at 95 %
    seen = measure_metric(METRICS["top1"], classified([0] * 40), lost, labels, max_drop_pp=1.0)
    assert seen.low_pp <= 0.0
    assert seen.needed_n is not None
    low, _ = tango_bounds(0.025 * seen.needed_n, 0, seen.needed_n)
    below, _ = tango_bounds(0.025 * (seen.needed_n - 1), 0, seen.needed_n - 1)
    assert below <= 0.0 < low


def test_top5_is_paired_too() -> None:
    labels = np.zeros(100, np.int64)
    right = classified([0] * 100)
    wrong = {"scores": np.tile(np.arange(10.0), (100, 1))}
    seen = measure_metric(METRICS["top5"], right, wrong, labels, max_drop_pp=1.0)
    assert (seen.drop_pp, seen.source, seen.artifact) == (100.0, 1.0, 0.0)
    assert seen.bound_pp == 100.0


REGRESSION = np.linspace(0.0, 50.0, 200)


def test_a_regression_error_drops_in_percent_of_the_label_range() -> None:
    source = {"y": REGRESSION[:, None] + 0.5}
    worse = {"y": REGRESSION[:, None] + 1.0}
    seen = measure_metric(METRICS["mae"], source, worse, REGRESSION, max_drop_pp=2.0)
    assert (seen.name, seen.n) == ("mae", 200)
    assert (seen.source, seen.artifact) == pytest.approx((0.5, 1.0))
    assert seen.drop_pp == pytest.approx(1.0)  # 0.5 of 50
    assert (seen.low_pp, seen.bound_pp) == pytest.approx((1.0, 1.0))
    assert seen.needed_n is None


def test_a_better_regression_is_a_negative_drop() -> None:
    source, better = {"y": REGRESSION[:, None] + 1.0}, {"y": REGRESSION[:, None] + 0.5}
    assert measure_metric(
        METRICS["mae"], source, better, REGRESSION, max_drop_pp=1.0
    ).drop_pp == pytest.approx(-1.0)
    assert measure_metric(METRICS["r2"], source, better, REGRESSION, max_drop_pp=1.0).drop_pp < 0.0
    assert measure_metric(METRICS["r2"], better, source, REGRESSION, max_drop_pp=1.0).drop_pp > 0.0


def test_constant_targets_measure_an_error_in_their_own_unit() -> None:
    flat = np.full(120, 3.0)
    seen = measure_metric(METRICS["mae"], {"y": flat}, {"y": flat + 0.02}, flat, max_drop_pp=1.0)
    assert seen.drop_pp == pytest.approx(2.0)


def test_macro_f1_is_bootstrapped_around_the_drop() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 300)
    artifact = np.where(random.random(300) < 0.1, (labels + 1) % 4, labels)
    arguments = (METRICS["macro_f1"], classified(labels.tolist()), classified(artifact.tolist()), labels)
    seen = measure_metric(*arguments, max_drop_pp=1.0)
    assert seen.low_pp < seen.drop_pp < seen.bound_pp
    assert seen.drop_pp == pytest.approx(100.0 * (seen.source - seen.artifact))
    assert 4.0 < seen.bound_pp - seen.low_pp < 8.0  # 2 × 1.64 × √(0.1 × 0.9 / 300) is 5.7 pp
    assert measure_metric(*arguments, max_drop_pp=1.0, seed=0) == seen
    assert measure_metric(*arguments, max_drop_pp=1.0, seed=1).bound_pp != seen.bound_pp


def noisy_regression(n: int, bias: float) -> MetricEvidence:
    random = np.random.default_rng(5)
    labels = np.linspace(0.0, 1.0, n)
    source = {"y": labels + 0.1}
    artifact = {"y": labels + 0.1 + bias + 0.02 * random.standard_normal(n)}
    return measure_metric(METRICS["mae"], source, artifact, labels, max_drop_pp=1.0)


def test_needed_n_of_a_bootstrap_narrows_by_the_root() -> None:
    inside = noisy_regression(50, 0.014)
    assert inside.drop_pp < 1.0 < inside.bound_pp
    room, width = 1.0 - inside.drop_pp, inside.bound_pp - inside.drop_pp
    assert inside.needed_n == max(100, int(50 * (width / room) ** 2) + 1)


def test_needed_n_of_a_bootstrap_is_at_least_the_fewest() -> None:
    labels = np.linspace(0.0, 1.0, 50)
    same = {"y": labels}
    assert measure_metric(METRICS["mae"], same, same, labels, max_drop_pp=1.0).needed_n == 100
    labels = np.linspace(0.0, 1.0, 100)
    assert (
        measure_metric(METRICS["mae"], {"y": labels}, {"y": labels}, labels, max_drop_pp=1.0).needed_n is None
    )


def test_needed_n_of_a_bootstrap_beyond_the_budget_is_what_would_refuse() -> None:
    random = np.random.default_rng(2)
    labels = np.linspace(0.0, 1.0, 40)
    artifact = {"y": labels + np.where(random.random(40) < 0.5, 0.5, 0.0)}
    source = {"y": labels + np.where(random.random(40) < 0.4, 0.5, 0.0)}
    seen = measure_metric(METRICS["mae"], source, artifact, labels, max_drop_pp=1.0)
    assert seen.low_pp <= 0.0
    assert seen.drop_pp > 1.0
    assert seen.needed_n == int(40 * ((seen.drop_pp - seen.low_pp) / seen.drop_pp) ** 2) + 1
    real = noisy_regression(400, 0.05)
    assert real.low_pp > 0.0
    assert real.needed_n is None


def test_a_drop_of_exactly_the_budget_is_never_decided_by_a_bootstrap() -> None:
    labels = np.array([0.0, 1.0] * 60)
    artifact = {"y": labels + np.array([0.0, 0.0, 0.0, 0.5] * 30)}
    seen = measure_metric(METRICS["mae"], {"y": labels}, artifact, labels, max_drop_pp=12.5)
    assert (seen.drop_pp, seen.needed_n) == (12.5, 0)


def test_a_sample_beyond_reach_is_none() -> None:
    labels = np.array([0.0, 1.0] * 60)
    artifact = {"y": labels + np.array([0.0, 0.0, 0.0, 0.5] * 30)}
    seen = measure_metric(METRICS["mae"], {"y": labels}, artifact, labels, max_drop_pp=12.5 + 1e-9)
    assert seen.needed_n == 0


# Calibration ranges


def test_ranges_are_the_first_and_the_last_percentile() -> None:
    values = np.linspace(0.0, 100.0, 101, dtype=np.float64)[:, None]
    (fit,) = compare_ranges({"x": values}, {"x": 2.0 * values})
    assert fit.input == "x"
    assert fit.calibration == pytest.approx((1.0, 99.0))
    assert fit.evaluation == pytest.approx((2.0, 198.0))


def test_only_float_inputs_that_both_have_are_compared() -> None:
    floats, ids = np.ones((3, 1), np.float32), np.ones((3, 1), np.int64)
    found = compare_ranges({"a": floats, "ids": ids, "c": floats}, {"a": floats, "ids": ids})
    assert [fit.input for fit in found] == ["a"]


def fit(calibration: tuple[float, float], evaluation: tuple[float, float]) -> tuple[CalibrationFit, ...]:
    return (CalibrationFit("image", calibration, evaluation),)


@pytest.mark.parametrize(
    ("calibration", "evaluation", "verdict_"),
    [
        ((0.0, 1.0), (0.0, 1.0), "accepted"),
        ((0.0, 255.0), (0.0, 1.0), "refused"),
        ((0.0, 1.0), (0.0, 255.0), "refused"),
        ((-1.0, 1.0), (0.0, 1.0), "refused"),
        ((0.0, 0.75), (0.0, 1.0), "accepted"),  # a quarter of the wider, exactly
        ((0.0, 0.74), (0.0, 1.0), "refused"),
        ((0.26, 1.0), (0.0, 1.0), "refused"),
        ((0.25, 1.0), (0.0, 1.0), "accepted"),
        ((0.0, 1.0), (0.0, 0.75), "accepted"),
        ((0.0, 1.0), (0.26, 1.0), "refused"),
        ((3.0, 3.0), (3.0, 3.0), "accepted"),
        ((3.0, 3.0), (4.0, 4.0), "refused"),
    ],
)
def test_calibration_must_span_what_evaluation_spans(
    calibration: tuple[float, float], evaluation: tuple[float, float], verdict_: str
) -> None:
    assert verdict("int8", fit=fit(calibration, evaluation)).verdict == verdict_


def test_the_reason_names_input_and_both_ranges() -> None:
    result = verdict("int8", fit=fit((0.0, 255.0), (0.0, 1.0)))
    assert result.reasons == (
        (
            "calibration does not fit the evaluation data: input 'image' spans [0, 255] in calibration and "
            "[0, 1] in evaluation; is one of them not scaled?"
        ),
    )
    assert result.calibration_fit == fit((0.0, 255.0), (0.0, 1.0))


# The verdict


def test_a_good_artifact_is_accepted_with_its_evidence() -> None:
    result = verdict("int8")
    assert result == GateResult(
        "accepted", ("top1 drops +0.00 pp, at most 0.27 pp at 95 % (n = 1000, budget 1)",), GOOD, SAME, ()
    )


LIMITED = {
    "fp32": {"max_error": 1e-4, "batch2_error": 1e-4},
    "fp16": {"max_error": 5e-3, "batch2_error": 5e-3},
    "int8-dynamic": {"p95_error": 0.05, "argmax_agreement": 0.97, "batch2_p95": 0.05},
    "int8": {"p95_error": 0.05, "argmax_agreement": 0.97, "batch2_p95": 0.05},
    "int16x8": {"p95_error": 0.01, "argmax_agreement": 0.99, "batch2_p95": 0.01},
}
NAMES = {
    "max_error": "largest error",
    "p95_error": "95th percentile of the error",
    "batch2_error": "error of a batch of two",
    "batch2_p95": "95th percentile of the error of a batch of two",
}


@pytest.mark.parametrize(("precision", "field"), [(p, f) for p, limits in LIMITED.items() for f in limits])
def test_each_limit_alone_exactly_and_just_beyond(precision: str, field: str) -> None:
    limit = LIMITED[precision][field]
    beyond = limit * (0.999 if field == "argmax_agreement" else 1.001)
    assert verdict(precision, parity=parity(**{field: limit})).verdict == "accepted"
    result = verdict(precision, parity=parity(**{field: beyond}))
    assert result.verdict == "refused"
    (reason,) = result.reasons
    if field == "argmax_agreement":
        assert reason == f"argmax agrees on {beyond:.1%} of samples, limit {limit:.0%}"
    else:
        assert reason == f"{NAMES[field]} is {beyond:.3g} of the output's range, limit {limit:g}"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_a_precision_does_not_limit_it_lets_pass(precision: str) -> None:
    anything = {
        "max_error": 0.9,
        "p95_error": 0.9,
        "argmax_agreement": 0.1,
        "batch2_error": 0.9,
        "batch2_p95": 0.9,
    }
    free = set(anything) - set(LIMITED[precision])
    assert verdict(precision, parity=parity(**{f: anything[f] for f in free})).verdict == "accepted"


@pytest.mark.parametrize(("precision", "field"), [(p, f) for p, limits in LIMITED.items() for f in limits])
def test_nan_is_beyond_every_limit(precision: str, field: str) -> None:
    assert verdict(precision, parity=parity(**{field: float("nan")})).verdict == "refused"


def test_what_was_not_measured_is_no_fault() -> None:
    assert (
        verdict("int8", parity=parity(argmax_agreement=None, batch2_error=None, batch2_p95=None)).verdict
        == "accepted"
    )


def test_faults_of_parity() -> None:
    assert verdict(parity=parity(finite=False, constant=True)).reasons == (
        "an output is not finite, or has not the source's shape",
    )
    assert verdict(parity=parity(constant=True)).reasons == (
        "an output is the same whatever goes in, while the source's varies",
    )
    assert verdict(parity=parity(n=31)).reasons == ("parity on 31 samples, at least 32 are needed",)
    assert verdict(parity=parity(n=32)).verdict == "accepted"
    for broken in (parity(finite=False), parity(constant=True), parity(n=31)):
        assert verdict(parity=broken).verdict == "refused"


def test_all_faults_are_told_in_order() -> None:
    result = verdict(
        "int8",
        Policy(min_metric=0.99),
        parity=parity(constant=True, n=5, p95_error=0.2, batch2_p95=0.3, argmax_agreement=0.1),
        fit=fit((0.0, 255.0), (0.0, 1.0)),
    )
    assert result.verdict == "refused"
    assert [reason.split()[0:2] for reason in result.reasons] == [
        ["an", "output"],
        ["parity", "on"],
        ["95th", "percentile"],
        ["95th", "percentile"],
        ["argmax", "agrees"],
        ["calibration", "does"],
        ["the", "source"],
    ]


@pytest.mark.parametrize(
    ("name", "source", "least", "verdict_"),
    [
        ("top1", 0.98, 0.98, "accepted"),
        ("top1", 0.979, 0.98, "refused"),
        ("top1", 0.99, 0.98, "accepted"),
        ("mae", 0.5, 0.5, "accepted"),
        ("mae", 0.51, 0.5, "refused"),
        ("mae", 0.4, 0.5, "accepted"),
        ("rmse", 0.51, 0.5, "refused"),
        ("rmse", 0.4, 0.5, "accepted"),
        ("r2", 0.4, 0.5, "refused"),
        ("macro_f1", 0.4, 0.5, "refused"),
    ],
)
def test_the_source_itself_must_reach_the_least_metric(
    name: str, source: float, least: float, verdict_: str
) -> None:
    result = verdict(policy=Policy(min_metric=least), metric=metric(name=name, source=source))
    assert result.verdict == verdict_
    if verdict_ == "refused":
        assert result.reasons == (f"the source itself has {name} {source:.4g}, --min-metric is {least:g}",)


def test_without_a_metric_there_is_no_least() -> None:
    assert verdict(policy=Policy(min_metric=0.99), metric=None).verdict == "accepted"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_without_a_metric_floats_rest_on_parity_and_integers_are_unproven(precision: str) -> None:
    result = verdict(precision, metric=None)
    if precision in ("fp32", "fp16"):
        assert (result.verdict, result.reasons) == ("accepted", ("parity holds; accuracy not measured",))
    else:
        assert result.verdict == "unproven"
        assert result.reasons == ("quantized and accuracy not measured: give --eval with labels",)


def test_the_bound_decides_at_exactly_the_budget() -> None:
    assert verdict("int8", metric=metric(bound_pp=1.0)).verdict == "accepted"
    assert verdict("int8", metric=metric(bound_pp=1.001)).verdict == "unproven"
    assert verdict("int8", Policy(max_drop_pp=2.0), metric=metric(bound_pp=2.0)).verdict == "accepted"
    assert verdict("int8", Policy(max_drop_pp=0.2), metric=metric(bound_pp=0.27)).verdict == "unproven"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_real_drop_is_refused_at_every_precision(precision: str) -> None:
    result = verdict(precision, metric=metric(drop_pp=2.5, low_pp=0.01, bound_pp=4.0))
    assert result.verdict == "refused"
    assert result.reasons == (
        "top1 drops +2.50 pp, at most 4.00 pp at 95 %; the drop is real (n = 1000, budget 1)",
    )


def test_a_drop_is_real_only_beyond_the_budget_and_above_zero() -> None:
    assert verdict("int8", metric=metric(drop_pp=2.5, low_pp=0.0, bound_pp=5.0)).verdict == "unproven"
    assert verdict("int8", metric=metric(drop_pp=1.0, low_pp=0.5, bound_pp=1.6)).verdict == "unproven"
    assert verdict("int8", metric=metric(drop_pp=1.001, low_pp=0.5, bound_pp=1.6)).verdict == "refused"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_float_artifact_with_parity_is_accepted_on_a_small_sample(precision: str) -> None:
    result = verdict(precision, metric=metric(n=40, bound_pp=6.3, needed_n=268))
    assert result.verdict == "accepted"
    assert result.reasons == ("parity holds; top1 drops +0.00 pp, at most 6.30 pp at 95 % (n = 40)",)


def test_unproven_says_how_many_would_decide() -> None:
    small = metric(n=40, bound_pp=6.3, needed_n=268)
    assert verdict("int8", metric=small).reasons == (
        (
            "top1 drops +0.00 pp, at most 6.30 pp at 95 %; 40 samples are too few for a budget of 1 pp, "
            "about 268 samples would decide"
        ),
    )
    never = metric(n=40, drop_pp=1.0, bound_pp=6.3, needed_n=0)
    assert verdict("int8", metric=never).reasons == (
        (
            "top1 drops +1.00 pp, at most 6.30 pp at 95 %; 40 samples are too few for a budget of 1 pp, "
            "no larger sample will help while the drop stays"
        ),
    )


def test_a_bootstrap_needs_its_fewest_samples_a_share_does_not() -> None:
    assert verdict("int8", metric=metric(name="macro_f1", n=99)).verdict == "unproven"
    assert verdict("int8", metric=metric(name="macro_f1", n=100)).verdict == "accepted"
    assert verdict("int8", metric=metric(name="top1", n=99)).verdict == "accepted"
    assert verdict("int8", metric=metric(name="top5", n=99)).verdict == "accepted"
    assert verdict("fp32", metric=metric(name="mae", n=99)).reasons[0].startswith("parity holds; ")


def test_strict_refuses_what_is_unproven_and_keeps_the_reason() -> None:
    strict = Policy(strict=True)
    result = verdict("int8", strict, metric=None)
    assert result.verdict == "refused"
    assert result.reasons == (
        "quantized and accuracy not measured: give --eval with labels",
        "--strict refuses what is unproven",
    )
    assert verdict("int8", strict).verdict == "accepted"
    assert verdict("int8", strict, parity=parity(n=1)).reasons == (
        "parity on 1 samples, at least 32 are needed",
    )


@given(
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(120, 2000),
    st.floats(0.0, 5.0),
    st.sampled_from(PRECISIONS),
)
def test_more_budget_never_makes_a_verdict_worse(
    lost: int, gained: int, n: int, budget: float, precision: str
) -> None:
    low, high = tango_bounds(lost, gained, n)
    seen = metric(
        n=n, drop_pp=100.0 * (lost - gained) / n, low_pp=100.0 * low, bound_pp=100.0 * high, needed_n=1
    )
    rank = {"refused": 0, "unproven": 1, "accepted": 2}
    tight = rank[verdict(precision, Policy(max_drop_pp=budget), metric=seen).verdict]
    loose = rank[verdict(precision, Policy(max_drop_pp=budget + 0.5), metric=seen).verdict]
    assert tight <= loose
    assert rank[verdict(precision, Policy(budget, strict=True), metric=seen).verdict] in (0, 2)


def test_needed_n_keeps_the_rate_of_gained_pairs() -> None:
    labels = np.zeros(100, np.int64)
    source, artifact = classified([9, 9, 9, *[0] * 97]), classified([0, 0, 0, 8, *[0] * 96])
    seen = measure_metric(METRICS["top1"], source, artifact, labels, max_drop_pp=1.0)
    assert seen.drop_pp == -2.0
    assert seen.needed_n is not None

    def bound(n: int) -> float:
        return 100.0 * tango_bounds(0.01 * n, 0.03 * n, n)[1]

    assert bound(seen.needed_n) <= 1.0 < bound(seen.needed_n - 1)


@pytest.mark.parametrize(
    ("peak", "expected"),
    [(None, "accepted"), (65504.0, "accepted"), (65505.0, "refused"), (np.inf, "refused")],
)
def test_a_value_that_half_precision_cannot_hold_is_refused(peak: float | None, expected: str) -> None:
    result = verdict("fp16", parity=parity(float_peak=peak))
    assert result.verdict == expected
    assert any("float16 ends at 65504" in reason for reason in result.reasons) == (expected == "refused")


def test_half_precision_on_random_inputs_only_is_unproven() -> None:
    seen = parity(float_peak=10.0)
    result = verdict("fp16", parity=seen, noise=True)
    assert result.verdict == "unproven"
    assert result.reasons == ("half precision was tried on random inputs only: give --calibration or --eval",)
    assert verdict("fp16", parity=seen).verdict == "accepted"
    assert verdict("fp16", parity=parity(), noise=True).verdict == "accepted"
    assert verdict("fp32", parity=seen, noise=True).verdict == "accepted"
    assert verdict("fp16", Policy(strict=True), parity=seen, noise=True).verdict == "refused"


def test_a_class_that_is_never_answered_any_more_is_refused() -> None:
    result = verdict("int8", lost=(2, 7))
    assert result.verdict == "refused"
    assert result.reasons == (
        "class 2 is never answered, though the source answers it",
        "class 7 is never answered, though the source answers it",
    )
    assert verdict("int8").verdict == "accepted"


def test_a_lost_class_is_one_that_the_source_answers_often_enough() -> None:
    source = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3])
    answers = np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3])
    assert lost_classes(source, answers, 3) == (1,)
    assert lost_classes(source, answers, 2) == (1, 2)
    assert lost_classes(source, source, 1) == ()
