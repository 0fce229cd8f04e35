"""Short spec strings of the literature."""

import pytest

import tfquant
from tfquant import QuantSpec, Recipe, Rule
from tfquant.recipes import combinations
from tfquant.recipes.spec_strings import parse_spec

DELAYED = {"source": "delayed", "ste": "identity"}
BLOCKS = {"granularity": "per_block", "dynamic": True, "ste": "identity"}
EXAMPLES = {
    "posit8_1": QuantSpec("posit8_1", source="none", ste="identity"),
    "FP8.E4M3": QuantSpec("e4m3", source="none", ste="identity"),
    "fp8_e5m2": QuantSpec("e5m2", source="none", ste="identity"),
    "fp6_e3m2": QuantSpec("e3m2", source="none", ste="identity"),
    "uint8": QuantSpec("int8", source="none", unsigned=True, ste="identity"),
    "int8,qs=per_tensor_symmetric,ahl=50": QuantSpec(
        "int8", narrow_range=False, history=50, **DELAYED
    ),
    "fp8_e5m2, qs=per_tensor_symmetric, qmax=57344, ahl=10": QuantSpec(
        "e5m2", quant_max=57344, history=10, **DELAYED
    ),
    "posit8_1,qscheme=per_tensor_symmetric,quant_max=64,amax_history_len=10": QuantSpec(
        "posit8_1", quant_max=64, history=10, **DELAYED
    ),
    "int8,qs=per_channel_symmetric,ax=0": QuantSpec(
        "int8", "per_channel", narrow_range=False, **DELAYED
    ),
    "e4m3,qs=per_channel_symmetric,ax=-1": QuantSpec("e4m3", "per_embedding", **DELAYED),
    "nf4_6,qs=microscaling,bs=64,ax=-1,scale=fp8_e5m3": QuantSpec(
        "nf4_6", block_size=64, scale_format="e5m3", **BLOCKS
    ),
    "fp4_e2m1,qs=microscaling,bs=32,ax=-2": QuantSpec("e2m1", block_size=32, **BLOCKS),
    "mxfp4": QuantSpec("mxfp4", ste="identity"),
}


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_of_the_literature(text):
    assert parse_spec(text) == EXAMPLES[text]


def test_scales_can_be_forced_to_powers_of_two():
    delayed = parse_spec("e4m3,qs=per_tensor_symmetric", power_of_two=True)
    assert delayed.scale_format == "power_of_two"
    assert parse_spec("e2m1,qs=microscaling,bs=8", power_of_two=True).scale_format == "e8m0"
    assert parse_spec("e4m3", power_of_two=True).scale_format == "float32"


@pytest.mark.parametrize(
    "text, said",
    [
        ("fp9", "unknown number format 'fp9'; known: int2"),
        ("fp8_e4m2", "'fp8_e4m2' has 7 bits with its sign, not 8"),
        ("int8,scheme=x", "unknown key 'scheme'; write key=value with qscheme"),
        ("int8,qs", "qs has no value; write qs=value"),
        ("int8,qs=per_row", "unknown qs 'per_row'; known: per_tensor_symmetric"),
        ("int8,ahl=4", "ahl needs qs, one of"),
        ("int8,qs=per_tensor_symmetric,ahl=0", "history must be at least 1 step, got 0"),
        ("int8,qs=per_tensor_symmetric,ahl=ten", "ahl must be an integer, got 'ten'"),
        ("int8,qs=per_tensor_symmetric,bs=4", "bs does not belong to qs=per_tensor_symmetric"),
        ("int8,qs=per_channel_symmetric,ax=2", "ax=2 is not supported: 0 for the output"),
        ("e2m1,qs=microscaling", "needs bs, the number of elements"),
        ("e2m1,qs=microscaling,bs=8,ax=0", "ax=0 is not supported: blocks lie along"),
        ("e2m1,qs=microscaling,bs=8,scale=fp16", "unknown scale 'fp16'; known: e8m0"),
        ("mxfp4,bs=8", "mxfp4 has a scale of its own: leave out bs"),
        ("int8,qs=per_tensor_symmetric,qs=microscaling", "qs occurs twice"),
        ("e4m3,qs=per_tensor_symmetric,qmax=-1", "quant_max must be a number above 0"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_the_valid_names(text, said):
    with pytest.raises(ValueError, match=said) as error:
        parse_spec(text)
    assert text.partition(",")[0] in str(error.value) and "\n" not in str(error.value)


def test_rules_take_strings_in_python_and_in_files(tmp_path):
    recipe = Recipe((Rule("posit8_1,qs=per_tensor_symmetric,qmax=64", role="linear_input"),))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: custom\nrules:\n"
        "- role: linear_input\n  spec: posit8_1,qs=per_tensor_symmetric,qmax=64\n"
        "  name: linear_input\n"
    )
    assert Recipe.load(path) == recipe
    recipe.save(tmp_path / "again.yaml")
    assert Recipe.load(tmp_path / "again.yaml") == recipe


def test_a_wrong_string_in_a_file_names_the_file_and_the_rule(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\nrules:\n- role: weight\n  name: w\n  spec: int99\n")
    with pytest.raises(ValueError, match=r"recipe\.yaml: .*rule 'w'.*int99.*bits must lie in"):
        Recipe.load(path)


def test_fields_beside_the_name_of_a_combination_take_precedence():
    assert QuantSpec("mxfp8", block_size=16).block_size == 16
    for name, (format, _) in combinations.NAMES.items():
        assert QuantSpec(name).format == format and QuantSpec(name).block_size == 32
    assert tfquant.Recipe((Rule(QuantSpec("mxint8"), role="weight"),)).rules[0].spec.dynamic
