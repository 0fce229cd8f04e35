"""Recipes of the methods of run_ag_news.py."""

from __future__ import annotations

from examples.ag_news.settings import Settings
from tfquant import QuantSpec, Recipe
from tfquant.recipes.patterns import recipe_of

# New range = 0.9 old + 0.1 current, as in the Fully Quantized Transformer.
_DECAY = 0.9


def recipe(settings: Settings) -> Recipe:
    """Return the recipe that the options describe.

    Raises:
      ValueError: the options describe none.
    """
    keep_final = settings.skip_final and settings.quant_type == "binarization"
    if settings.quant_type == "binarization":
        assert settings.quant_pattern is not None
        return recipe_of(settings.quant_pattern, _binary(settings), keep_final=keep_final)
    if settings.quant_type == "quantization":
        assert settings.bit_num is not None
        activation = None
        if settings.quant_method == "fully":
            activation = _activation(settings.bit_num)
        return recipe_of("ALL", _weight(settings.bit_num), activation, keep_final=keep_final)
    raise ValueError("--quant_type is missing: the float network has no recipe")


def _weight(bits: int) -> QuantSpec:
    """Weights whose ranges follow training: their magnitudes at each step."""
    if bits == 2:  # four levels of which a symmetric code has three: fitted by least squares
        return QuantSpec("ternary", "per_channel", source="dynamic", ste="identity")
    return QuantSpec(f"int{bits}", "per_channel", update="moving_average", decay=0.0)


def _activation(bits: int) -> QuantSpec:
    return QuantSpec(f"int{bits}", symmetric=False, update="moving_average", decay=_DECAY)


def _binary(settings: Settings) -> QuantSpec:
    if settings.quant_method == "ir":
        return QuantSpec(
            "binary", "per_channel", source="dynamic", transform="standardize", ste="error_decay"
        )
    if settings.scale == "none":
        return QuantSpec("binary", source="none", ste="strict")
    return QuantSpec("binary", "per_channel", source="dynamic", ste="strict")
