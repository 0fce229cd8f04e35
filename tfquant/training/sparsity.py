"""Structured N:M sparsity along the reduction axis, for sparse tensor cores.

Masks and schedule are those of TensorFlow Model Optimization; after Mishra et al. 2021,
arXiv:2104.08378.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from calib import patterns
from tfquant.model import engine_of
from tfquant.training.frozen import FrozenWeights
from tfquant.training.hooks import Hook
from tfquant.variables import names_of, path_of, resource
from tfquant.weights import parameter_values

ENCODER_KERNELS = (
    r"(^|/)(attention/self/(query|key|value)|attention/output/dense|intermediate/dense|output/dense)"
    r"/kernel$"
)
MASKS = "tfquant/masks/"


def encoder_kernels(variables: Iterable[Any], expression: str = ENCODER_KERNELS) -> list[Any]:
    """Select the variables whose path `expression` matches; by default the kernels of a
    transformer's encoder.

    Raises:
        ValueError: there is none.
    """
    variables = list(variables)
    result = [v for v in variables if patterns.matches(patterns.REGEX + expression, path_of(v))]
    if not result:
        some = ", ".join(path_of(v) for v in variables[:3])
        raise ValueError(
            f"no variable's path matches {expression!r}; paths look like {some}: give another"
            " expression"
        )
    return result


class StructuredSparsity(Hook):
    """Sparsity masks of kernels during training; a hook of `Trainer`.

    A mask is chosen by magnitude. As `after_update` zeroes what a mask drops, later masks of the
    same weights differ only where a weight that was kept has become zero itself; masks are
    recomputed to follow weights that were set from outside.

    Args:
        variables: kernels [in, out] of Keras or TensorFlow, see `encoder_kernels`.
        pattern: "MxN": at least M zeros in every N consecutive weights along `in`.
        begin_step: number of steps made before the first mask; until then all weights are kept.
        end_step: masks stay as they are after this step; -1 for never.
        frequency: steps between two computations of the masks.

    Raises:
        ValueError: a kernel or an argument does not fit; the message names it.
    """

    def __init__(
        self,
        variables: Iterable[Any],
        pattern: str = "2x4",
        begin_step: int = 0,
        end_step: int = -1,
        frequency: int = 100,
    ):
        # Imported here: it brings the whole of Keras 2 along, which other training has no use for.
        from tensorflow_model_optimization.python.core.sparsity.keras import pruning_schedule

        self.zeros, self.block = parse_pattern(pattern)
        variables = list(variables)
        names = names_of(variables)
        self._kernels = {names[id(resource(v))]: resource(v) for v in variables}
        if not self._kernels:
            raise ValueError(
                "structured sparsity was given no kernels: choose some with encoder_kernels"
            )
        for name, kernel in self._kernels.items():
            _check_shape(name, kernel.shape, pattern)
        self._schedule = pruning_schedule.ConstantSparsity(
            self.zeros / self.block, begin_step, end_step, frequency
        )
        self._frozen = FrozenWeights(self._kernels, at_zero=True)

    def state(self) -> dict[str, tf.Variable]:
        """Map checkpoint name -> mask."""
        return self._frozen.state(MASKS)

    def before_step(self, step: int) -> bool:
        """Recompute and apply the masks if due; call it before each step, not in a graph.

        Args:
            step: number of steps made.

        Returns:
            Whether it did.
        """
        if not self._schedule(step)[0]:
            return False
        from tensorflow_model_optimization.python.core.sparsity.keras import pruning_utils

        for name, kernel in self._kernels.items():
            rows = pruning_utils.weights_rearrange(tf.convert_to_tensor(kernel))  # [out, in]
            mask = pruning_utils.generate_m_by_n_mask(rows, (self.zeros, self.block))
            mask = pruning_utils.m_by_n_sparsity_mask_prepare(mask, kernel.shape)
            self._frozen.set(name, mask != 0)
        self.after_update()
        return True

    def after_update(self) -> None:
        """Apply the masks; call it after the optimizer's update, in its graph or eagerly."""
        self._frozen.impose()


def check(kernels: Mapping[str, np.ndarray], pattern: str = "2x4") -> None:
    """Verify that kernels [in, out] have the zeros of a pattern.

    Raises:
        ValueError: names the first kernel that does not and the first group in it.
    """
    zeros, block = parse_pattern(pattern)
    for name, kernel in kernels.items():
        kernel = np.asarray(kernel)
        _check_shape(name, kernel.shape, pattern)
        groups = np.count_nonzero(kernel.reshape(-1, block, kernel.shape[1]) == 0, axis=1)
        wrong = np.argwhere(groups < zeros)
        if len(wrong):
            group, column = wrong[0]
            raise ValueError(
                f"kernel {name} is not {pattern} sparse: inputs {group * block} to"
                f" {group * block + block - 1} of output {column} have {groups[group, column]}"
                f" zeros instead of {zeros} ({len(wrong)} of {groups.size} groups are wrong); train"
                " it with StructuredSparsity, past its begin_step"
            )


def is_sparse(kernels: Iterable[Any], pattern: str = "2x4") -> bool:
    """Return whether all kernels, variables [in, out], have the zeros of a pattern."""
    try:
        check({path_of(kernel): kernel.numpy() for kernel in kernels}, pattern)
    except ValueError:
        return False
    return True


def quantized_kernels(model: Any, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Quantize kernels with the ranges of their sites.

    Args:
        model: a quantized model.
        names: paths of kernels.

    Returns:
        Address of the site of each kernel that is quantized -> values [in, out].
    """
    layers = {name.removesuffix("/kernel") for name in names}
    values = parameter_values(engine_of(model))
    return {
        address: quantizer(tf.constant(values[address])).numpy()
        for address, quantizer in model.quantizers.items()
        if quantizer.site.is_weight and quantizer.site.enabled and quantizer.site.path in layers
    }


def parse_pattern(pattern: str) -> tuple[int, int]:
    """Parse a pattern such as "2x4" into (zeros, group size).

    Raises:
        ValueError: it is no pattern.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", pattern)
    zeros, block = map(int, match.groups()) if match else (0, 0)
    if not 0 < zeros < block:
        raise ValueError(
            f"sparsity pattern is {pattern!r}; it must be zeros x group size with fewer zeros, such"
            " as '2x4'"
        )
    return zeros, block


def _check_shape(name: str, shape: Any, pattern: str) -> None:
    block = parse_pattern(pattern)[1]
    if len(shape) != 2:
        raise ValueError(
            f"kernel {name} has shape {list(shape)}; {pattern} sparsity needs [in, out]: leave"
            " it out"
        )
    if shape[0] % block:
        raise ValueError(
            f"kernel {name} has {shape[0]} inputs, no multiple of {block}; {pattern} sparsity"
            " is not possible: leave it out"
        )
