"""A run of run_wikitext.py from its settings to its figures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import keras_hub
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from calib.tables import build, render
from examples.presets import load_preset
from examples.quantizing import quantize, recipe_of, write_results
from examples.wikitext import text
from examples.wikitext.settings import Settings
from examples.wikitext.windows import Windows, make_windows, perplexity
from fileio.messages import printable
from runs.logging import log

_INPUTS = {"token_ids", "padding_mask"}


def run(settings: Settings) -> dict[str, Any]:
    """Score the text with the float network and, with `--recipe`, with the quantized one.

    Args:
        settings: that `check` has passed.

    Returns:
        The figures, which results.json holds as well.
    """
    model = load_model(settings)
    assert settings.text_file is not None
    windows = windows_of(model, settings.text_file, settings)
    # First, as it may refuse the recipe or its data.
    quantized = quantized_network(model, settings) if settings.recipe else None
    figures: dict[str, Any] = {"windows": len(windows.token_ids)}
    figures["float"] = score(model, windows, settings, "float")
    if quantized is not None:
        network, report = quantized
        figures["quantized"] = score(network, windows, settings, "quantized") | report
    write_results(settings, figures)
    log(table(figures))
    return figures


def load_model(settings: Settings) -> Any:
    """Return the causal language model of `--preset`.

    Raises:
        ValueError: the preset cannot be loaded, has no tokenizer, or takes other inputs than
            tokens.
    """
    model = load_preset(keras_hub.models.CausalLM, settings.preset or "", dtype=settings.dtype)
    where = f"--preset={printable(settings.preset)}"
    if getattr(model.preprocessor, "tokenizer", None) is None:
        raise ValueError(f"{where}: has no tokenizer; save the whole task with save_to_preset")
    names = set(model.input) if isinstance(model.input, dict) else set()
    if names != _INPUTS:
        raise ValueError(
            f"{where}: {type(model).__name__} takes {', '.join(sorted(names)) or 'other inputs'};"
            f" perplexity needs a model of {' and '.join(sorted(_INPUTS))}"
        )
    longest = getattr(model.backbone, "max_sequence_length", None)
    if longest is not None and settings.max_length > longest:
        raise ValueError(
            f"--max_length={settings.max_length}: the model takes at most {longest} tokens"
        )
    log(f"loaded {type(model).__name__} from {settings.preset}")
    return model


def windows_of(model: Any, path: str, settings: Settings) -> Windows:
    """Return the windows over a text.

    Raises:
        FileNotFoundError, ValueError: it cannot be read, is too short, or its tokens are not those
            of the model.
    """
    content = text.read(path, join_lines=settings.join_lines, tfds_dir=settings.tfds_dir)
    ids = text.tokenize(model.preprocessor.tokenizer, content, settings.start_token)
    size = model.backbone.vocabulary_size
    if len(ids) and not 0 <= ids.min() <= ids.max() < size:
        raise ValueError(
            f"{printable(path)}: token {ids.min() if ids.min() < 0 else ids.max()} is none of the"
            f" model's {size}; text and tokenizer do not fit"
        )
    try:
        windows = make_windows(ids, settings.max_length, settings.stride)
    except ValueError as error:
        raise ValueError(f"{printable(path)}: {error}") from None
    log(f"{path}: {len(ids)} tokens, {len(windows.token_ids)} windows")
    return windows


def quantized_network(model: Any, settings: Settings) -> tuple[Any, dict[str, Any]]:
    """Return the network quantized by `--recipe`, and figures of that."""
    batches: list[dict[str, np.ndarray]] = []
    if settings.calibration_file:
        windows = windows_of(model, settings.calibration_file, settings)
        batches = [
            inputs_of(ids)
            for _, ids in zip(
                range(settings.calibration_steps),
                batches_of(windows, settings.batch_size),
                strict=False,
            )
        ]
    network, _, report = quantize(
        model, recipe_of(settings), batches, source="--calibration_file=FILE"
    )
    return network, report


def batches_of(windows: Windows, size: int) -> Iterator[np.ndarray]:
    """Yield the token ids of batches of `size` windows; the last may be smaller."""
    for first in range(0, len(windows.token_ids), size):
        yield windows.token_ids[first : first + size]


def inputs_of(token_ids: Any) -> dict[str, Any]:
    """Return the inputs of a model for windows, which have no padding."""
    ones = np.ones_like if isinstance(token_ids, np.ndarray) else tf.ones_like
    return {"token_ids": token_ids, "padding_mask": ones(token_ids)}


def loss_function(network: keras.Model, length: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from token ids to the losses of a network's predictions.

    Args:
        network: of token ids and padding masks, returns logits.
        length: tokens in a window.

    Returns:
        [windows, length] -> negative log likelihoods in nats, float32 [windows, length - 1].
    """

    @tf.function(
        input_signature=[tf.TensorSpec([None, length], tf.int32)],
        autograph=False,
        jit_compile=False,
    )
    def losses(token_ids):
        logits = network(inputs_of(token_ids), training=False)
        # Log likelihoods in bfloat16 would have two digits.
        return tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=token_ids[:, 1:], logits=tf.cast(logits[:, :-1], tf.float32)
        )

    return lambda token_ids: losses(tf.constant(token_ids)).numpy()


def score(network: Any, windows: Windows, settings: Settings, name: str) -> dict[str, Any]:
    """Return the perplexity of a network and the time it took.

    Args:
        network: float or quantized.
        windows: over the text.
        settings: of the run.
        name: of the network, for the progress bar.
    """
    losses = loss_function(network, settings.max_length)
    started, result = time.perf_counter(), []
    with tqdm(total=len(windows.token_ids), desc=name, unit="window") as bar:
        for batch in batches_of(windows, settings.batch_size):
            result.append(losses(batch))
            bar.update(len(batch))
    found = perplexity(np.concatenate(result), windows)
    seconds = round(time.perf_counter() - started, 2)
    return found.figures() | {"scored_tokens": found.scored_tokens, "seconds": seconds}


def summary(settings: Settings, figures: dict[str, Any]) -> dict[str, Any]:
    """Return the last line of stdout: perplexities, and where the rest is."""
    result: dict[str, Any] = {}
    for network in ("float", "quantized"):
        if network in figures:
            result |= {
                f"{network}_{name}": figures[network][name]
                for name in ("perplexity", "token_perplexity")
            }
    if settings.output_dir:
        result["results"] = os.path.join(settings.output_dir, "results.json")
    return result


def table(figures: dict[str, Any]) -> str:
    """Return perplexities of both networks as a table."""
    rows = []
    for name in ("float", "quantized"):
        if name in figures:
            one = figures[name]
            loss = one["perplexity"] - figures["float"]["perplexity"]
            rows.append(
                [
                    one.get("recipe", "float"),
                    str(one.get("sites", 0)),
                    f"{one['perplexity']:.4f}",
                    f"{loss:+.4f}",
                    f"{one['token_perplexity']:.4f}",
                    f"{one['seconds']:.1f}",
                ]
            )
    columns = ["network", "sites", "perplexity", "difference", "by token", "seconds"]
    return render(build(None, columns, rows, left=["network"]))
