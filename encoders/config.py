"""Model configurations."""

import dataclasses
import os
from typing import ClassVar

from encoders.layers import ACTIVATIONS
from fileio.messages import printable
from tasks.files import read_json

MAX_ID = 2**31 - 1  # token ids and positions are int32
MAX_BYTES = 16 << 20  # of a file
MAX_CONSTANT = 1e6
MAX_LAYERS = 1000  # the deepest published encoders have as many
MAX_POSITIONS = 1 << 20  # attention is quadratic in the length
_LARGEST = {
    "num_hidden_layers": MAX_LAYERS,
    "num_feedforward_networks": MAX_LAYERS,
    "max_position_embeddings": MAX_POSITIONS,
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Base class of the configurations of all architectures.

    Fields have the names that Google's and Hugging Face's BERT files use; where an architecture's
    file calls one otherwise, `file_keys` says how. `hidden_act` "gelu" is the exact function, as
    Hugging Face reads it; "gelu_new" and "gelu_pytorch_tanh" are the tanh approximation.
    `layer_norm_eps` is 1e-12 where the file is silent, as in Google's code.

    Raises:
        ValueError: a value of the wrong type or out of range; the message names the key.
    """

    title: ClassVar[str]
    model_type: ClassVar[str]
    file_keys: ClassVar[dict[str, str]] = {}

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if problem := self._problem(field, getattr(self, field.name)):
                raise ValueError(f"{self.title} configuration: {self._label(field.name)} {problem}")
        if self.hidden_act not in ACTIVATIONS:
            label, known = self._label("hidden_act"), ", ".join(ACTIVATIONS)
            raise ValueError(
                f"{self.title} configuration: unknown {label} {_shown(self.hidden_act)}; known:"
                f" {known}"
            )
        for name in self.split_by_heads:
            if getattr(self, name) % self.num_attention_heads:
                raise ValueError(
                    f"{self.title} configuration: {self._label(name)} {getattr(self, name)} is not"
                    f" a multiple of {self._label('num_attention_heads')}"
                    f" {self.num_attention_heads}"
                )

    @staticmethod
    def _problem(field: dataclasses.Field, value) -> str | None:
        """Return the reason why a value is invalid, None if it is valid."""
        name = field.name
        least = 0 if name == "pad_token_id" else 1
        if field.type is int and (type(value) is not int or value < least):
            return (
                f"must be a {'positive' if least else 'non-negative'} integer, got {_shown(value)}"
            )
        most = _LARGEST.get(name, MAX_ID)
        if field.type is int and value > most:
            return f"must be at most {most}, got {_shown(value)}"
        if field.type is bool and type(value) is not bool:
            return f"must be true or false, got {_shown(value)}"
        if field.type is str and not isinstance(value, str):
            return f"must be a string, got {_shown(value)}"
        if field.type == float | None and value is None:
            return None
        if field.type in (float, float | None) and (
            isinstance(value, bool) or not isinstance(value, int | float)
        ):
            return f"must be a number, got {_shown(value)}"
        if "dropout" in name and not 0.0 <= value < 1.0:
            return f"must be in [0, 1), got {_shown(value)}"
        if name in ("initializer_range", "layer_norm_eps"):
            if not value > 0.0:
                return f"must be above 0, got {_shown(value)}"
            if value > MAX_CONSTANT:
                return f"must be at most {MAX_CONSTANT:g}, got {_shown(value)}"
        return None

    @classmethod
    def _label(cls, name: str) -> str:
        key = cls.file_keys.get(name, name)
        return name if key == name else f"{name} ({key} in its file)"

    @property
    def split_by_heads(self) -> tuple[str, ...]:
        """Names of the sizes that attention heads divide among themselves."""
        return ("hidden_size",)

    @property
    def num_parameters(self) -> int:
        """Weights of the encoder, without biases, norms and heads."""
        tables = (
            self.vocab_size + self.max_position_embeddings + getattr(self, "type_vocab_size", 0)
        )
        layer = 4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size
        return tables * self.hidden_size + self.num_hidden_layers * layer

    @property
    def num_segments(self) -> int:
        """Number of segments of a sequence that the network distinguishes."""
        return getattr(self, "type_vocab_size", 1)

    @property
    def max_sequence_length(self) -> int:
        """Largest number of tokens for which there are positions."""
        return self.max_position_embeddings

    @property
    def length_limit(self) -> str:
        """Derivation of `max_sequence_length`, for messages."""
        return f"max_position_embeddings {self.max_position_embeddings}"

    @property
    def attention_output_dropout(self) -> float:
        """Dropout rate behind the output projection of an attention."""
        return self.hidden_dropout_prob

    @property
    def classifier_dropout_prob(self) -> float:
        """Dropout rate before the scores of a classifier."""
        return self.hidden_dropout_prob

    @property
    def squad_dropout_prob(self) -> float:
        """Dropout rate before the scores of a question answering model."""
        return 0.0

    @classmethod
    def from_json_file(cls, path: str | os.PathLike) -> "TransformerConfig":
        """Read Google's `bert_config.json` or Hugging Face's `config.json`; keys that do not
        concern us are ignored.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not JSON, a key is missing or wrong, or the file describes another
              architecture.
        """
        title = f"{cls.title} configuration"
        values = _read(path, title)
        for key, wanted in (
            ("model_type", cls.model_type),
            ("position_embedding_type", "absolute"),
            ("is_decoder", False),
        ):
            if values.get(key, wanted) != wanted:
                raise ValueError(
                    f"{printable(path)}: {key} is {_shown(values[key])}, but only {wanted!r} is"
                    " supported"
                )
        keys = {
            field.name: cls.file_keys.get(field.name, field.name)
            for field in dataclasses.fields(cls)
        }
        required = [
            field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING
        ]
        missing = [keys[name] for name in required if keys[name] not in values]
        if missing:
            raise ValueError(f"{title} {printable(path)} lacks {', '.join(missing)}")
        try:
            return cls(**{name: values[key] for name, key in keys.items() if key in values})
        except ValueError as error:
            raise ValueError(f"{printable(path)}: {error}") from None


@dataclasses.dataclass(frozen=True)
class BertConfig(TransformerConfig):
    """The size of a BERT and its constants, see `TransformerConfig`."""

    title: ClassVar[str] = "BERT"
    model_type: ClassVar[str] = "bert"

    type_vocab_size: int = 2


@dataclasses.dataclass(frozen=True)
class RobertaConfig(TransformerConfig):
    """The size of a RoBERTa and its constants, see `TransformerConfig`.

    The first token has position `pad_token_id` + 1, so that there are positions for that many
    tokens less than `max_position_embeddings`. `classifier_dropout` None is `hidden_dropout_prob`.
    """

    title: ClassVar[str] = "RoBERTa"
    model_type: ClassVar[str] = "roberta"

    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    pad_token_id: int = 1
    classifier_dropout: float | None = None

    def __post_init__(self):
        super().__post_init__()
        for name, rows in (
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings - 1),
        ):
            if self.pad_token_id >= rows:
                problem = (
                    f"pad_token_id {self.pad_token_id} is too large for {name}"
                    f" {getattr(self, name)}"
                )
                raise ValueError(f"RoBERTa configuration: {problem}")

    @property
    def max_sequence_length(self) -> int:
        return self.max_position_embeddings - self.pad_token_id - 1

    @property
    def length_limit(self) -> str:
        return (
            f"{self.max_sequence_length} (max_position_embeddings {self.max_position_embeddings} -"
            " pad_token_id - 1)"
        )

    @property
    def classifier_dropout_prob(self) -> float:
        return (
            self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout
        )


@dataclasses.dataclass(frozen=True)
class DistilBertConfig(TransformerConfig):
    """The size of a DistilBERT and its constants, see `TransformerConfig`."""

    title: ClassVar[str] = "DistilBERT"
    model_type: ClassVar[str] = "distilbert"
    file_keys: ClassVar[dict[str, str]] = {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
    }

    qa_dropout: float = 0.1
    seq_classif_dropout: float = 0.2

    @property
    def attention_output_dropout(self) -> float:
        return 0.0

    @property
    def classifier_dropout_prob(self) -> float:
        return self.seq_classif_dropout

    @property
    def squad_dropout_prob(self) -> float:
        return self.qa_dropout


@dataclasses.dataclass(frozen=True)
class MobileBertConfig(TransformerConfig):
    """The size of a MobileBERT and its constants, see `TransformerConfig`.

    Between layers states are `hidden_size` wide; with `use_bottleneck` a layer works at
    `intra_bottleneck_size`. `classifier_dropout` None is `hidden_dropout_prob`.
    """

    title: ClassVar[str] = "MobileBERT"
    model_type: ClassVar[str] = "mobilebert"

    hidden_act: str = "relu"
    hidden_dropout_prob: float = 0.0
    type_vocab_size: int = 2
    embedding_size: int = 128
    trigram_input: bool = True
    use_bottleneck: bool = True
    intra_bottleneck_size: int = 128
    use_bottleneck_attention: bool = False
    key_query_shared_bottleneck: bool = True
    num_feedforward_networks: int = 4
    normalization_type: str = "no_norm"
    classifier_activation: bool = True
    classifier_dropout: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.normalization_type not in ("no_norm", "layer_norm"):
            result = _shown(self.normalization_type)
            raise ValueError(
                f"MobileBERT configuration: unknown normalization_type {result}; known: no_norm,"
                " layer_norm"
            )
        if self.use_bottleneck and not (
            self.use_bottleneck_attention or self.key_query_shared_bottleneck
        ):
            raise ValueError(
                "MobileBERT configuration: use_bottleneck without use_bottleneck_attention or"
                " key_query_shared_bottleneck is not supported, both are false"
            )

    @property
    def num_parameters(self) -> int:
        """Weights of the encoder, without biases, norms and heads."""
        width, inner = self.hidden_size, self.inner_size
        tables = (
            self.vocab_size * self.embedding_size
            + (self.max_position_embeddings + self.type_vocab_size) * width
        )
        feed_forward = 2 * self.num_feedforward_networks * inner * self.intermediate_size
        layer = 4 * inner**2 + feed_forward + (3 * width * inner if self.use_bottleneck else 0)
        return tables + 3 * self.embedding_size * width + self.num_hidden_layers * layer

    @property
    def split_by_heads(self) -> tuple[str, ...]:
        return ("intra_bottleneck_size",) if self.use_bottleneck else ("hidden_size",)

    @property
    def inner_size(self) -> int:
        """Width of the states inside a layer."""
        return self.intra_bottleneck_size if self.use_bottleneck else self.hidden_size

    @property
    def classifier_dropout_prob(self) -> float:
        return (
            self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout
        )


_BY_MODEL_TYPE = {
    config.model_type: config
    for config in (BertConfig, RobertaConfig, DistilBertConfig, MobileBertConfig)
}


def config_from_file(
    path: str | os.PathLike,
) -> BertConfig | RobertaConfig | DistilBertConfig | MobileBertConfig:
    """Read the configuration of any supported architecture, told by its `model_type`; where there
    is none, as in Google's files, MobileBERT's by its bottleneck, and BERT's.

    Args:
        path: the JSON file, or a directory with a `config.json` or `bert_config.json`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: see `TransformerConfig.from_json_file`; or an architecture that is not
          supported.
    """
    if os.path.isdir(path):
        candidates = [os.path.join(path, name) for name in ("config.json", "bert_config.json")]
        path = next(filter(os.path.isfile, candidates), candidates[0])
    values = _read(path, "model configuration")
    unnamed = "mobilebert" if "intra_bottleneck_size" in values else "bert"
    model_type = values.get("model_type", unnamed)
    if not isinstance(model_type, str) or model_type not in _BY_MODEL_TYPE:
        known = ", ".join(_BY_MODEL_TYPE)
        raise ValueError(
            f"{printable(path)}: model_type {_shown(model_type)} is not supported; supported:"
            f" {known}"
        )
    return _BY_MODEL_TYPE[model_type].from_json_file(path)


def _read(path: str | os.PathLike, title: str) -> dict:
    return read_json(path, title, limit=MAX_BYTES, hint=" (give a bert_config.json or config.json)")


def _shown(value) -> str:
    """A value of a file, short and in one line."""
    return printable(repr(value), 80)
