"""Questions as windows, and windows as batches of a model's inputs."""

from collections.abc import Mapping
from typing import Any

from runs.batches import INPUTS as INPUTS
from runs.logging import is_chief, log
from runs.squad.flags import TFDS, Settings
from tasks import squad

LABELS = ("start_positions", "end_positions")

Batch = Mapping[str, Any]


def read_examples(path: str, settings: Settings, *, training: bool) -> list[squad.SquadExample]:
    if path.startswith(TFDS):
        return squad.from_tfds(
            path.removeprefix(TFDS),
            settings.tfds_dir,
            training=training,
            version_2=settings.version_2_with_negative,
        )
    return squad.read_squad(path, training=training, version_2=settings.version_2_with_negative)


def to_features(
    examples: list[squad.SquadExample],
    tokenizer: squad.LibraryTokenizer,
    settings: Settings,
    *,
    training: bool,
):
    features = squad.convert(
        examples,
        tokenizer,
        training=training,
        max_seq_length=settings.max_seq_length,
        doc_stride=settings.doc_stride,
        max_query_length=settings.max_query_length,
        progress=is_chief(),
    )
    if settings.verbose_logging:
        for row in range(min(3, len(features))):
            ids = features.input_ids[features.window(row)].tolist()
            log(f"window {row}: {' '.join(tokenizer.decode_ids(ids))}")
    return features
