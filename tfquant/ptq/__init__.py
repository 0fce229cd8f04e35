"""What improves a model without training it: before calibration, and after.

    report = tfquant.ptq.equalize(model, batches)
    report = tfquant.ptq.adaround(quantized, batches)
"""

from tfquant.ptq.adaround import adaround
from tfquant.ptq.bias_correction import BiasReport, BiasShift, correct_bias
from tfquant.ptq.equalization import equalize, rescale
from tfquant.ptq.equalization_report import EqualizationReport, PairResult
from tfquant.ptq.options import Options
from tfquant.ptq.report import AdaRoundReport, LayerResult

__all__ = [
    "AdaRoundReport", "BiasReport", "BiasShift", "EqualizationReport", "LayerResult", "Options", "PairResult", "adaround",
    "correct_bias", "equalize", "rescale",
]  # fmt: skip
