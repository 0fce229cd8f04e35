"""MobileBERT in NumPy, double precision, written from the paper (Sun et al.

2020, sections 3 and A) on Hugging Face's weights.
"""

import numpy as np
import scipy.special


def mobilebert_states(
    config: dict, weights: dict[str, np.ndarray], batch: dict[str, np.ndarray]
) -> np.ndarray:
    """Hidden states [B, S, H] behind the last layer."""
    return _Reference(config, weights).states(**batch)


class _Reference:
    def __init__(self, config: dict, weights: dict[str, np.ndarray]):
        self.config = config
        self.weights = {
            name.removeprefix("mobilebert."): value.astype(np.float64)
            for name, value in weights.items()
        }

    def states(self, input_ids, input_mask, segment_ids) -> np.ndarray:
        x = self.embeddings(input_ids, segment_ids)
        for i in range(self.config["num_hidden_layers"]):
            x = self.layer(f"encoder.layer.{i}", x, input_mask)
        return x

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: np.ndarray, default_epsilon: bool = False) -> np.ndarray:
        if self.config["normalization_type"] == "layer_norm":
            epsilon = 1e-5 if default_epsilon else self.config["layer_norm_eps"]
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
        return x * self.weights[f"{name}.LayerNorm.weight"] + self.weights[f"{name}.LayerNorm.bias"]

    def embeddings(self, ids, segments) -> np.ndarray:
        tables = {
            name: self.weights[f"embeddings.{name}_embeddings.weight"]
            for name in ("word", "position", "token_type")
        }
        x = tables["word"][ids]
        if self.config["trigram_input"]:
            following, previous = np.zeros_like(x), np.zeros_like(x)
            following[:, :-1], previous[:, 1:] = x[:, 1:], x[:, :-1]
            x = np.concatenate([following, x, previous], -1)
        x = self.linear("embeddings.embedding_transformation", x)
        x = x + tables["position"][: ids.shape[1]] + tables["token_type"][segments]
        return self.norm("embeddings", x, default_epsilon=True)

    def layer(self, scope: str, x: np.ndarray, mask) -> np.ndarray:
        keys, values, skip = x, x, x
        if self.config["use_bottleneck"]:
            skip = self.norm(
                f"{scope}.bottleneck.input", self.linear(f"{scope}.bottleneck.input.dense", x)
            )
            if self.config["use_bottleneck_attention"]:
                keys = values = skip
            else:
                keys = self.norm(
                    f"{scope}.bottleneck.attention",
                    self.linear(f"{scope}.bottleneck.attention.dense", x),
                )
        context = self.attention(f"{scope}.attention.self", keys, values, mask)
        output = f"{scope}.attention.output"
        y = self.norm(output, self.linear(f"{output}.dense", context) + skip)
        for i in range(self.config["num_feedforward_networks"] - 1):
            y = self.norm(f"{scope}.ffn.{i}.output", self.feed_forward(f"{scope}.ffn.{i}", y) + y)
        y = self.norm(f"{scope}.output", self.feed_forward(scope, y) + y, default_epsilon=True)
        if self.config["use_bottleneck"]:
            widening = f"{scope}.output.bottleneck"
            y = self.norm(widening, self.linear(f"{widening}.dense", y) + x)
        return y

    def attention(self, scope: str, keys, values, mask) -> np.ndarray:
        heads = self.config["num_attention_heads"]

        def split(name, x):
            y = self.linear(f"{scope}.{name}", x)
            return y.reshape(*y.shape[:2], heads, -1).transpose(0, 2, 1, 3)

        query, key, value = split("query", keys), split("key", keys), split("value", values)
        scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(query.shape[-1])
        scores = np.where(mask[:, None, None, :] > 0, scores, -np.inf)
        context = scipy.special.softmax(scores, -1) @ value
        return context.transpose(0, 2, 1, 3).reshape(*keys.shape[:2], -1)

    def feed_forward(self, scope: str, x: np.ndarray) -> np.ndarray:
        y = self.linear(f"{scope}.intermediate.dense", x)
        y = np.maximum(y, 0) if self.config["hidden_act"] == "relu" else y * scipy.special.ndtr(y)
        return self.linear(f"{scope}.output.dense", y)
