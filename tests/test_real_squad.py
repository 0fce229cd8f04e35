"""Post-training quantization of the real model on real questions; the whole picture is `make
squad`.
"""

import pytest

import tfquant
from benchmarks.squad_data import DevSet, Squad

pytestmark = pytest.mark.needs_shared


@pytest.fixture(scope="module")
def squad(shared_dir):
    return Squad(shared_dir)


def test_int8_answers_real_questions_nearly_as_well_as_float(squad):
    model, dev = squad.model(), DevSet(squad, questions=320)
    exact = dev.score(lambda inputs: model(inputs, training=False))
    quantized = tfquant.quantize(
        model, "int8_residual_asymmetric", calibration=squad.calibration_batches()
    )
    rounded = dev.score(quantized)
    assert exact["f1"] > 65
    assert rounded["f1"] > exact["f1"] - 3, (rounded, exact)
    broken = tfquant.quantize(
        model,
        tfquant.recipe("int8_residual_asymmetric").with_method("percentile", percentile=90),
        calibration=squad.calibration_batches(),
    )
    assert dev.score(broken)["f1"] < exact["f1"] - 10  # the score can tell a bad range
