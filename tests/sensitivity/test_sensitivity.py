"""The sensitivity of sites is what quantizing them by hand shows, is measured once, and is written
and read back.
"""

import dataclasses
import json
import math
import re

import keras
import numpy as np
import pytest
from scipy import special

import tfquant
from tests.graph import models
from tests.sensitivity import problems
from tfquant.resume import Results
from tfquant.sensitivity.network import SwitchedNetwork

OUTPUTS = ("end_logits", "start_logits")


@pytest.fixture(scope="module")
def bert():
    """A BERT whose 4-bit ranges make every site count, with padding in its batches."""
    model = models.own_bert(1).model
    batches = models.tokens(
        ("input_ids", "input_mask"), (8, 12), (8, 12), (5, 9), segments="segment_ids"
    )
    recipe = tfquant.recipe("int8_residual").with_spec(roles=["*"], format="int4")
    return (
        model,
        batches,
        recipe,
        tfquant.quantize(model, recipe, calibration=batches, progress=False),
    )


@pytest.fixture(scope="module")
def chain():
    """Layers one behind the other, weights and inputs at 4 bits."""
    model, batches = problems.chain()
    recipe = problems.recipe("int4", ("linear_input", "weight"))
    return model, batches, tfquant.quantize(model, recipe, calibration=batches, progress=False)


def outputs_of(model, batches):
    return [
        {name: np.asarray(value, np.float64) for name, value in model(batch).items()}
        for batch in batches
    ]


def sqnr(exact, found, batches, padding=False) -> dict[str, float]:
    """In dB, over real tokens or all."""
    result = {}
    for name in OUTPUTS:
        kept = [
            np.ones_like(b["input_mask"], bool) if padding else b["input_mask"] > 0 for b in batches
        ]
        pairs = [
            np.stack([e[name][k], f[name][k]]) for e, f, k in zip(exact, found, kept, strict=True)
        ]
        x, y = np.concatenate(pairs, 1)
        with np.errstate(divide="ignore"):  # equal outputs: infinite
            result[name] = 10 * np.log10(np.sum(x**2) / np.sum((x - y) ** 2))
    return result


def kl(exact, found, batches) -> dict[str, float]:
    """In nats, row by row with SciPy, over real tokens."""
    result = {}
    for name in OUTPUTS:
        rows = []
        for e, f, batch in zip(exact, found, batches, strict=True):
            for x, y, mask in zip(e[name], f[name], batch["input_mask"], strict=True):
                p, q = special.softmax(x[mask > 0]), special.softmax(y[mask > 0])
                rows.append(special.rel_entr(p, q).sum())
        result[name] = np.mean(rows)
    return result


def by_hand(bert, members, switch):
    """The network in which `disable` leaves all but some sites, or these alone, in float."""
    model, _, recipe, quantized = bert
    these = f"^({'|'.join(map(re.escape, members))})$"
    pattern = these if switch == "off" else f"^(?!({these[2:-2]})$)"
    made = tfquant.quantize(model, dataclasses.replace(recipe, disable=(pattern,)))
    tfquant.apply(made, quantized.calibration)
    return made


@pytest.mark.representatives("on")
@pytest.mark.parametrize("switch", ["on", "off"])
def test_one_site_switched_is_what_a_recipe_made_by_hand_gives(bert, switch):
    model, batches, _, quantized = bert
    report = tfquant.sensitivity(quantized, batches, switch=switch, progress=False)
    assert len(report.groups) == len(quantized.plan.sites)
    exact = outputs_of(model, batches)
    names = [group.name for group in report.groups]
    for number in (0, next(i for i, name in enumerate(names) if ":weight:" in name)):
        group = report.groups[number]
        members = quantized.plan.site(group.name).members
        expected = sqnr(exact, outputs_of(by_hand(bert, members, switch), batches), batches)
        assert group.outputs == pytest.approx(expected, rel=1e-12)
        assert group.value == pytest.approx(np.mean(list(expected.values())), rel=1e-12)
        assert group.difference == pytest.approx(group.value - report.quantized_value)
    values = [group.value for group in report.groups]
    assert values == sorted(values, reverse=switch == "off")
    assert (
        report.baseline == "quantized" and report.float_value == math.inf and report.samples == 21
    )
    assert report.quantized_value == pytest.approx(
        np.mean(list(sqnr(exact, outputs_of(quantized, batches), batches).values())), rel=1e-12
    )


# test_one_site_switched_is_what_a_recipe_made_by_hand_gives stands for it.
@pytest.mark.long
def test_sites_at_the_source_of_tensors_are_what_recipes_made_by_hand_give():
    model = models.own_bert(1).model
    batches = models.tokens(("input_ids", "input_mask"), (8, 12), (5, 9), segments="segment_ids")
    recipe = tfquant.recipe("int8_outputs").with_spec(roles=["*"], format="int4")
    quantized = tfquant.quantize(model, recipe, calibration=batches, progress=False)
    report = tfquant.sensitivity(quantized, batches, groups="roles", progress=False)
    exact = outputs_of(model, batches)
    for group in map(report.group, ("embedding", "layernorm_weight")):
        members = [
            member for address in group.sites for member in quantized.plan.site(address).members
        ]
        made = by_hand((model, batches, recipe, quantized), members, "on")
        expected = sqnr(exact, outputs_of(made, batches), batches)
        assert group.outputs == pytest.approx(expected, rel=1e-6)


def test_kl_is_scipys_over_real_tokens(bert):
    model, batches, _, quantized = bert
    report = tfquant.sensitivity(
        quantized, batches, groups="layers", sites="*/self*", measure="kl", progress=False
    )
    exact = outputs_of(model, batches)
    for group in report.groups[:1]:
        members = [
            member for address in group.sites for member in quantized.plan.site(address).members
        ]
        expected = kl(exact, outputs_of(by_hand(bert, members, "on"), batches), batches)
        assert group.outputs == pytest.approx(expected, rel=1e-9)
    assert report.float_value == 0.0 and report.baseline == "float"
    assert report.quantized_value == pytest.approx(
        np.mean(list(kl(exact, outputs_of(quantized, batches), batches).values()))
    )
    assert all(group.difference == group.value for group in report.groups)


def test_padding_counts_only_with_mask_none(bert):
    model, batches, _, quantized = bert
    exact, found = outputs_of(model, batches), outputs_of(quantized, batches)
    for mask, padding in (("auto", False), (None, True)):
        report = tfquant.sensitivity(
            quantized, batches, sites="model_output", mask=mask, progress=False
        )
        expected = np.mean(list(sqnr(exact, found, batches, padding).values()))
        assert report.quantized_value == pytest.approx(expected, rel=1e-12)


def test_the_branch_with_an_outlier_is_the_most_sensitive_either_way():
    model, batches = problems.branches({"branch_3": 100.0})
    quantized = tfquant.quantize(model, problems.recipe(), calibration=batches, progress=False)
    for switch in ("on", "off"):
        report = tfquant.sensitivity(quantized, batches, switch=switch, progress=False)
        assert report.groups[0].name == problems.address("branch_3")
    alone = tfquant.sensitivity(
        quantized,
        batches,
        groups={"rest": [f"{n}*" for n in problems.NAMES if n != "branch_3"]},
        switch="off",
        progress=False,
    )
    on = tfquant.sensitivity(quantized, batches, sites="branch_3", progress=False)
    assert alone.groups[0].value == on.groups[0].value  # all others in float is this one quantized


def test_a_metric_is_given_the_outputs_of_all_batches(chain):
    _, batches, quantized = chain
    seen = []

    def largest(outputs):
        seen.append(outputs)
        return float(max(np.max(o) for o in outputs))

    options = dict(sites="activations", measure=largest, progress=False)
    report = tfquant.sensitivity(quantized, batches, better="lower", **options)
    assert all([o.shape for o in outputs] == [(16, 3), (16, 3), (5, 3)] for outputs in seen)
    assert report.quantized_value == pytest.approx(max(np.max(quantized(b)) for b in batches))
    assert report.measure.endswith("largest") and report.baseline == "float"
    losses = [group.value - report.float_value for group in report.groups]
    assert losses == sorted(losses, reverse=True)
    higher = tfquant.sensitivity(quantized, batches, **options)
    assert [g.value for g in higher.groups] == [g.value for g in report.groups][::-1]


def test_the_model_is_as_before(chain):
    model, batches, quantized = chain
    weights, ranges = model.get_weights(), quantized.ranges()
    before = quantized(batches[0]).numpy()
    tfquant.sensitivity(quantized, batches[:1], groups="roles", progress=False)
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))
    assert all(np.array_equal(ranges[a], r) for a, r in quantized.ranges().items())
    assert quantized.mode == "quantized" and np.array_equal(before, quantized(batches[0]))


def test_size_is_that_of_the_parameters_in_their_format(chain):
    _, batches, quantized = chain
    report = tfquant.sensitivity(quantized, batches[:1], groups="roles", progress=False)
    assert report.group("weight").bits == 4 * (6 * problems.WIDTH**2 + 3 * problems.WIDTH)
    assert report.group("linear_input").bits == 0


def test_a_run_that_was_cut_off_goes_on_to_the_same_report_without_measuring_again(
    chain, tmp_path, monkeypatch
):
    _, batches, quantized = chain
    whole = tfquant.sensitivity(quantized, batches, progress=False)
    put, measured = Results.put, []

    def dying(self, name, result):
        if len(measured) == 4:
            raise KeyboardInterrupt
        measured.append(name)
        put(self, name, result)

    monkeypatch.setattr(Results, "put", dying)
    with pytest.raises(KeyboardInterrupt):
        tfquant.sensitivity(quantized, batches, folder=tmp_path, progress=False)
    first, again = list(measured), []
    monkeypatch.setattr(
        Results, "put", lambda self, *result: (again.append(result[0]), put(self, *result))
    )
    assert tfquant.sensitivity(quantized, batches, folder=tmp_path, progress=False) == whole
    assert len(again) == len(whole.groups) + 1 - 4 and not set(again) & set(first)
    monkeypatch.setattr(
        SwitchedNetwork, "_run", lambda *_: pytest.fail("ran the network though all is known")
    )
    assert tfquant.sensitivity(quantized, batches, folder=tmp_path, progress=False) == whole
    with pytest.raises(
        ValueError,
        match="holds another sensitivity analysis: .*switch was 'on' and is 'off'.*data differs",
    ):
        tfquant.sensitivity(quantized, batches[:1], folder=tmp_path, switch="off", progress=False)
    damaged = next(path for path in tmp_path.iterdir() if path.name != "run.json")
    damaged.write_text("{")
    with pytest.raises(ValueError, match=f"{damaged.name} is damaged"):
        tfquant.sensitivity(quantized, batches, folder=tmp_path, progress=False)


def test_what_is_kept_in_files_gives_the_same_report(chain):
    _, batches, quantized = chain
    kept_in_memory = tfquant.sensitivity(quantized, batches, switch="off", progress=False)
    assert (
        tfquant.sensitivity(quantized, batches, switch="off", memory_limit=0, progress=False)
        == kept_in_memory
    )


def test_graphs_are_built_for_a_few_places_and_trials_start_late(chain, monkeypatch):
    _, batches, _ = chain
    built, started = [], []
    edits, run = SwitchedNetwork._edits, SwitchedNetwork._run
    monkeypatch.setattr(
        SwitchedNetwork, "_edits", lambda self, choice: built.append(1) or edits(self, choice)
    )
    monkeypatch.setattr(
        SwitchedNetwork, "_run", lambda self, *args: started.append(args[1]) or run(self, *args)
    )
    model, _ = problems.chain(15)
    quantized = tfquant.quantize(model, problems.recipe(), calibration=batches, progress=False)
    report = tfquant.sensitivity(quantized, batches, progress=False)
    assert len(report.groups) == 16 and len(built) < 16
    assert len(set(started)) >= 6


def test_a_disabled_site_is_never_quantized():
    model, batches = problems.branches({"branch_3": 100.0})
    recipe = dataclasses.replace(problems.recipe(), disable=("branch_3",))
    quantized = tfquant.quantize(model, recipe, calibration=batches, progress=False)
    report = tfquant.sensitivity(quantized, batches, progress=False)
    assert sorted(g.name for g in report.groups) == [
        problems.address(n) for n in problems.NAMES if n != "branch_3"
    ]
    exact, found = (
        np.concatenate([np.asarray(m(b), np.float64) for b in batches]) for m in (model, quantized)
    )
    assert report.quantized_value == pytest.approx(
        10 * np.log10((exact**2).sum() / ((exact - found) ** 2).sum())
    )


@pytest.mark.representatives("convolutional", "function_with_signature")
@pytest.mark.parametrize("name", ["convolutional", "mixed_bfloat16", "function_with_signature"])
def test_models_of_every_kind_are_analysed(name, tmp_path):
    case = models.build(name, str(tmp_path))
    quantized = tfquant.quantize(
        case.model, "int8_residual_float", calibration=case.batches, progress=False
    )
    report = tfquant.sensitivity(quantized, case.batches, mask=None, progress=False)
    assert len(report.groups) == len(quantized.plan.sites)
    exact, found = (
        [[np.asarray(t, np.float64) for t in case.run(m, b)] for b in case.batches]
        for m in (case.model, quantized)
    )
    power = [
        sum(np.square(t).sum() for t in x)
        / sum(np.square(t - u).sum() for t, u in zip(x, y, strict=True))
        for x, y in zip(zip(*exact, strict=True), zip(*found, strict=True), strict=True)
    ]
    # In bfloat16 the last bits depend on which operations TensorFlow fuses.
    assert report.quantized_value == pytest.approx(
        np.mean(10 * np.log10(power)), rel=0.05 if name == "mixed_bfloat16" else 1e-6
    )


def test_the_report_is_written_as_table_json_and_picture(chain, tmp_path):
    _, batches, quantized = chain
    report = tfquant.sensitivity(quantized, batches[:1], groups="roles", progress=False)
    assert tfquant.SensitivityReport.from_json(report.to_json()) == report
    assert json.loads(report.to_json())["float_value"] == "inf"
    assert "linear_input" in report.table() and "SQNR, dB" in report.table()
    report.plot(tmp_path / "bars.png")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(KeyError, match="no group 'absent'"):
        report.group("absent")
    with pytest.raises(ValueError, match="not the JSON of a sensitivity report"):
        tfquant.SensitivityReport.from_json('{"groups": []}')


@pytest.mark.representatives("options0-*", "options2-*", "options5-*", "options7-*", "options10-*")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(switch="half"), "unknown switch 'half'; known: on, off"),
        (dict(groups="blocks"), "unknown groups 'blocks'; known: sites, layers, roles"),
        (
            dict(groups={"a": "nothing/*"}),
            "group 'a': 'nothing/\\*' matches no quantized site; there are branch_0",
        ),
        (dict(groups={"a": []}), "group 'a' has no pattern"),
        (dict(sites="weights"), "sites='weights' matches no quantized site"),
        (dict(sites="re:("), "is not a regular expression"),
        (dict(measure="psnr"), "unknown measure 'psnr'; known: sqnr, kl"),
        (
            dict(measure=lambda outputs: float("nan")),
            "returned nan: it must return a finite number",
        ),
        (dict(measure=lambda outputs: "good"), "returned 'good': it must return one number"),
        (dict(better="larger"), "better='larger' must be higher or lower"),
        (dict(mask="absent"), "mask='absent' is no input of the model"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options, message):
    model, batches = problems.branches()
    quantized = tfquant.quantize(model, problems.recipe(), calibration=batches, progress=False)
    with pytest.raises(ValueError, match=message) as caught:
        tfquant.sensitivity(quantized, batches, progress=False, **options)
    assert "\n" not in str(caught.value)


def test_bad_data_and_models_are_refused():
    model, batches = problems.branches()
    quantized = tfquant.quantize(model, problems.recipe(), calibration=batches, progress=False)
    bad = batches[1].copy()
    bad[0, 0, 0] = np.nan
    for data, message in (
        ([batches[0], bad], "batch 1: output .* holds NaN"),
        ([], "no batch"),
        (bad, "an iterable of batches"),
    ):
        with pytest.raises(ValueError, match=message):
            tfquant.sensitivity(quantized, data, progress=False)
    with pytest.raises(TypeError, match="expected a model from tfquant.quantize"):
        tfquant.sensitivity(model, batches)
    with pytest.raises(tfquant.UncalibratedError):
        tfquant.sensitivity(tfquant.quantize(model, problems.recipe()), batches)
    inputs = keras.Input((4,), name="x")
    single = keras.Model(inputs, keras.layers.Dense(1, name="one")(inputs))
    rows = [np.ones((2, 4), np.float32)]
    quantized = tfquant.quantize(
        single, problems.recipe(roles=("linear_input", "logits")), calibration=rows, progress=False
    )
    with pytest.raises(
        ValueError,
        match="measure='kl' compares probabilities of classes, and output .* has one value",
    ):
        tfquant.sensitivity(quantized, rows, measure="kl", progress=False)
