"""Weights of a tiny model as TensorFlow 1 and Hugging Face programs store them."""

import numpy as np
import tensorflow as tf

import modeling

TINY = modeling.BertConfig(
    vocab_size=11,
    hidden_size=4,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=6,
    max_position_embeddings=7,
)


def values_for(model, seed=0):
    """Random values for every variable of a model, by name."""
    rng = np.random.default_rng(seed)
    return {v.path: rng.normal(size=v.shape).astype(np.float32) for v in model.weights}


def write_bundle(prefix, values):
    """A checkpoint as TensorFlow 1 programs write it."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [
            tf.compat.v1.Variable(value, name=name, dtype=value.dtype)
            for name, value in values.items()
        ]
        session.run(tf.compat.v1.global_variables_initializer())
        return tf.compat.v1.train.Saver(variables).save(
            session, str(prefix), write_meta_graph=False
        )


def hugging_face_name(name, old=False):
    """The name that PyTorch's BERT gives to a variable of Google's, without prefix."""
    heads = {
        "cls/squad/output_weights": "qa_outputs.weight",
        "cls/squad/output_bias": "qa_outputs.bias",
        "output_weights": "classifier.weight",
        "output_bias": "classifier.bias",
    }
    if name in heads:
        return heads[name]
    name = name.removeprefix("bert/").replace("layer_", "layer/").replace("/", ".")
    if name.endswith("_embeddings"):
        return name + ".weight"
    if "LayerNorm" in name:
        return name if old else name.replace("gamma", "weight").replace("beta", "bias")
    return name.replace("kernel", "weight")


def hugging_face_weights(values, prefix="bert.", old=False, dtype=np.float32):
    """The same values as a Hugging Face program would store them: linear layers [out, in]."""
    stored = {}
    for name, value in values.items():
        target = hugging_face_name(name, old)
        if not target.startswith(("qa_outputs", "classifier")):
            target = prefix + target
        stored[target] = np.ascontiguousarray(value.T if name.endswith("kernel") else value).astype(
            dtype
        )
    return stored
