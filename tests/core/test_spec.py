"""Recipes, rules and specs as data; how rules meet the edges of a graph."""

import dataclasses
import json

import numpy as np
import pytest
import yaml

import calib
import modeling
import tfquant
from calib import Grid
from tfquant import recipes
from tfquant.gradients import Gradient
from tfquant.graph.model_adapter import source_of
from tfquant.graph.plan import RecipeError
from tfquant.graph.trace import trace
from tfquant.layout import Layout
from tfquant.rules import Fuse, Recipe, Rule
from tfquant.scale import Scale
from tfquant.site import ROLES
from tfquant.spec import QuantSpec

INT8 = QuantSpec()
INT4 = QuantSpec("int4")
ACTIVATIONS = set(ROLES) - {"weight", "embedding", "bias", "layernorm_weight", "position_embedding"}


def custom_recipe() -> Recipe:
    """Every field of every class away from its default."""
    spec = QuantSpec(
        "int5",
        "per_channel",
        symmetric=False,
        narrow_range=False,
        unsigned="auto",
        method=calib.Method.parse("percentile", percentile=99.9, edge="left"),
    )
    return Recipe(
        rules=(
            Rule(
                spec,
                role=("weight", "linear_input"),
                path="re:layer_[02]/",
                port="k*",
                shape=(None, 8),
                optional=True,
                name="a",
            ),
            Rule(None, role="residual", path="*/layer_1/*"),
            Rule(QuantSpec("int16", unsigned=True, method="entropy"), shape=(3, 4)),
        ),
        name="everything",
        share=False,
        fuse=(Fuse("weight"), Fuse("matmul_input")),
        disable=(":residual:", "layer_3"),
    )


ALL = [*recipes.names(), "custom"]


def any_recipe(name: str) -> Recipe:
    return custom_recipe() if name == "custom" else tfquant.recipe(name)


def deciding(
    recipe: Recipe, role="weight", path="net/layer_0/dense", port="kernel", shape=(4, 8)
) -> Rule | None:
    """The rule that decides an edge, by trying all: an own reading of 'the last match wins'."""
    return next((r for r in recipe.rules[::-1] if r.matches(role, path, port, shape)), None)


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# In and out


@pytest.mark.parametrize("name", ALL)
def test_recipes_survive_json_and_yaml(name):
    recipe = any_recipe(name)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert yaml.safe_load(recipe.to_yaml()) == json.loads(recipe.to_json())


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_recipes_are_written_to_files_and_read_from_them(tmp_path, suffix):
    recipe, path = custom_recipe(), tmp_path / f"recipe{suffix}"
    recipe.save(path)
    assert (
        path.read_text().strip()
        == (recipe.to_json() if suffix == ".json" else recipe.to_yaml()).strip()
    )
    assert Recipe.load(path) == recipe
    assert Recipe.load(str(path)) == recipe
    assert list(tmp_path.iterdir()) == [path]


def test_a_recipe_is_not_written_where_it_could_not_be_read(tmp_path):
    with pytest.raises(ValueError, match="recipe.txt: a recipe file ends in .json, .yaml or .yml"):
        custom_recipe().save(tmp_path / "recipe.txt")
    with pytest.raises(FileNotFoundError, match="recipe.yaml: there is no folder"):
        custom_recipe().save(tmp_path / "none" / "recipe.yaml")


def test_options_of_numpy_type_are_written_as_plain_numbers():
    recipe = Recipe(
        (Rule(QuantSpec(method=calib.Method.parse("percentile", percentile=np.float64(99.5)))),)
    )
    assert Recipe.from_json(recipe.to_json()) == Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_defaults_are_left_out_of_the_file_and_come_back():
    data = Recipe((Rule(INT8, role="weight"),)).to_dict()
    assert set(data["rules"][0]) == {"spec", "role", "name"}
    assert Recipe.from_dict(data).rules[0].port == "*"


def test_a_hand_written_file_needs_only_rules(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "rules:\n  - {role: [weight, embedding], spec: {format: int4, method: mse}}\n  - {role:"
        " residual, spec: null}"
    )
    recipe = Recipe.load(path)
    assert recipe == Recipe(
        (
            Rule(QuantSpec("int4", method="mse"), role=("weight", "embedding")),
            Rule(None, role="residual"),
        )
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1"),
        ("", "a recipe is a mapping, got None"),
        ("[1, 2]", r"a recipe is a mapping, got \[1, 2\]"),
        ("just text", "a recipe is a mapping"),
        ("{name: x}", "recipe 'x': 'rules' must be a list"),
        ("{name: x, rules: {role: weight}}", "recipe 'x': 'rules' must be a list"),
        ("{name: x, rules: []}", "recipe 'x': rules must be a list of rules, got"),
        ("{name: x, rules: [weight]}", "recipe 'x': a rule is a mapping, got 'weight'"),
        ("{rules: [{role: weight}]}", "has no 'spec'"),
        (
            "{rules: [{spec: null}], colour: red}",
            "recipe: unknown key 'colour'; known: disable, fuse",
        ),
        (
            "{rules: [{spec: null, layer: x}]}",
            "rule: unknown key 'layer'; known: direction, name, optional, part, path",
        ),
        ("{rules: [{spec: null, name: r, layer: x}]}", "rule 'r': unknown key 'layer'"),
        (
            "{rules: [{spec: {bits: 8}, name: r}]}",
            "rule 'r': quantization spec: unknown key 'bits'; known: block_axis, block_size, decay",
        ),
        ("{rules: [{spec: 8, name: r}]}", "rule 'r': a quantization spec is a mapping, got 8"),
        (
            "{rules: [{spec: {format: 8}, name: r}]}",
            "rule 'r': unknown number format 8; known: int2 ... int16",
        ),
        (
            "{rules: [{spec: {format: int99}, name: r}]}",
            "rule 'r': number format 'int99': bits must lie in 2 ... 16",
        ),
        (
            "{rules: [{spec: {method: guess}, name: r}]}",
            "rule 'r': unknown range method 'guess'; choose one of max, percentile",
        ),
        (
            "{rules: [{spec: {method: {name: max, depth: 2}}, name: r}]}",
            "'max' has no option 'depth'; valid options: none",
        ),
        (
            "{rules: [{spec: {method: {percentile: 99}}, name: r}]}",
            "rule 'r': range method without a name",
        ),
        (
            "{rules: [{spec: {method: 5}, name: r}]}",
            "rule 'r': a range method is a name or a mapping with 'name', got 5",
        ),
        ("{rules: [{spec: {method: {name: percentile, percentile: 400}}, name: r}]}", "percentile"),
        (
            "{rules: [{spec: {granularity: per_row}, name: r}]}",
            "rule 'r': unknown granularity 'per_row'; known: per_tensor",
        ),
        (
            "{rules: [{spec: {symmetric: maybe}, name: r}]}",
            "rule 'r': symmetric must be true or false, got 'maybe'",
        ),
        (
            "{rules: [{spec: {narrow_range: 1}, name: r}]}",
            "rule 'r': narrow_range must be true or false, got 1",
        ),
        (
            "{rules: [{spec: {unsigned: 1}, name: r}]}",
            "rule 'r': unsigned must be true, false or 'auto', got 1",
        ),
        (
            "{rules: [{spec: null, role: wheel, name: r}]}",
            "rule 'r': unknown role 'wheel'; known: weight, embedding",
        ),
        (
            "{rules: [{spec: null, role: [], name: r}]}",
            "rule 'r': role must be a name or a list of names",
        ),
        ("{rules: [{spec: null, role: 5}]}", "role must be a name or a list of names, got 5"),
        ("{rules: [{spec: null, path: 5, name: r}]}", "rule 'r': path must be a string, got 5"),
        ("{rules: [{spec: null, port: [k], name: r}]}", "rule 'r': port must be a string"),
        ("{rules: [{spec: null, name: 7}]}", "name must be a string, got 7"),
        (
            "{rules: [{spec: null, optional: perhaps, name: r}]}",
            "rule 'r': optional must be true or false, got 'perhaps'",
        ),
        ("{rules: [{spec: null, shape: 3, name: r}]}", "rule 'r': shape must be a list of sizes"),
        ("{rules: [{spec: null, shape: [a], name: r}]}", "rule 'r': shape must be a list of sizes"),
        (
            "{rules: [{spec: null, path: 're:(', name: r}]}",
            r"rule 'r', path: '\(' is not a regular expression",
        ),
        ("{rules: [{spec: null}], disable: 'x'}", "disable must be a list of patterns, got 'x'"),
        (
            "{name: q, rules: [{spec: null}], disable: ['*']}",
            r"recipe 'q', disable: '\*' is not a regular expression",
        ),
        ("{rules: [{spec: null}], fuse: weight}", "fuse must be a list of roles, got 'weight'"),
        (
            "{rules: [{spec: null}], fuse: [residual]}",
            "cannot fuse ranges of role 'residual'; known: weight, linear_output",
        ),
        (
            "{rules: [{spec: null}], share: sometimes}",
            "share must be true or false, got 'sometimes'",
        ),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_naming_file_and_fault(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        Recipe.load(path)
    assert one_line(error).startswith(f"{path}: ")


def test_files_that_cannot_be_recipes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"recipe.txt: a recipe file ends in .json, .yaml or .yml"):
        Recipe.load(tmp_path / "recipe.txt")
    with pytest.raises(FileNotFoundError, match="absent.yaml"):
        Recipe.load(tmp_path / "absent.yaml")
    for name, content in (
        ("bad.json", b"{"),
        ("bytes.yaml", b"\xff\xfe\x00"),
        ("bytes.json", b"\xff"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name) as error:
            Recipe.load(tmp_path / name)
        one_line(error)


def test_unknown_recipe_name_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=f"unknown recipe 'best'; known: {', '.join(recipes.names())}; or give"
    ) as error:
        tfquant.recipe("best")
    one_line(error)


# Specs


@pytest.mark.parametrize("bits", range(2, 17))
def test_grid_of_every_width_and_sign_convention(bits):
    name, half = f"int{bits}", 2 ** (bits - 1)
    assert QuantSpec(name).grid == Grid(-(half - 1), half - 1)
    assert QuantSpec(name, narrow_range=False).grid == Grid(-half, half - 1)
    assert QuantSpec(name, unsigned=True).grid == Grid(0, 2 * half - 1)
    assert QuantSpec(name, unsigned="auto").grid == QuantSpec(name).grid
    assert QuantSpec(name, symmetric=False).grid == Grid(0, 2 * half - 1, symmetric=False)


@pytest.mark.parametrize("name", ["int1", "int17", "int0"])
def test_widths_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=rf"number format '{name}': bits must lie in 2 \.\.\. 16"):
        QuantSpec(name)


@pytest.mark.parametrize("name", ["float8", "int", "8", "int-8", "uint8", "", None])
def test_unknown_formats_are_refused(name):
    with pytest.raises(ValueError, match=r"unknown number format .*; known: int2 \.\.\. int16"):
        QuantSpec(name)


def test_fields_of_parts_make_the_spec_that_the_parts_make():
    by_fields = QuantSpec(
        "int4", granularity="per_embedding_group", groups=4, symmetric=False, ste="strict"
    )
    by_parts = QuantSpec(
        "int4",
        layout=Layout("per_embedding_group", groups=4),
        scale=Scale(symmetric=False),
        gradient=Gradient("strict"),
    )
    assert by_fields == by_parts and hash(by_fields) == hash(by_parts)
    assert (by_parts.granularity, by_parts.groups, by_parts.symmetric, by_parts.ste) == (
        "per_embedding_group",
        4,
        False,
        "strict",
    )


@pytest.mark.parametrize(
    "change",
    [{"symmetric": False}, {"ste": "strict"}, {"granularity": "per_channel"}, {"format": "int4"}],
)
def test_replacing_a_field_leaves_all_others(change):
    spec = QuantSpec(
        "int5", "per_tensor", narrow_range=False, unsigned="auto", update="lsq", method="mse"
    )
    before, after = spec.to_dict(), dataclasses.replace(spec, **change).to_dict()
    assert after == {**before, **change}


def test_fields_that_no_part_has_are_refused_and_cannot_be_read():
    with pytest.raises(
        TypeError, match="a quantization spec has no field 'bits'; known: format, granularity"
    ):
        QuantSpec(bits=8)
    with pytest.raises(AttributeError, match="'QuantSpec' object has no attribute 'bits'"):
        _ = QuantSpec().bits


def test_files_hold_the_keys_of_earlier_versions_in_their_order():
    keys = [
        "format",
        "granularity",
        "symmetric",
        "narrow_range",
        "unsigned",
        "method",
        "update",
        "ste",
        "decay",
    ]
    assert list(QuantSpec().to_dict()) == keys
    assert list(QuantSpec(dynamic=True).to_dict())[-1] == "dynamic"


def test_description_tells_sign_conventions_apart():
    variants = [
        QuantSpec(),
        QuantSpec(narrow_range=False),
        QuantSpec(unsigned=True),
        QuantSpec(symmetric=False),
    ]
    texts = [v.describe() for v in variants]
    assert texts[0] == "int8 per_tensor symmetric max"
    assert len(set(texts)) == 4


# Rules


@pytest.mark.parametrize(
    ("rule", "matches", "fails"),
    [
        (Rule(INT8, path="*/layer_0/*"), "net/layer_0/dense", "net/layer_10/dense"),
        (Rule(INT8, path="net/*"), "net/a/b", "other/net/a"),
        (Rule(INT8, path="re:layer_[0-3]/"), "net/layer_3/x", "net/layer_4/x"),
        (Rule(INT8, path="re:^net/(query|key)$"), "net/key", "net/key/more"),
        (Rule(INT8, path="re:QUERY"), "net/QUERY", "net/query"),
        (Rule(INT8, path="Net*"), "Net/x", "net/x"),
    ],
)
def test_paths_match_as_globs_or_regular_expressions(rule, matches, fails):
    assert rule.matches("weight", matches, "kernel", None)
    assert not rule.matches("weight", fails, "kernel", None)


@pytest.mark.parametrize(
    ("wanted", "shape", "expected"),
    [
        (None, (3, 4), True),
        (None, None, True),
        ((3, 4), (3, 4), True),
        ((3, 4), (4, 3), False),
        ((None, 4), (7, 4), True),
        ((None, 4), (None, 4), True),
        ((3, 4), (None, 4), False),
        ((3, 4), (3, 4, 1), False),
        ((None, None), None, False),
        ((), (), True),
    ],
)
def test_shapes_match_size_by_size(wanted, shape, expected):
    assert Rule(INT8, shape=wanted).matches("weight", "p", "kernel", shape) is expected


def test_roles_and_ports_match():
    rule = Rule(INT8, role=("weight", "bias"), port="ker*")
    assert rule.matches("weight", "p", "kernel", None)
    assert not rule.matches("linear_input", "p", "kernel", None)
    assert not rule.matches("bias", "p", "bias", None)
    assert Rule(INT8).matches("model_output", "p", "output", None)
    assert Rule(INT8, role=["weight"]) == Rule(INT8, role="weight")


def test_the_last_rule_that_matches_wins_in_a_recipe_as_data():
    recipe = Recipe((Rule(INT8), Rule(INT4, role="weight"), Rule(None, path="*/layer_1/*")))
    assert deciding(recipe).spec == INT4
    assert deciding(recipe, role="linear_input").spec == INT8
    assert deciding(recipe, path="net/layer_1/dense").spec is None


def test_two_rules_for_the_same_edges_are_a_conflict_that_names_both():
    with pytest.raises(
        ValueError,
        match="recipe 'c': rules 'first' and 'second' match the same edges with different",
    ) as error:
        Recipe(
            (
                Rule(INT8, "weight", name="first"),
                Rule(INT4, "bias"),
                Rule(INT4, "weight", name="second"),
            ),
            name="c",
        )
    one_line(error)
    with pytest.raises(ValueError, match="match the same edges"):
        Recipe((Rule(INT8, role=("weight", "bias")), Rule(None, role=("bias", "weight"))))
    for other in ({"path": "a*"}, {"port": "k"}, {"shape": (1,)}, {"role": "bias"}):
        Recipe((Rule(INT8, role="weight"), Rule(INT4, **{"role": "weight", **other})))


def test_two_rules_of_one_name_are_refused_as_their_counts_could_not_be_told_apart():
    with pytest.raises(
        ValueError, match="recipe 'custom': two rules are called 'x'; give each a name of its own"
    ):
        Recipe((Rule(INT8, role="weight", name="x"), Rule(INT8, role="bias", name="x")))


def test_made_up_rule_names_say_what_is_matched():
    assert Rule(INT8, role="weight").name == "weight"
    assert (
        Rule(INT8, role=("weight", "bias"), path="a/*", port="kernel", shape=(None, 3)).name
        == "weight/bias at a/* port kernel of shape ?x3"
    )


# Changing recipes


def test_with_rules_puts_rules_behind_and_they_win():
    recipe = tfquant.recipe("int8_residual").with_rules(
        Rule(None, path="*/layer_0/*", name="spare"), name="mine"
    )
    assert recipe.name == "mine"
    assert recipe.rules[:-1] == tfquant.recipe("int8_residual").rules
    assert deciding(recipe).name == "spare"
    assert deciding(recipe, path="net/layer_1/dense").name == "weights"


def test_with_rules_replaces_a_rule_for_the_same_edges():
    recipe = tfquant.recipe("int8_residual").with_rules(Rule(None, role="residual"))
    assert deciding(recipe, role="residual").spec is None
    assert len(recipe.rules) == len(tfquant.recipe("int8_residual").rules)
    again = recipe.with_rules(Rule(INT4, role="residual"))
    assert deciding(again, role="residual").spec == INT4


@pytest.mark.parametrize("name", ALL)
def test_with_method_changes_activations_and_nothing_else(name):
    recipe = any_recipe(name)
    changed = recipe.with_method("percentile", percentile=99.0)
    assert dataclasses.replace(changed, rules=recipe.rules) == recipe
    for role in ROLES:
        before, after = deciding(recipe, role, shape=(3, 4)), deciding(changed, role, shape=(3, 4))
        if before is None or before.spec is None:
            assert (after and after.spec) is (before and before.spec)
        elif role in ACTIVATIONS and before.spec.source == "stored":
            assert after.spec == dataclasses.replace(
                before.spec, method=calib.Method.parse("percentile", percentile=99.0)
            )
        else:
            assert after.spec == before.spec


@pytest.mark.parametrize("source", ["dynamic", "delayed", "none"])
def test_with_method_leaves_ranges_that_are_not_stored_unless_their_role_is_named(source):
    spec = QuantSpec("e4m3", source=source)
    recipe = Recipe((Rule(spec, role="linear_input"), Rule(INT8, role="residual")))
    changed = recipe.with_method("mse")
    assert deciding(changed, "linear_input").spec == spec
    assert deciding(changed, "residual").spec.method == calib.Method.parse("mse")
    with pytest.raises(ValueError, match="its method must be max"):
        recipe.with_method("mse", roles=["linear_input"])


def test_with_method_reaches_roles_behind_a_star_and_in_lists():
    recipe = Recipe(
        (Rule(INT8, name="all"), Rule(INT4, role=("weight", "softmax_output"), name="some"))
    )
    changed = recipe.with_method("entropy", roles=["softmax_output", "logits"])
    entropy = calib.Method.parse("entropy")
    assert deciding(changed, "logits").spec == dataclasses.replace(INT8, method=entropy)
    assert deciding(changed, "softmax_output").spec == dataclasses.replace(INT4, method=entropy)
    assert deciding(changed, "weight").spec == INT4
    assert deciding(changed, "bias").spec == INT8


def test_with_method_and_with_spec_can_be_repeated_in_any_order():
    recipe = Recipe((Rule(INT8, name="all"),))
    changed = recipe.with_spec(roles=["residual", "logits"], format="int4").with_method(
        "entropy", roles=["logits"]
    )
    changed = changed.with_method("mse", roles=["logits"]).with_spec(
        roles=["logits", "bias"], symmetric=False
    )
    assert deciding(changed, "logits").spec == QuantSpec("int4", symmetric=False, method="mse")
    assert deciding(changed, "residual").spec == INT4
    assert deciding(changed, "bias").spec == QuantSpec(symmetric=False)
    assert deciding(changed, "weight").spec == INT8
    assert Recipe.from_yaml(changed.to_yaml()) == changed


def test_with_spec_keeps_the_rest_of_the_spec_and_the_order_of_rules():
    recipe = tfquant.recipe("ft2").with_spec(
        roles=["weight"], format="int4", granularity="per_channel"
    )
    assert [r.name for r in recipe.rules] == [r.name for r in tfquant.recipe("ft2").rules]
    assert deciding(recipe).spec == QuantSpec("int4", "per_channel")
    assert deciding(recipe, "linear_input") == deciding(tfquant.recipe("ft2"), "linear_input")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: r.with_method("guess"),
            "unknown range method 'guess'; choose one of max, percentile",
        ),
        (lambda r: r.with_method("mse", percentile=3), "'mse' has no option 'percentile'"),
        (lambda r: r.with_method("percentile", percentile=101), "percentile"),
        (lambda r: r.with_method("max", roles=["wheel"]), "unknown role 'wheel'; known: weight"),
        (
            lambda r: r.with_method(calib.Method.parse("mse"), stride=2),
            "a calib.Method without any",
        ),
        (
            lambda r: r.with_method(5),
            "a range method is a name with options, or a calib.Method without any, got 5",
        ),
        (
            lambda r: r.with_spec(roles=["wheel"], format="int4"),
            "unknown role 'wheel'; known: weight",
        ),
        (
            lambda r: r.with_spec(roles=["weight"], bits=4),
            "a quantization spec has no field 'bits'; known: format, granularity",
        ),
        (
            lambda r: r.with_spec(roles=["weight"], format="int1"),
            "number format 'int1': bits must lie in",
        ),
        (
            lambda r: r.with_spec(roles=["softmax_output"], format="int4"),
            "recipe 'int8_residual' has no rule that quantizes soft",
        ),
        (lambda r: r.with_spec(roles=[], format="int4"), "roles must be a list of roles"),
        (lambda r: r.with_rules("weight"), "recipe 'int8_residual': rules must be a list of rules"),
    ],
)
def test_changes_that_make_no_sense_are_refused_in_one_line(change, message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        change(tfquant.recipe("int8_residual"))
    one_line(error)


def test_default_with_method_leaves_a_recipe_of_weights_alone():
    recipe = Recipe((Rule(INT8, role="weight"),))
    assert recipe.with_method("mse") == recipe


# Rules meet a graph


@pytest.fixture(scope="module")
def dense(make_two_dense):
    return make_two_dense()


@pytest.fixture(scope="module")
def bert(tiny_bert_config):
    return modeling.build_squad_model(tiny_bert_config, seed=0)


def specs(plan) -> dict[tuple[str, str], QuantSpec]:
    return {(s.role, s.path.rpartition("/")[2]): s.spec for s in plan.sites}


def test_last_match_wins_on_the_edges_of_a_graph(dense):
    plan = tfquant.plan(
        dense,
        Recipe(
            (
                Rule(INT8, role=("weight", "linear_input"), name="all"),
                Rule(INT4, role="weight", path="*second"),
                Rule(None, role="linear_input", shape=(None, 5)),
            )
        ),
    )
    assert specs(plan) == {
        ("weight", "first"): INT8,
        ("weight", "second"): INT4,
        ("linear_input", "first"): INT8,
    }
    assert {s.rule for s in plan.sites} == {"all", "weight at *second"}


def test_rule_that_matches_nothing_lists_the_roles_there_are(dense):
    with pytest.raises(
        RecipeError,
        match="recipe 'r': rule 'attention' matches nothing; correct it or mark it optional",
    ) as error:
        tfquant.plan(
            dense,
            Recipe(
                (Rule(INT8, role="weight"), Rule(INT8, role="matmul_input", name="attention")),
                name="r",
            ),
        )
    assert "weight (2)" in one_line(error) and "linear_input (2)" in str(error.value)
    assert "matmul_input" not in str(error.value).partition("Roles in this model")[2]


@pytest.mark.parametrize(
    "field", [{"path": "*/layer_0/*"}, {"path": "re:layer_9"}, {"port": "q"}, {"shape": (1, 2, 3)}]
)
def test_misspelt_paths_ports_and_shapes_match_nothing(dense, field):
    with pytest.raises(RecipeError, match="matches nothing") as error:
        tfquant.plan(dense, Recipe((Rule(INT8, role="weight"), Rule(INT4, role="weight", **field))))
    one_line(error)


def test_optional_rule_may_match_nothing(dense):
    plan = tfquant.plan(
        dense, Recipe((Rule(INT8, role="weight"), Rule(INT8, role="matmul_input", optional=True)))
    )
    assert plan.count("weight") == len(plan.sites) == 2
    assert plan.matches == {"weight": 2, "matmul_input": 0}


def test_changed_recipe_still_fits_a_graph_that_lacks_some_of_a_rules_roles(dense):
    recipe = Recipe((Rule(INT8, role=("weight", "matmul_input"), name="both"),)).with_method("mse")
    assert {s.spec for s in tfquant.plan(dense, recipe).sites} == {INT8}
    everything = Recipe((Rule(INT8, name="all"),)).with_method("mse")
    assert {
        s.spec.method.name
        for s in tfquant.plan(dense, everything).sites
        if s.role == "linear_input"
    } == {"mse"}


def test_per_channel_where_there_are_no_channels_is_refused_naming_the_edge(dense):
    recipe = Recipe(
        (Rule(QuantSpec(granularity="per_channel"), role="linear_input", name="wrong"),)
    )
    with pytest.raises(
        RecipeError,
        match="rule 'wrong' asks for per_channel at .*first:linear_input:.*use per_tensor",
    ) as error:
        tfquant.plan(dense, recipe)
    one_line(error)


def test_disabled_sites_have_a_range_but_do_not_quantize(dense):
    recipe = Recipe(
        (Rule(INT8, role=("weight", "linear_input")),), disable=("second:.*:", ":linear_input:")
    )
    plan = tfquant.plan(dense, recipe)
    assert [(s.role, s.path) for s in plan.sites if s.enabled] == [("weight", "first")]
    assert len(plan.sites) == 4
    x = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    quantized = tfquant.quantize(dense, recipe, [x], progress=False)
    only_first = Recipe((Rule(INT8, role="weight", path="*first"),))
    np.testing.assert_array_equal(
        quantized(x), tfquant.quantize(dense, only_first, [x], progress=False)(x)
    )
    assert len(quantized.ranges()) == 4 and all(
        np.isfinite(r).all() for ends in quantized.ranges().values() for r in ends
    )


def test_recipe_must_be_a_recipe_or_a_name(dense):
    with pytest.raises(
        TypeError,
        match="recipe must be a tfquant.Recipe, the name of one, or arguments of .*, got dict",
    ):
        tfquant.plan(dense, {"rules": []})


def test_fused_sites_share_one_range(bert, make_bert_batch):
    recipe = dataclasses.replace(
        tfquant.recipe("int8_residual_float").with_spec(roles=["weight"], granularity="per_tensor"),
        share=False,
        fuse=("weight", "matmul_input"),
    )
    quantized = tfquant.quantize(bert, recipe, [make_bert_batch([5, 3])], progress=False)
    groups = {}
    for site in quantized.plan.sites:
        if site.group:
            groups.setdefault(site.group, []).append(site)
    assert sorted(len(sites) for sites in groups.values()) == [3, 3]
    for sites in groups.values():
        uppers = [float(quantized.ranges()[s.address][1]) for s in sites]
        assert uppers[0] == uppers[1] == uppers[2]
    kernels = {
        s.path.rpartition("/")[2]: s for s in quantized.plan.sites if s.role == "weight" and s.group
    }
    attention = {
        v.path.rpartition("/")[0].rpartition("/")[2]: v
        for v in bert.weights
        if v.path.endswith("kernel")
    }
    largest = max(float(abs(attention[name].numpy()).max()) for name in ("query", "key", "value"))
    assert {float(quantized.ranges()[s.address][1]) for s in kernels.values()} == {largest}
    assert set(kernels) == {"query", "key", "value"}


def test_fused_sites_with_different_specs_are_refused_naming_two(bert):
    recipe = dataclasses.replace(
        tfquant.recipe("int8_residual_float").with_spec(roles=["weight"], granularity="per_tensor"),
        fuse=(Fuse("weight"),),
    ).with_rules(Rule(INT4, role="weight", path="*/key"))
    with pytest.raises(
        RecipeError, match="fused sites .*:weight:kernel and .*:weight:kernel have different specs"
    ) as error:
        tfquant.plan(bert, recipe)
    assert "int4" in one_line(error) and "int8" in str(error.value)


def test_one_trace_serves_many_recipes(dense):
    from tfquant.graph.plan import make_plan

    graph = trace(source_of(dense))
    counts = {
        bits: (
            make_plan(graph, Recipe((Rule(QuantSpec(f"int{bits}"), role="weight"),))).count(
                "weight"
            )
        )
        for bits in (2, 8)
    }
    assert counts == {2: 2, 8: 2}


def test_a_star_changes_the_specs_of_all_roles():
    recipe = tfquant.recipe("int8_residual").with_spec(roles=["*"], update="lsq")
    assert {rule.spec.update for rule in recipe.rules} == {"lsq"}
