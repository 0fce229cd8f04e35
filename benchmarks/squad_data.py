"""The real model and data that the benchmarks share: MiniLM fine-tuned on a part of SQuAD v1.1."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
from tqdm.auto import tqdm

import modeling
import squad_evaluate
from tasks.squad import (
    Features,
    RawScores,
    SquadExample,
    Tokenizer,
    batches,
    convert,
    decode,
    read_squad,
)

INPUTS = ("input_ids", "input_mask", "segment_ids")


@dataclasses.dataclass(frozen=True)
class Squad:
    """Files below the folder of shared data.

    Attributes:
      folder: holds `models/minilm_squad` and `data/squad`.
    """

    folder: pathlib.Path

    def __post_init__(self):
        for path in (self.model_dir, self.train_file, self.dev_file):
            if not path.exists():
                raise FileNotFoundError(
                    f"{path} does not exist: name the folder with the real data with --shared"
                )

    @property
    def model_dir(self) -> pathlib.Path:
        return self.folder / "models" / "minilm_squad"

    @property
    def train_file(self) -> pathlib.Path:
        return self.folder / "data" / "squad" / "train-v1.1-subset.json"

    @property
    def dev_file(self) -> pathlib.Path:
        return self.folder / "data" / "squad" / "dev-v1.1-part.json"

    def model(self, dropout: bool = False, dtype: str | None = None):
        """The fine-tuned SQuAD model."""
        config = modeling.BertConfig.from_json_file(self.model_dir / "config.json")
        model = modeling.build_squad_model(config, dropout=dropout, dtype=dtype)
        modeling.load_weights(model, self.model_dir)
        return model

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.model_dir / "vocab.txt", lower_case=True)

    def calibration_batches(
        self, windows: int = 256, batch_size: int = 16, seed: int = 12345
    ) -> list[dict[str, np.ndarray]]:
        """`windows` windows of the training file, drawn by `seed`, as model inputs."""
        examples = read_squad(self.train_file, training=True)
        order = np.random.default_rng(seed).permutation(len(examples))[: 2 * windows]
        features = convert(
            [examples[i] for i in order], self.tokenizer(), training=False, progress=False
        )
        chosen = batches(features, batch_size, training=False, bucket_by_length=True)
        picked = np.random.default_rng(seed).permutation(len(chosen))[: windows // batch_size]
        return [{name: chosen[int(i)][name] for name in INPUTS} for i in sorted(picked)]


class DevSet:
    """Questions of the dev file, converted once, to score models on."""

    def __init__(self, squad: Squad, questions: int | None = None, batch_size: int = 16):
        self.examples: list[SquadExample] = read_squad(squad.dev_file, training=False)
        self.dataset = json.loads(squad.dev_file.read_text())
        if questions:
            self.examples = self.examples[:: max(1, len(self.examples) // questions)][:questions]
            self.dataset = _restricted(self.dataset, {e.id for e in self.examples})
        self.features: Features = convert(
            self.examples, squad.tokenizer(), training=False, progress=False
        )
        self.batches = batches(self.features, batch_size, training=False)

    def answers(self, predict, label: str = "predicting") -> dict[str, str]:
        """Question id -> answer of `predict`: model inputs -> `start_logits` and `end_logits`."""
        scores = RawScores(self.features)
        for batch in tqdm(self.batches, label, unit="batch", leave=False):
            logits = predict({name: batch[name] for name in INPUTS})
            scores.add(batch["unique_ids"], logits["start_logits"], logits["end_logits"])
        return decode(self.examples, scores).answers

    def score(self, predict, label: str = "predicting") -> dict[str, float]:
        """`exact_match` and `f1`, in percent."""
        return self.scores_of(self.answers(predict, label))

    def scores_of(self, answers: dict[str, str]) -> dict[str, float]:
        """`exact_match` and `f1` of answers, in percent."""
        return squad_evaluate.evaluate(self.dataset, answers)


def _restricted(dataset: dict, ids: Iterable[str]) -> dict:
    """The data set with some of its questions."""
    ids = set(ids)

    def paragraphs(article) -> Iterator[dict]:
        for paragraph in article["paragraphs"]:
            kept = [q for q in paragraph["qas"] if q["id"] in ids]
            if kept:
                yield {**paragraph, "qas": kept}

    return {**dataset, "data": [{**a, "paragraphs": list(paragraphs(a))} for a in dataset["data"]]}
