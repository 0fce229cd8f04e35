"""Task heads.

The scores of a task, and what some architectures compute from the first token before them.
"""

import keras
from keras import ops

from encoders.layers import ACTIVATIONS, Dropout, precise, seed_stream


class Head(keras.layers.Layer):
    """Scores on top of an encoder: dropout and a dense layer whose weights are stored as Google
    stores those of its heads.

    That is `output_weights` [units, H], applied transposed, and `output_bias` [units]. Takes [...,
    H], returns [..., units]. The layer keeps float32 under any policy but float64.

    Args:
        units: number of scores.
        scope: what the names of the weights begin with; "cls/squad" for SQuAD, empty for
          classification.
        dropout_rate: for the input, in training.
        initializer_range: standard deviation of the truncated normal that the weights start with.
        seed: see `Backbone`.
    """

    def __init__(
        self,
        units,
        *,
        scope="",
        dropout_rate=0.0,
        initializer_range=0.02,
        seed=None,
        name=None,
        dtype=None,
        **kwargs,
    ):
        super().__init__(
            name=name, dtype=precise(keras.dtype_policies.get(dtype).compute_dtype), **kwargs
        )
        self.units = units
        self.scope = scope
        self.initializer_range = initializer_range
        self.seed = seed
        self.dropout = Dropout(dropout_rate, seed, dtype=self.dtype_policy)

    def build(self, input_shape):
        self.dropout.build(input_shape)
        initializer = keras.initializers.TruncatedNormal(
            stddev=self.initializer_range, seed=self.seed
        )
        # add_weight would put the layer's own name in front.
        parent, _, last = self.scope.rpartition("/")
        with keras.name_scope(last, override_parent=parent):
            shape, dtype = (self.units, input_shape[-1]), self.variable_dtype
            self.kernel = keras.Variable(initializer, shape, dtype=dtype, name="output_weights")
            self.bias = keras.Variable("zeros", (self.units,), dtype=dtype, name="output_bias")

    def call(self, x):
        return ops.matmul(self.dropout(x), ops.transpose(self.kernel)) + self.bias

    def get_config(self):
        own = {"units": self.units, "scope": self.scope, "dropout_rate": self.dropout.rate}
        return (
            super().get_config()
            | own
            | {
                "initializer_range": self.initializer_range,
                "seed": self.seed,
            }
        )


class FirstToken(keras.layers.Layer):
    """The hidden layer of a classification head: dropout, dense and activation on the first token,
    [B, S, H] -> [B, H].

    Its weights are `<name>/dense/kernel` and `<name>/dense/bias`.

    Args:
        activation: one of `ACTIVATIONS`.
        dropout_rate: for the input, in training.
        initializer_range: standard deviation of the truncated normal that the kernel starts with.
        seed: see `Backbone`.
    """

    def __init__(
        self,
        activation,
        *,
        dropout_rate=0.0,
        initializer_range=0.02,
        seed=None,
        name=None,
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.activation = activation
        self.initializer_range = initializer_range
        self.seed = seed
        # Other seeds than those of the encoder and of the scores, which draw from the same one.
        seeds = seed_stream(None if seed is None else f"{seed}/{self.name}")
        self.dropout = Dropout(dropout_rate, next(seeds), dtype=self.dtype_policy)
        self.initializer = keras.initializers.TruncatedNormal(
            stddev=initializer_range, seed=next(seeds)
        )

    def build(self, input_shape):
        self.dropout.build(input_shape)
        self.dense = keras.layers.Dense(
            input_shape[-1],
            activation=ACTIVATIONS[self.activation],
            kernel_initializer=self.initializer,
            name="dense",
            dtype=self.dtype_policy,
        )
        self.dense.build((None, input_shape[-1]))

    def call(self, x):
        return self.dense(self.dropout(x[:, 0]))

    def get_config(self):
        own = {"activation": self.activation, "dropout_rate": self.dropout.rate}
        return (
            super().get_config()
            | own
            | {
                "initializer_range": self.initializer_range,
                "seed": self.seed,
            }
        )
