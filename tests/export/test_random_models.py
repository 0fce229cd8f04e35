"""Random models and recipes: storing, float mode and ONNX files keep the answers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, assume, given, settings

import tfquant
from tests.export.random_models import (
    Drawn,
    drawn,
    largest_effect_of_one_step,
    share_on_borders,
)
from tfquant.export.interface import Interface
from tfquant.graph.plan import RecipeError
from tfquant.model import engine_of
from tfquant.runtimes import onnxruntime

# A drawn recipe may name roles that a drawn model does not have.
pytestmark = pytest.mark.filterwarnings("ignore:nothing is quantized")
CLOSE = 1e-4  # of the largest value of an output
# Share of values that must be that close where values on the border of two codes are rare.
FEWEST_EQUAL = 0.9
MOST_ON_BORDERS = 0.01
options = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def check(drawn: Drawn, folder) -> None:
    """Assert all properties of one model and recipe."""
    keras.backend.clear_session()
    model, batch = drawn.model(), drawn.batch()
    try:
        quantized = tfquant.quantize(model, drawn.recipe(), calibration=[batch], progress=False)
    except RecipeError:
        assume(False)
    expected = tf.nest.flatten(quantized(batch))
    check_float_mode(model, quantized, batch)
    check_storing(drawn, quantized, batch, expected, folder)
    check_file(drawn, quantized, batch, expected, folder)


def check_float_mode(model, quantized, batch) -> None:
    quantized.set_mode("float")
    for one, other in zip(
        tf.nest.flatten(model(batch)), tf.nest.flatten(quantized(batch)), strict=True
    ):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * (1.0 + np.abs(one).max()))
    quantized.set_mode("quantized")


def check_storing(drawn: Drawn, quantized, batch, expected, folder) -> None:
    tfquant.save(quantized, folder / "model.ckpt")
    loaded = tfquant.load(folder / "model.ckpt", drawn.model(), inputs=batch)
    for one, other in zip(expected, tf.nest.flatten(loaded(batch)), strict=True):
        np.testing.assert_array_equal(other, one)


def check_file(drawn: Drawn, quantized, batch, expected, folder) -> None:
    """Node by node and fused.

    Nearly all values equal the simulation's, where last bits decide few codes, and none is further
    away than one step leads.
    """
    path = str(folder / "model.onnx")
    tfquant.export(quantized, path, opset=drawn.opset)
    rare = share_on_borders(quantized, batch) < MOST_ON_BORDERS
    bounds = largest_effect_of_one_step(quantized, batch)
    interface = Interface.of(engine_of(quantized).inference)
    for as_written in (True, False):
        session = onnxruntime.open_file(path, as_written=as_written)
        answers = session(interface.named_inputs([batch]))
        for name, one, bound in zip(interface.outputs, expected, bounds, strict=True):
            difference, close = (
                np.abs(one.numpy() - answers[name]),
                CLOSE * (np.abs(one).max() + 1e-6),
            )
            where = f"output {name}, {'node by node' if as_written else 'fused'}"
            # One value on the boundary of a code is more than a tenth of a small output.
            most = max(1, (1 - FEWEST_EQUAL) * difference.size)
            assert not rare or (difference > close).sum() <= most, (
                f"{where}: {difference.max():.3g} of {np.abs(one).max():.3g}"
            )
            assert difference.max() <= bound + close, (
                f"{where}: {difference.max():.3g}, one step leads to {bound:.3g}"
            )


@settings(options, max_examples=4, phases=[Phase.generate])
@given(drawn())
def test_random_models_keep_their_answers(tmp_path_factory, drawn):
    check(drawn, tmp_path_factory.mktemp("drawn"))


def test_ends_of_tanh_lie_on_borders_with_a_zero_point():
    spec = tfquant.QuantSpec("int8", symmetric=False)
    for activation, share in (("tanh", 0.05), ("relu", 0.0)):
        blocks = (("conv", activation), ("conv", None))
        model = Drawn("image", blocks, 1, 0.0, None, (("linear_input", spec),), 17, 0)
        batch = model.batch()
        quantized = tfquant.quantize(
            model.model(), model.recipe(), calibration=[batch], progress=False
        )
        assert share <= share_on_borders(quantized, batch) <= share + 0.05


@pytest.mark.long
@settings(options, max_examples=250)
@given(drawn())
def test_many_random_models_keep_their_answers(tmp_path_factory, drawn):
    check(drawn, tmp_path_factory.mktemp("drawn"))
