"""What improves a calibrated model without training it.

    report = tfquant.ptq.adaround(quantized, batches)
"""

from tfquant.ptq.adaround import adaround
from tfquant.ptq.bias_correction import BiasReport, BiasShift, correct_bias
from tfquant.ptq.options import Options
from tfquant.ptq.report import AdaRoundReport, LayerResult

__all__ = ["AdaRoundReport", "BiasReport", "BiasShift", "LayerResult", "Options", "adaround", "correct_bias"]
