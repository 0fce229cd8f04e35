"""Recipe files that are damaged or hostile.

One line that names the file, soon and without memory for it.
"""

import os

import pytest

import tfquant
from tests.fileio.test_reading import BOMB


def recipe(**fields) -> str:
    rule = {
        "role": "weight",
        "spec": "{}",
        **{k: v for k, v in fields.items() if k not in ("name", "share", "fuse", "disable")},
    }
    top = {k: v for k, v in fields.items() if k in ("name", "share", "fuse", "disable")}
    lines = [f"{key}: {value}" for key, value in {"name": "x", **top}.items()]
    return (
        "\n".join(
            [*lines, "rules:", "- " + "\n  ".join(f"{key}: {value}" for key, value in rule.items())]
        )
        + "\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB + "rules: *j", "aliases stand for"),
        (BOMB + "name: *j\nrules: []", "aliases stand for"),
        (BOMB + "rules: [*j]", "aliases stand for"),
        (BOMB + "rules: [{role: weight, spec: *j}]", "aliases stand for"),
        (BOMB + "rules: [{role: weight, spec: {format: *j}}]", "aliases stand for"),
        ("rules: " + "[" * 500, "nested deeper"),
        (recipe(shape="[-1, 3]"), "shape must be a list of sizes"),
        (recipe(shape="[.inf]"), "shape must be a list of sizes"),
        (recipe(shape="8"), "shape must be a list of sizes"),
        (recipe(spec="{format: int99999999999999}"), "unknown number format"),
        (recipe(spec="{format: [int8]}"), "unknown number format"),
        (recipe(spec="{granularity: per_embedding_group, groups: -3}"), "at least 1"),
        (recipe(spec="{granularity: per_embedding_group, groups: .nan}"), "at least 1"),
        (recipe(spec="{decay: .inf}"), "decay must be a number from 0 to below 1"),
        (recipe(spec="{decay: .nan}"), "decay must be a number from 0 to below 1"),
        (recipe(spec="{decay: -1}"), "decay must be a number from 0 to below 1"),
        (
            recipe(spec="{method: {name: percentile, percentile: .nan}}"),
            "percentile must be a number from 0 to 100",
        ),
        (
            recipe(spec="{method: {name: percentile, percentile: .inf}}"),
            "percentile must be a number from 0 to 100",
        ),
        (
            recipe(spec="{method: {name: mse, search: grid, candidates: 1000000000000}}"),
            "candidates must be at most 100,000",
        ),
        (recipe(spec="{method: {name: [mse]}}"), "unknown range method"),
        (recipe(spec="{method: 7}"), "a range method is a name or a mapping"),
        (recipe(spec="[]"), "is a mapping"),
        (recipe(role="[[weight]]"), "role must be a name"),
        (recipe(role="[]"), "role must be a name"),
        (recipe(path="[a]"), "path must be a string"),
        (recipe(path="'re:('"), "is not a regular expression"),
        (recipe(name="[a]"), "name must be a string"),
        (recipe(name='"a\\e[31m\\n"', share="7"), "share must be true or false"),
        (recipe(disable="[3]"), "disable must be a list"),
        (recipe(fuse="[[weight]]"), "fuse must be a list"),
        (recipe(**{"optional": "maybe"}), "optional must be true or false"),
        ("rules: 7", "'rules' must be a list"),
        ("rules: [7]", "is a mapping"),
        ("[]", "is a mapping"),
        ("", "is a mapping"),
        ("7: 8\nrules: []", "unknown key"),
        ("rules: []\nrules: []", "key 'rules' is there twice"),
        ("rules: !!python/object:os.system {}", "is no YAML"),
        ("\x00", "is no YAML"),
    ],
)
def test_hostile_yaml_is_one_line(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")) as caught:
        tfquant.recipe(str(path))
    assert (
        str(path) in str(caught.value)
        and str(caught.value).isprintable()
        and len(str(caught.value)) < 1500
    )


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"rules": ' * 1000,
        "",
        "7",
        "[]",
        '{"rules": [], "rules": []}',
        "1" * 5000,
        "\ufeff{",
    ],
)
def test_hostile_json_is_one_line(tmp_path, text):
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(ValueError, match="recipe.json: ") as caught:
        tfquant.recipe(str(tmp_path / "recipe.json"))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["pipe", "folder", "zero", "bytes", "gone"])
def test_what_is_no_file_is_one_line(tmp_path, kind):
    path = tmp_path / "recipe.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "bytes":
        path.write_bytes(b"\xff\xfe")
    with pytest.raises((ValueError, FileNotFoundError), match="recipe.yaml"):
        tfquant.recipe(str(path))


def test_a_few_aliases_and_a_saved_recipe_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "name: a\nrules:\n- {role: weight, spec: &s {format: int8}}\n- {role: linear_input, spec:"
        " *s}\n- {role: logits, spec: {<<: *s, format: int4}}\n"
    )
    found = tfquant.recipe(str(tmp_path / "a.yaml"))
    assert [rule.spec.format for rule in found.rules] == ["int8", "int8", "int4"]
    for name in ("b.json", "b.yaml"):
        found.save(tmp_path / name)
        assert tfquant.recipe(str(tmp_path / name)) == found


@pytest.mark.parametrize("place", ["folder.yaml", "nowhere/r.yaml", "r.txt"])
def test_a_recipe_that_cannot_be_saved_leaves_nothing(tmp_path, place):
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises((OSError, ValueError)):
        tfquant.recipe("int8_residual_float").save(tmp_path / place)
    assert os.listdir(tmp_path) == ["folder.yaml"]
