"""The search finds the sites that need more bits, and the weights that can do with fewer, and its
recipe keeps what it promises.
"""

import dataclasses
import re

import numpy as np
import pytest

import tfquant
from tests.sensitivity import problems
from tfquant.resume import Results

WORST = {"branch_1": 300.0, "branch_4": 200.0}
RAISE = dict(formats="int16", target="fewest", measure="sqnr", progress=False)
LOWER = dict(target="smallest", sites="dense_*", measure="sqnr", progress=False)


@pytest.fixture(scope="module")
def outliers():
    """Two of six branches have an outlier each, so that 8 bits are not enough for them."""
    model, batches = problems.branches(WORST)
    return (
        model,
        batches,
        tfquant.quantize(model, problems.recipe(), calibration=batches, progress=False),
    )


@pytest.fixture(scope="module")
def weights():
    """Weights of 8 bits in layers one behind the other."""
    model, batches = problems.chain(3)
    return (
        model,
        batches,
        tfquant.quantize(
            model, problems.recipe("int8", ("weight",)), calibration=batches, progress=False
        ),
    )


def sqnr(model, quantized, batches) -> float:
    exact, found = (
        np.concatenate([np.asarray(m(b), np.float64) for b in batches]) for m in (model, quantized)
    )
    return 10 * np.log10(np.sum(exact**2) / np.sum((exact - found) ** 2))


def formats(model, recipe) -> dict[str, str]:
    return {site.address: site.spec.format for site in tfquant.plan(model, recipe).sites}


def test_exactly_the_two_sites_that_need_16_bits_get_them(outliers, tmp_path):
    model, batches, quantized = outliers
    assert sqnr(model, quantized, batches) < 25
    recipe, report = tfquant.mixed_precision(quantized, batches, max_loss=-35.0, **RAISE)
    expected = {
        problems.address(name): "int16" if name in WORST else "int8" for name in problems.NAMES
    }
    assert formats(model, recipe) == expected
    assert report.best.formats == {problems.address(name): "int16" for name in WORST}
    (tmp_path / "mixed.yaml").write_text(recipe.to_yaml())
    again = tfquant.quantize(
        model, str(tmp_path / "mixed.yaml"), calibration=batches, progress=False
    )
    assert sqnr(model, again, batches) == pytest.approx(report.best.value, rel=1e-6)
    assert sqnr(model, again, batches) >= 35.0
    # Each of the two alone is not enough.
    for name in WORST:
        one = quantized.recipe.with_rules(
            tfquant.Rule(tfquant.QuantSpec("int16"), "linear_input", path=name)
        )
        assert (
            sqnr(model, tfquant.quantize(model, one, calibration=batches, progress=False), batches)
            < 35.0
        )


def test_a_limit_that_is_met_already_changes_nothing(outliers):
    _, batches, quantized = outliers
    recipe, report = tfquant.mixed_precision(quantized, batches, max_loss=0.0, **RAISE)
    assert recipe == quantized.recipe and report.best.formats == {} and len(report.tries) == 1


def test_a_limit_out_of_reach_is_an_error_with_the_best_there_is(outliers):
    model, batches, quantized = outliers
    message = "max_loss=-300 cannot be met: the loss is .* at best, with all 6 at int16"
    with pytest.raises(tfquant.TargetError, match=message) as caught:
        tfquant.mixed_precision(quantized, batches, max_loss=-300.0, **RAISE)
    best = caught.value.report.best
    assert set(best.formats.values()) == {"int16"} and len(best.formats) == 6
    wide = tfquant.quantize(model, problems.recipe("int16"), calibration=batches, progress=False)
    assert best.value == pytest.approx(sqnr(model, wide, batches), rel=1e-3)


def all_choices(model, batches, recipe, names, limit):
    """Largest number of weights at 4 bits with an SQNR of at least `limit`, by trying all
    choices.
    """
    most = 0
    for choice in range(1 << len(names)):
        low = [name for i, name in enumerate(names) if choice >> i & 1]
        rule = tfquant.Rule(tfquant.QuantSpec("int4"), "weight", path=f"re:^({'|'.join(low)})$")
        made = recipe.with_rules(rule) if low else recipe
        if (
            sqnr(model, tfquant.quantize(model, made, calibration=batches, progress=False), batches)
            >= limit
        ):
            most = max(most, len(low))
    return most


def test_as_many_weights_as_possible_get_4_bits(weights):
    model, batches, quantized = weights
    names = [f"dense_{number}" for number in range(3)]
    rule = tfquant.Rule(tfquant.QuantSpec("int4"), "weight", path="dense_*")
    low = tfquant.quantize(
        model, quantized.recipe.with_rules(rule), calibration=batches, progress=False
    )
    limit = (sqnr(model, low, batches) + 3.0).round(1)
    recipe, report = tfquant.mixed_precision(
        quantized, batches, formats="int4", max_loss=-limit, **LOWER
    )
    assert 0 < len(report.best.formats) < 3
    assert len(report.best.formats) == all_choices(model, batches, quantized.recipe, names, limit)
    made = tfquant.quantize(model, recipe, calibration=batches, progress=False)
    assert (
        sqnr(model, made, batches) == pytest.approx(report.best.value, rel=1e-6)
        and report.best.value >= limit
    )
    lowered = len(report.best.formats)
    assert (
        report.best.bits
        == problems.WIDTH**2 * (4 * lowered + 8 * (3 - lowered)) + 8 * 3 * problems.WIDTH
    )
    order = [loss for _, loss in report.orders[0]]
    assert order == sorted(order)


def test_several_formats_are_gone_through_from_many_to_few_bits(weights):
    model, batches, quantized = weights
    _, one = tfquant.mixed_precision(quantized, batches, formats="int6", max_loss=-20.0, **LOWER)
    recipe, two = tfquant.mixed_precision(
        quantized, batches, formats=("int6", "int4"), max_loss=-20.0, **LOWER
    )
    assert two.best.bits <= one.best.bits and two.best.value >= 20.0
    assert (
        set(formats(model, recipe).values()) <= {"int8", "int6", "int4"}
        and "int4" in formats(model, recipe).values()
    )


def test_a_metric_decides_how_much_worse_it_may_get(outliers):
    model, batches, quantized = outliers
    exact = np.concatenate([np.asarray(model(b)) for b in batches])

    def agreement(outputs):
        return -float(np.abs(np.concatenate(outputs) - exact).max())

    recipe, report = tfquant.mixed_precision(
        quantized, batches, max_loss=0.3, **{**RAISE, "measure": agreement}
    )
    assert report.float_value == pytest.approx(0.0, abs=1e-5) and 0 < report.best.loss <= 0.3
    made = tfquant.quantize(model, recipe, calibration=batches, progress=False)
    assert np.abs(np.concatenate([made(b) for b in batches]) - exact).max() <= 0.3 + 1e-4


def test_a_run_that_was_cut_off_goes_on_also_with_another_limit(outliers, tmp_path, monkeypatch):
    _, batches, quantized = outliers
    whole = tfquant.mixed_precision(quantized, batches, max_loss=-35.0, **RAISE)
    put, measured = Results.put, []

    def dying(self, name, result):
        if len(measured) == 5:
            raise KeyboardInterrupt
        measured.append(name)
        put(self, name, result)

    monkeypatch.setattr(Results, "put", dying)
    with pytest.raises(KeyboardInterrupt):
        tfquant.mixed_precision(quantized, batches, max_loss=-35.0, folder=tmp_path, **RAISE)
    again = []
    monkeypatch.setattr(
        Results, "put", lambda self, *result: (again.append(result[0]), put(self, *result))
    )
    assert (
        tfquant.mixed_precision(quantized, batches, max_loss=-35.0, folder=tmp_path, **RAISE)
        == whole
    )
    assert again and not set(again) & set(measured)
    again.clear()
    recipe, _ = tfquant.mixed_precision(
        quantized, batches, max_loss=-35.1, folder=tmp_path, **RAISE
    )
    assert recipe == whole[0] and not again
    with pytest.raises(ValueError, match="holds another search for mixed precision: .*formats"):
        tfquant.mixed_precision(
            quantized, batches, max_loss=-35.0, folder=tmp_path, **{**RAISE, "formats": "int12"}
        )


def test_sites_with_one_range_get_one_format_and_shared_sites_stay_one():
    from tests.graph import models

    case = models.own_bert(1)
    recipe = dataclasses.replace(tfquant.recipe("int8_residual"), fuse=("matmul_input",)).with_spec(
        roles=["*"], format="int4"
    )
    quantized = tfquant.quantize(case.model, recipe, calibration=case.batches, progress=False)
    sites = ["matmul_input", "linear_input"]
    with pytest.raises(tfquant.TargetError) as caught:
        tfquant.mixed_precision(
            quantized, case.batches, sites=sites, max_loss=-200.0, method="max", **RAISE
        )
    raised = caught.value.report.best.formats
    groups = {site.address: site.group for site in quantized.plan.sites if site.group}
    assert len(groups) == 3 and groups.keys() <= raised.keys()
    limit = -caught.value.report.best.value + 0.5
    made, report = tfquant.mixed_precision(
        quantized, case.batches, sites=sites, max_loss=limit, method="max", **RAISE
    )
    plan = tfquant.plan(case.model, made)
    assert [site.address for site in plan.sites] == [site.address for site in quantized.plan.sites]
    assert [site.members for site in plan.sites] == [site.members for site in quantized.plan.sites]
    found = {site.address: site.spec for site in plan.sites}
    assert {a: found[a].format for a in report.best.formats} == report.best.formats
    assert all(found[a].method.name == "max" for a in report.best.formats)


def test_the_report_is_written_as_table_and_json(outliers):
    _, batches, quantized = outliers
    _, report = tfquant.mixed_precision(quantized, batches, max_loss=-35.0, **RAISE)
    assert tfquant.SearchReport.from_json(report.to_json()) == report
    assert "int16: branch_1:linear_input:input" in report.table()
    with pytest.raises(ValueError, match="not the JSON of a search"):
        tfquant.SearchReport.from_json("{}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(target="best"), "unknown target 'best'; known: fewest, smallest"),
        (dict(formats=()), "target 'fewest' takes one format, got none"),
        (dict(formats=("int12", "int16")), "target 'fewest' takes one format, got int12, int16"),
        (dict(formats="int17"), "bits must lie in 2 ... 16"),
        (dict(formats="int8"), "holds no site of fewer bits than int8"),
        (
            dict(target="smallest", formats="int4", sites="activations"),
            "holds no weight of more bits than int4",
        ),
        (
            dict(target="smallest", formats=("int4", "int6")),
            "formats must be of fewer and fewer bits, got int4, int6",
        ),
        (dict(max_loss=float("nan")), "max_loss must be a finite number, got nan"),
        (
            dict(max_loss=30, measure="sqnr"),
            "max_loss=30: for sqnr minus the ratio that is wanted, in dB, such as -30",
        ),
        (dict(max_loss="1"), "max_loss must be a finite number, got '1'"),
        (dict(sites="absent*"), "sites='absent\\*' matches no quantized site"),
        (dict(method="median"), "median"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(outliers, options, message):
    _, batches, quantized = outliers
    with pytest.raises(ValueError, match=message) as caught:
        tfquant.mixed_precision(quantized, batches, **{**RAISE, "max_loss": -35.0, **options})
    assert "\n" not in str(caught.value)


def test_a_model_whose_statistics_are_gone_takes_them_from_a_calibration(outliers, tmp_path):
    model, batches, quantized = outliers
    tfquant.save(quantized, tmp_path / "model.ckpt")
    loaded = tfquant.load(tmp_path / "model.ckpt", model)
    with pytest.raises(ValueError, match=re.escape("pass calibration=")):
        tfquant.mixed_precision(loaded, batches, max_loss=-35.0, **RAISE)
    recipe, _ = tfquant.mixed_precision(
        loaded, batches, max_loss=-35.0, calibration=quantized.calibration, **RAISE
    )
    assert formats(model, recipe)[problems.address("branch_1")] == "int16"
