"""TensorBoard histograms of the residual connections around feed-forward parts, and the graph of
the network.

After Bondarenko et al. 2021 (arXiv:2109.12948), section 3: the input x of a feed-forward part and
its output h differ so much in width that one range for their sum, over all dimensions, fits
neither.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from runs.batches import only
from runs.glue.data import INPUTS
from runs.logging import log
from tfquant.intermediate_outputs import Tapped


def write_histograms(
    tapped: Tapped,
    batch: Mapping[str, np.ndarray],
    folder: str,
    step: int,
    *,
    progress: bool = True,
) -> None:
    """Write a histogram for each tensor, of real tokens, as the network computes it in its present
    mode.

    Args:
        tapped: the network.
        batch: rows of validation data.
        folder: TensorBoard's.
        step: of training.
    """
    tags = dict(_residuals(tapped.letters))
    if not tags:
        log(
            "--tb: the network has no feed-forward part with a residual connection, so that there"
            " are no histograms"
        )
        return
    _, result = tapped(only(batch, INPUTS), list(dict.fromkeys(tags.values())))
    real = batch["input_mask"] > 0
    with tf.summary.create_file_writer(folder).as_default():
        for tag, address in tqdm(
            tags.items(), "histograms", unit="tensor", delay=2, leave=False, disable=not progress
        ):
            tf.summary.histogram(
                tag, tf.boolean_mask(tf.cast(result[address], tf.float32), real), step
            )
    log(f"{len(tags)} histograms of {int(real.sum())} tokens in {folder}")


def write_graph(tapped: Tapped, folder: str) -> None:
    """Write the graph of inference, quantizers included."""
    with tf.summary.create_file_writer(folder).as_default():
        tf.summary.graph(tapped.graph)


def _residuals(letters: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    """Yield (tag, address) of x, h and their sum; several feed-forward parts of a layer are
    numbered.
    """
    for number in sorted(
        int(name[1:]) for name in letters if name[0] == "y" and name[1:].isdigit()
    ):
        inputs, outputs, sums, norms = (letters.get(f"{letter}{number}", ()) for letter in "xhyz")
        for part, (h, y) in enumerate(zip(outputs, sums, strict=True)):
            name = f"layer_{number + 1:02d}/res_" + (
                "output" if len(sums) == 1 else f"ffn{part + 1}"
            )
            # What goes into a further part is the norm behind the one before.
            x = inputs[:1] if part == 0 else norms[part - 1 : part]
            yield from ((f"{name}_x", address) for address in x)
            yield f"{name}_h", h
            yield f"{name}_x_h", y
