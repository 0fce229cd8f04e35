"""Weights of a Keras model by variable name, from TensorFlow bundles and Hugging Face safetensors.

Whatever the file, its tensors are first given the model's names
(`bert/encoder/layer_0/attention/self/query/kernel`), then compared with the model's variables;
nothing is assigned unless the whole comparison is clean.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable

import keras
import numpy as np
import tensorflow as tf
from safetensors import SafetensorError, safe_open

from encoders.names import HEAD_NAMES, architecture_of, bundle_name, variable_name
from encoders.names import google_name as google_name
from fileio.bundles import open_bundle
from fileio.messages import printable
from tasks.files import read_json, read_text

# Never weights of a model: optimizer state (Google's, NVIDIA's and ours) and the state of this
# project's training.
_COUNTERS = (
    r"global_step|local_step|(current_)?loss_scale|(num_)?(good|bad)_steps|batch_finite"
    r"|beta[12]_power|save_counter|learning_rate"
)
_SLOTS = (
    r"(adam|lamb)_[mv]|(Adam|AdamW|AdamWeightDecayOptimizer|LAMB|LAMBOptimizer|LAMBWeightDecayOptimizer|Momentum|RMSProp|Adagrad"
    r"|ExponentialMovingAverage|accum)"
)
_IGNORED = re.compile(
    rf"^tfquant/|(^|/)({_COUNTERS})(_\d+)?$|./({_SLOTS})(_\d+)?$|(^|\.)position_ids$"
)

# Weights which many checkpoints hold and many models have no use for. Left over, they are reported,
# not refused: pre-training heads, the pooler (absent from our SQuAD models), ranges of NVIDIA's
# quantized checkpoints, and what Hugging Face's MobileBERT stores without reading it.
_TOLERATED = re.compile(
    r"^cls/(predictions|seq_relationship)/|^(bert|roberta|mobilebert)/pooler/|_quantizer(_\d+)?/quant_(min|max)$"
    r"|^lm_head\.|^vocab_(transform|layer_norm|projector)\."
    r"|^mobilebert/(embeddings/embedding_transformation|encoder/layer_\d+/bottleneck/attention)/"
)

_INDEX_BYTES, _VOCABULARY_BYTES = 64 << 20, 256 << 20  # largest files that are read

# PyTorch's pickles could run code when read; the others are Keras 2's and Flax'.
_OTHER_FORMATS = (".bin", ".pt", ".pth", ".h5", ".msgpack")

# TensorFlow's reader lets the errors of its C++ half through as they come: a short data file is an
# IndexError.
_READER_ERRORS = (tf.errors.OpError, ValueError, IndexError, RuntimeError)


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Report of `load_weights`, in the model's variable names, sorted.

    `loaded` were assigned; `missing` are in the model but not in the checkpoint (allowed; they keep
    their initial values); `unexpected` are in the checkpoint but not in the model.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Stored:
    """A tensor of a checkpoint, not yet read.

    `name` is the file's; shape and values are as the model stores them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def load_weights(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    allow_missing: str | Iterable[str] = (),
    allow_unexpected: str | Iterable[str] = (),
    new_head: bool = False,
) -> LoadReport:
    """Load a checkpoint into the weights of `model`, matching variable names exactly.

    Half-precision and double values become the dtype of the variable. Optimizer slots, counters and
    names below `tfquant/` are ignored. Left-over pre-training heads (`cls/predictions/`,
    `cls/seq_relationship/`, `lm_head.`, `vocab_projector.` and the like), a left-over pooler and
    left-over ranges of quantizers are only reported. Anything else has to fit, and nothing is
    assigned unless all does.

    Args:
        model: a model of `modeling`, or one whose variable paths are Google's names.
        path: the prefix of a name-based TensorFlow checkpoint (`bert_model.ckpt`,
          `model.ckpt-100`), or a
            `.safetensors` file, or a directory with `model.safetensors` (or with shards of it and
            their index) in Hugging Face names, with the prefix `bert.` (`roberta.`, ...) or
            without.
        allow_missing: beginnings of names that the checkpoint may lack or have in another shape,
          such as `modeling.HEAD_NAMES`
            for a fresh head.
        allow_unexpected: beginnings of names that may be left over beside those named above.
        new_head: the checkpoint may be of another task: heads and the pooler may be missing or have
          another shape, and
            whatever does not belong to the encoder may be left over.

    Returns:
        What was loaded, missing and left over.

    Raises:
        FileNotFoundError: no checkpoint at `path`; the message says what was found there instead.
        ValueError: the file is damaged or of another kind; or shapes, dtypes, missing or left-over
          names do not fit
            (all of them listed); or values are not finite.
    """
    path = os.fspath(path)
    variables = {variable.path: variable for variable in model.weights}
    stored = _open(path, architecture_of(variables))
    encoder = f"{architecture_of(variables)}/"
    allowed = _beginnings(allow_missing) + ((*HEAD_NAMES, f"{encoder}pooler/") if new_head else ())
    # What may be missing may also be there in another shape: the head of another task.
    others = {
        n
        for n in variables.keys() & stored.keys()
        if n.startswith(allowed) and tuple(variables[n].shape) != stored[n].shape
    }
    missing = sorted(variables.keys() - stored.keys() | others)
    unexpected = sorted(stored.keys() - variables.keys())
    matched = sorted(variables.keys() & stored.keys() - others)

    problems = [
        f"missing: {name} {list(variables[name].shape)}"
        for name in missing
        if not name.startswith(allowed)
    ]
    allowed = _beginnings(allow_unexpected)
    problems += [
        f"left over: {printable(stored[name].name)} {list(stored[name].shape)}"
        for name in unexpected
        if not _TOLERATED.search(name)
        and not name.startswith(allowed)
        and not (new_head and not name.startswith(encoder))
    ]
    for name in matched:
        wanted, result = tuple(variables[name].shape), stored[name]
        if wanted != result.shape:
            problems.append(
                f"wrong shape: {printable(result.name)} is {list(result.shape)}, the model wants"
                f" {list(wanted)}"
            )
        if result.dtype not in ("float16", "bfloat16", "float32", "float64"):
            problems.append(
                f"wrong dtype: {printable(result.name)} is {result.dtype}, the model wants floating"
                " point numbers"
            )
    if not matched:
        problems.insert(0, "no variable of the model is in the checkpoint")
    _refuse(path, model, problems)

    values = {name: stored[name].read() for name in matched}
    broken = [name for name in matched if not np.isfinite(values[name]).all()]
    _refuse(path, model, [f"NaN or Inf: {printable(stored[name].name)}" for name in broken])
    for name in matched:
        variables[name].assign(values[name])
    return LoadReport(tuple(matched), tuple(missing), tuple(unexpected))


def labels_in(path: str | os.PathLike, architecture: str) -> int | None:
    """Return the number of labels that the classification head of a checkpoint scores, from its
    shapes alone; None if it has no such head.

    Args:
        path: see `load_weights`.
        architecture: `model_type` of the configuration.

    Raises:
        FileNotFoundError, ValueError: see `load_weights`.
    """
    bias = _open(os.fspath(path), architecture).get("output_bias")
    return None if bias is None else bias.shape[0]


def _open(path: str, architecture: str) -> dict[str, _Stored]:
    """The tensors of a checkpoint of either kind under the model's names."""
    if os.path.isdir(path) or path.endswith(".safetensors"):
        return _open_safetensors(path, architecture)
    return _open_bundle(path, architecture)


def _beginnings(names: str | Iterable[str]) -> tuple[str, ...]:
    """Return a tuple of beginnings; a single string is one beginning."""
    return (names,) if isinstance(names, str) else tuple(names)


def _refuse(path: str, model: keras.Model, problems: list[str]) -> None:
    if problems:
        listing = "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(
            f"checkpoint {printable(path)} does not fit the model {model.name!r}; nothing was"
            f" loaded. Give the checkpoint and the configuration that belong together.{listing}"
        )


def _open_bundle(prefix: str, architecture: str) -> dict[str, _Stored]:
    """The tensors of a name-based TensorFlow checkpoint under the model's names, less what is
    ignored.
    """
    if not os.path.isfile(prefix + ".index"):
        raise FileNotFoundError(f"no checkpoint {printable(repr(prefix))}: {_hint(prefix)}")
    try:
        reader = open_bundle(prefix)
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    except _READER_ERRORS as error:
        raise ValueError(
            f"checkpoint {printable(prefix)} cannot be read, {_damaged(error)}"
        ) from error
    if "_CHECKPOINTABLE_OBJECT_GRAPH" in shapes:
        raise ValueError(
            f"checkpoint {printable(prefix)} was written by tf.train.Checkpoint or Keras and is"
            " keyed by objects; a name-based one is wanted (variables called"
            " bert/encoder/layer_0/...)"
        )

    def read(name: str) -> np.ndarray:
        try:
            return np.asarray(reader.get_tensor(name), np.float32)
        except _READER_ERRORS as error:
            place = f"checkpoint {printable(prefix)}: {printable(name)}"
            raise ValueError(
                f"{place} cannot be read, a file of it is damaged or missing:"
                f" {printable(error, 300)}"
            ) from error

    return {
        bundle_name(name, architecture): _Stored(
            name, tuple(shape), dtypes[name].name, lambda name=name: read(name)
        )
        for name, shape in shapes.items()
        if not _IGNORED.search(name)
    }


def _damaged(error: Exception) -> str:
    return f"it is damaged or incomplete: {printable(error, 300)}"


def _hint(prefix: str) -> str:
    """Return a hint about a wrong prefix of a checkpoint, in words."""
    bare = re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", prefix)
    if bare != prefix and os.path.isfile(bare + ".index"):
        return f"that is one of its files, give the prefix {bare!r}"
    if os.path.isfile(prefix):
        if prefix.endswith(_OTHER_FORMATS):
            return "its format is not read, convert it to model.safetensors"
        return (
            "this file is neither a .safetensors file nor the prefix of a TensorFlow checkpoint"
            " (PREFIX.index)"
        )
    folder = os.path.dirname(prefix) or "."
    return (
        f"{printable(prefix)}.index is not there; found in {printable(folder)}:"
        f" {_candidates(folder)}"
    )


def _candidates(folder: str) -> str:
    """The checkpoints in a folder, for an error message."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    result = [
        name.removesuffix(".index") for name in names if name.endswith((".index", ".safetensors"))
    ]
    if result:
        return ", ".join(map(printable, result[:10]))
    if any(name.endswith(_OTHER_FORMATS) for name in names):
        return "only weights in another format (convert them to model.safetensors)"
    return "no checkpoint" if os.path.isdir(folder) else "no such folder"


def _open_safetensors(path: str, architecture: str) -> dict[str, _Stored]:
    """The tensors of a safetensors file, or of a directory's, under the model's names, less what is
    ignored.
    """
    result: dict[str, _Stored] = {}
    for file in _safetensors_files(path):
        try:
            with safe_open(file, framework="np") as content:
                slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118
                shapes = {
                    name: (tuple(part.get_shape()), part.get_dtype())
                    for name, part in slices.items()
                }
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{printable(file)} cannot be read as safetensors, {_damaged(error)}"
            ) from error
        for name, (shape, dtype) in shapes.items():
            if _IGNORED.search(name):
                continue
            target, transposed = variable_name(name, architecture)
            if target in result:
                names = [printable(text) for text in (path, target, result[target].name, name)]
                raise ValueError("{} holds {} twice, as {} and as {}".format(*names))
            dtype = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}.get(
                dtype, dtype
            )
            read = _safetensors_reader(file, name, transposed)
            result[target] = _Stored(name, shape[::-1] if transposed else shape, dtype, read)
    return result


def _safetensors_reader(file: str, name: str, transposed: bool) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        with safe_open(file, framework="np") as content:
            value = content.get_tensor(name).astype(np.float32)
        return value.T if transposed else value

    return read


def _safetensors_files(path: str) -> list[str]:
    """The file itself, or a directory's `model.safetensors`, or the shards that its index names."""
    if not os.path.isdir(path):
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"no such file: {printable(path)}; beside it:"
                f" {_candidates(os.path.dirname(path) or '.')}"
            )
        return [path]
    single, index = (
        os.path.join(path, name) for name in ("model.safetensors", "model.safetensors.index.json")
    )
    if os.path.isfile(single):
        return [single]
    if not os.path.isfile(index):
        raise FileNotFoundError(
            f"no model.safetensors in {printable(path)}; found: {_candidates(path)} (for a"
            " TensorFlow checkpoint give its prefix)"
        )
    shards = _shards(index)
    absent = [shard for shard in shards if not os.path.isfile(os.path.join(path, shard))]
    if absent:
        raise FileNotFoundError(
            f"{printable(index)} names shards that are not there:"
            f" {', '.join(map(printable, absent))}"
        )
    return [os.path.join(path, shard) for shard in shards]


def _shards(index: str) -> list[str]:
    """The files that an index names, all of which lie beside it."""
    shown = f"{printable(index)} is damaged"
    try:
        table = read_json(index, "index", limit=_INDEX_BYTES).get("weight_map")
    except ValueError as error:
        raise ValueError(f"{shown}: no weight_map in it ({error})") from error
    if not isinstance(table, dict) or not table:
        raise ValueError(f"{shown}: no weight_map in it, which maps names of tensors to files")
    for name, shard in table.items():
        place = f"{shown}: weight_map names {printable(repr(shard))} for {printable(name)}"
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise ValueError(f"{place}, which is no name of a .safetensors file")
        if os.path.basename(shard) != shard or "\0" in shard:
            raise ValueError(f"{place}, which is not in the folder of the index")
    return sorted(set(table.values()))


def detect_lower_case(path: str | os.PathLike) -> bool | None:
    """Whether a vocabulary or checkpoint is of an uncased model: True uncased, False cased, None
    when nothing tells.

    A vocabulary tells by its pieces: only a cased one has upper-case letters (more than 1 % of
    pieces with them). Without a vocabulary, `tokenizer_config.json` of the directory tells, then
    "uncased" or "cased" in the name.

    Args:
        path: a `vocab.txt`, a model directory, or the prefix of a checkpoint (the files beside it
          are looked at).

    Raises:
        ValueError: the vocabulary is not UTF-8 text.
    """
    path = os.fspath(path)
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    is_vocabulary = os.path.isfile(path) and not path.endswith((".safetensors", ".json"))
    vocabulary = path if is_vocabulary else os.path.join(folder, "vocab.txt")
    if os.path.isfile(vocabulary):
        lines = read_text(vocabulary, "vocabulary", limit=_VOCABULARY_BYTES).split("\n")
        pieces = [
            line for line in lines if not line.startswith("[") and line.lower() != line.upper()
        ]
        if pieces:
            # Some scripts got a lower case after the vocabularies were made, so a stray capital
            # does not count.
            return sum(piece.lower() != piece for piece in pieces) <= 0.01 * len(pieces)
    settings = os.path.join(folder, "tokenizer_config.json")
    if os.path.isfile(settings):
        try:
            value = read_json(settings, limit=_INDEX_BYTES).get("do_lower_case")
        except ValueError:
            value = None
        if isinstance(value, bool):
            return value
    for part in reversed(os.path.normpath(path).lower().split(os.sep)):
        if "cased" in part:
            return "uncased" in part
    return None
