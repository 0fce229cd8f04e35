"""Loading of KerasHub presets."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from fileio.messages import printable
from tfquant.error_messages import one_line


def load_preset(kind: Any, preset: str, **options: Any) -> Any:
    """Return `kind.from_preset(preset)`.

    Args:
        kind: class of KerasHub: a task, backbone, tokenizer or converter.
        preset: name, address or folder.
        **options: of `from_preset`.

    Raises:
        ValueError: there is no such preset, or it holds something else.
    """
    try:
        return kind.from_preset(preset, **options)
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise
    except Exception as error:  # of KerasHub, Keras, Kaggle, Hugging Face and their downloads
        raise ValueError(
            f"--preset={printable(preset)}: no {kind.__name__} can be loaded from it"
            f" ({one_line(error, 300)}); name another preset or the folder of one"
        ) from error
