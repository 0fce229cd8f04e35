"""Names of weights: from those of Hugging Face's files to those of the variables here, one to one.

BERT's variables have the names that Google's TensorFlow 1 code gave them; the other architectures
have the same below a scope of their own (`distilbert/encoder/layer_0/attention/self/query/kernel`),
whatever Hugging Face calls them.
"""

import re
from collections.abc import Iterable

ARCHITECTURES = ("bert", "roberta", "distilbert", "mobilebert")

# What the names of weights of task heads begin with: those that a checkpoint of a bare encoder
# lacks.
HEAD_NAMES = ("cls/squad/", "output_weights", "output_bias", "classifier/", "pre_classifier/")

# Hugging Face's name -> (variable, whether the matrix has to be transposed)
_HEADS = {
    "qa_outputs.weight": ("cls/squad/output_weights", False),
    "qa_outputs.bias": ("cls/squad/output_bias", False),
    "classifier.weight": ("output_weights", False),
    "classifier.bias": ("output_bias", False),
}
_OWN_HEADS = {
    "roberta": {
        "classifier.dense.weight": ("classifier/dense/kernel", True),
        "classifier.dense.bias": ("classifier/dense/bias", False),
        "classifier.out_proj.weight": ("output_weights", False),
        "classifier.out_proj.bias": ("output_bias", False),
    },
    "distilbert": (
        _HEADS
        | {
            "pre_classifier.weight": ("pre_classifier/dense/kernel", True),
            "pre_classifier.bias": ("pre_classifier/dense/bias", False),
        }
    ),
}

# DistilBERT's names for the layers that BERT has too.
_OF_DISTILBERT = {
    "attention.q_lin": "attention.self.query",
    "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value",
    "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm",
    "ffn.lin1": "intermediate.dense",
    "ffn.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm",
}


def architecture_of(variables: Iterable[str]) -> str:
    """The architecture that paths of variables belong to, told by the scope of the encoder; "bert"
    where none fits.
    """
    scopes = {path.partition("/")[0] for path in variables}
    return next((name for name in ARCHITECTURES if name in scopes), "bert")


def google_name(name: str) -> tuple[str, bool]:
    """Google's name of a Hugging Face BERT weight, see `variable_name`."""
    return variable_name(name, "bert")


def bundle_name(name: str, architecture: str) -> str:
    """Return the name here of a variable of a TensorFlow checkpoint, Google's or our own.

    Google's MobileBERT has its weights below `bert/`, and other names for NoNorm and for the inner
    feed-forward networks.

    Args:
        name: as it stands in the file.
        architecture: one of `ARCHITECTURES`.
    """
    if architecture != "mobilebert" or not name.startswith("bert/"):
        return name
    name = name.replace("/FakeLayerNorm/", "/LayerNorm/").replace("/ffn_layer_", "/ffn_")
    return f"mobile{name}"


def variable_name(name: str, architecture: str) -> tuple[str, bool]:
    """The name here of a Hugging Face weight, and whether its matrix has to be transposed.

    Linear layers are stored [out, in] there and [in, out] here; embeddings and the scores of heads
    are alike. A name outside the architecture comes back as it is, to be listed as left over.

    Args:
        name: as it stands in the file, with or without the prefix of the encoder (`bert.`).
        architecture: one of `ARCHITECTURES`.
    """
    heads = {
        key: value for key, value in _HEADS.items() if key.startswith("qa_outputs")
    } | _OWN_HEADS.get(architecture, _HEADS)
    if name in heads:
        return heads[name]
    if name.startswith("cls."):
        return name.replace(".", "/"), False
    bare = name.removeprefix(f"{architecture}.")
    if architecture == "distilbert":
        bare = _as_bert(bare)
    if table := re.fullmatch(r"embeddings\.(word|token_type|position)_embeddings\.weight", bare):
        return f"{architecture}/embeddings/{table[1]}_embeddings", False
    if norm := re.fullmatch(r"(embeddings|encoder\..*)\.LayerNorm\.(weight|gamma|bias|beta)", bare):
        scope, parameter = norm[1], "gamma" if norm[2] in ("weight", "gamma") else "beta"
        return f"{architecture}/{_scope(scope)}/LayerNorm/{parameter}", False
    linear = (
        r"(encoder\.layer\.\d+\..*|pooler\.dense|embeddings\.embedding_transformation)"
        r"\.(weight|bias)"
    )
    if dense := re.fullmatch(linear, bare):
        kernel = dense[2] == "weight"
        return f"{architecture}/{_scope(dense[1])}/{'kernel' if kernel else 'bias'}", kernel
    return name, False


def _as_bert(bare: str) -> str:
    """The name that BERT would give to a weight of a DistilBERT layer."""
    match = re.fullmatch(r"transformer\.(layer\.\d+)\.(.*)\.(weight|bias)", bare)
    return (
        f"encoder.{match[1]}.{_OF_DISTILBERT[match[2]]}.{match[3]}"
        if match and match[2] in _OF_DISTILBERT
        else bare
    )


def _scope(dotted: str) -> str:
    dotted = re.sub(r"^encoder\.layer\.(\d+)", r"encoder.layer_\1", dotted)
    return re.sub(r"\.ffn\.(\d+)\.", r".ffn_\1.", dotted).replace(".", "/")
