"""Batches for --record_histogram: of training with their gradients, else of calibration or
prediction.
"""

import itertools
from typing import Any

import numpy as np

from runs.batches import only
from runs.histograms import BATCHES, record_histograms
from runs.squad.data import INPUTS, LABELS, read_examples, to_features
from runs.squad.flags import Settings
from runs.squad.losses import squad_loss
from tasks import squad
from tfquant.distributed.group import Group


def record(
    network: Any, tokenizer: squad.LibraryTokenizer, settings: Settings, group: Group
) -> dict[str, Any]:
    """Record the exponents of a network after its work; return figures."""
    trains = settings.do_train and not settings.do_calib
    labelled = trains or settings.do_calib
    size = settings.train_batch_size if labelled else settings.predict_batch_size
    path = settings.train_file if labelled else settings.predict_file
    examples = read_examples(path, settings, training=labelled)
    # A question has at least one window.
    drawn = np.random.default_rng(settings.seed).permutation(len(examples))[: BATCHES * size]
    features = to_features([examples[i] for i in drawn], tokenizer, settings, training=labelled)
    batches = squad.batches(features, size, training=labelled, seed=settings.seed)
    names = INPUTS + LABELS if trains else INPUTS
    return record_histograms(
        network,
        [only(batch, names) for batch in itertools.islice(batches, BATCHES)],
        squad_loss if trains else None,
        settings.output_dir,
        group,
    )
