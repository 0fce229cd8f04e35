"""Pattern language of names: globs and regular expressions."""

import pytest

from calib import patterns


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("*", "", True),
        ("*/layer_0/*", "bert/layer_0/dense", True),
        ("*/layer_0/*", "bert/Layer_0/dense", False),
        ("layer_0", "bert/layer_0", False),
        ("re:layer_[01]", "bert/layer_0", True),
        ("re:layer_[01]$", "bert/layer_10", False),
        ("[re]:*", "r:x", True),
    ],
)
def test_a_pattern_is_a_glob_of_the_whole_name_or_an_expression_found_in_it(
    pattern, name, expected
):
    patterns.check(pattern, "here")
    assert patterns.matches(pattern, name) is expected


def test_an_expression_that_does_not_compile_is_refused_with_its_place():
    with pytest.raises(ValueError, match=r"here: '\(' is not a regular expression"):
        patterns.check("re:(", "here")
