"""Small random configurations of KerasHub's text, audio and encoder-decoder backbones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras_hub
from keras_hub import models

_ENCODER = dict(vocabulary_size=50, num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32)
_DECODER = dict(
    vocabulary_size=50,
    num_layers=2,
    num_query_heads=4,
    num_key_value_heads=2,
    hidden_dim=16,
    intermediate_dim=32,
)
_T5GEMMA = dict(
    vocabulary_size=50,
    encoder_hidden_dim=16,
    encoder_intermediate_dim=32,
    encoder_num_layers=2,
    encoder_num_attention_heads=4,
    encoder_num_key_value_heads=2,
    encoder_head_dim=4,
    encoder_layer_types=["sliding_attention", "full_attention"],
    decoder_hidden_dim=16,
    decoder_intermediate_dim=32,
    decoder_num_layers=2,
    decoder_num_attention_heads=4,
    decoder_num_key_value_heads=2,
    decoder_head_dim=4,
    decoder_layer_types=["sliding_attention", "full_attention"],
    sliding_window=4,
    cross_attention_hidden_size=16,
)
_LINEAR_ATTENTION = dict(
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=4,
    linear_value_head_dim=4,
    linear_conv_kernel_dim=2,
    layer_types=["linear_attention", "full_attention"],
)


def text_backbones() -> dict[str, Callable[[], Any]]:
    """Return a builder for every text backbone, by class name."""
    return {
        **_encoders(),
        **_decoders(),
        **_mixtures_of_experts(),
        **_encoder_decoders(),
    }


def _encoders() -> dict[str, Callable[[], Any]]:
    return {
        "AlbertBackbone": lambda: models.AlbertBackbone(**_ENCODER, embedding_dim=8),
        "BertBackbone": lambda: models.BertBackbone(**_ENCODER),
        "DebertaV3Backbone": lambda: models.DebertaV3Backbone(**_ENCODER, bucket_size=4),
        "DistilBertBackbone": lambda: models.DistilBertBackbone(**_ENCODER),
        "ESMBackbone": lambda: models.ESMBackbone(**_ENCODER),
        "ElectraBackbone": lambda: models.ElectraBackbone(
            vocab_size=50,
            num_layers=2,
            num_heads=2,
            hidden_dim=16,
            embedding_dim=8,
            intermediate_dim=32,
        ),
        "FNetBackbone": lambda: models.FNetBackbone(
            vocabulary_size=50, num_layers=2, hidden_dim=16, intermediate_dim=32
        ),
        "RobertaBackbone": lambda: models.RobertaBackbone(**_ENCODER),
        "RoformerV2Backbone": lambda: models.RoformerV2Backbone(**_ENCODER, head_size=8),
        "XLMRobertaBackbone": lambda: models.XLMRobertaBackbone(**_ENCODER),
        "XLNetBackbone": lambda: models.XLNetBackbone(**_ENCODER),
    }


def _decoders() -> dict[str, Callable[[], Any]]:
    return {
        "BloomBackbone": lambda: models.BloomBackbone(**_ENCODER),
        "FalconBackbone": lambda: models.FalconBackbone(
            vocabulary_size=50,
            num_layers=2,
            num_attention_heads=2,
            hidden_dim=16,
            intermediate_dim=32,
        ),
        "GPT2Backbone": lambda: models.GPT2Backbone(**_ENCODER),
        "GPTNeoXBackbone": lambda: models.GPTNeoXBackbone(**_ENCODER),
        "Gemma3Backbone": lambda: models.Gemma3Backbone(**_DECODER, head_dim=4, image_size=16),
        "Gemma3nBackbone": _gemma3n,
        "Gemma4Backbone": lambda: models.Gemma4Backbone(**_DECODER, head_dim=4, image_size=16),
        "GemmaBackbone": lambda: models.GemmaBackbone(**_DECODER, head_dim=4),
        "Llama3Backbone": lambda: models.Llama3Backbone(**_DECODER),
        "LlamaBackbone": lambda: models.LlamaBackbone(**_DECODER),
        "MistralBackbone": lambda: models.MistralBackbone(**_DECODER, sliding_window=4),
        "OPTBackbone": lambda: models.OPTBackbone(**_ENCODER),
        "Phi3Backbone": lambda: models.Phi3Backbone(**_DECODER),
        "Qwen3Backbone": lambda: models.Qwen3Backbone(**_DECODER, head_dim=4),
        "Qwen3_5Backbone": lambda: models.Qwen3_5Backbone(
            **_DECODER, head_dim=8, **_LINEAR_ATTENTION
        ),
        "QwenBackbone": lambda: models.QwenBackbone(**_DECODER),
        "RWKV7Backbone": lambda: models.RWKV7Backbone(
            hidden_size=16,
            head_size=8,
            num_layers=2,
            vocabulary_size=50,
            intermediate_dim=32,
            gate_lora=4,
            mv_lora=4,
            aaa_lora=4,
            decay_lora=4,
        ),
        "SmolLM3Backbone": lambda: models.SmolLM3Backbone(
            vocabulary_size=50,
            hidden_dim=16,
            intermediate_dim=32,
            num_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            attention_bias=False,
            attention_dropout=0.0,
            rope_layer_enabled_list=[True, False],
            layer_types=["full_attention", "full_attention"],
            mlp_bias=False,
            layer_norm_epsilon=1e-5,
            max_position_embeddings=32,
            rope_theta=10000.0,
            partial_rotary_factor=1.0,
        ),
    }


def _mixtures_of_experts() -> dict[str, Callable[[], Any]]:
    return {
        "GptOssBackbone": lambda: models.GptOssBackbone(
            **_DECODER, num_experts=2, top_k=1, head_dim=4, sliding_window=4
        ),
        "MixtralBackbone": lambda: models.MixtralBackbone(
            **_DECODER, num_experts=2, top_k=1, sliding_window=4
        ),
        "Qwen3MoeBackbone": lambda: models.Qwen3MoeBackbone(
            **_DECODER, moe_intermediate_dim=16, num_experts=2, head_dim=4, top_k=1
        ),
        "Qwen3_5MoeBackbone": lambda: models.Qwen3_5MoeBackbone(
            **{key: value for key, value in _DECODER.items() if key != "intermediate_dim"},
            head_dim=8,
            moe_intermediate_dim=16,
            shared_expert_intermediate_size=16,
            num_experts=2,
            top_k=1,
            **_LINEAR_ATTENTION,
        ),
        "QwenMoeBackbone": lambda: models.QwenMoeBackbone(
            **_DECODER,
            moe_intermediate_dim=16,
            shared_expert_intermediate_dim=16,
            num_experts=2,
            top_k=1,
        ),
    }


def _encoder_decoders() -> dict[str, Callable[[], Any]]:
    return {
        "BartBackbone": lambda: models.BartBackbone(**_ENCODER),
        "EdRecBackbone": lambda: models.EdRecBackbone(
            vocab_size=50,
            num_layers_enc=2,
            num_layers_dec=2,
            num_heads=2,
            hidden_dim=16,
            intermediate_dim=32,
        ),
        "MoonshineBackbone": lambda: models.MoonshineBackbone(
            vocabulary_size=50,
            filter_dim=16,
            encoder_num_layers=1,
            decoder_num_layers=1,
            hidden_dim=16,
            intermediate_dim=32,
            encoder_num_heads=2,
            decoder_num_heads=2,
        ),
        "T5Backbone": lambda: models.T5Backbone(**_ENCODER),
        "T5Gemma2Backbone": lambda: models.T5Gemma2Backbone(**_T5GEMMA),
        "T5GemmaBackbone": lambda: models.T5GemmaBackbone(**_T5GEMMA),
        "WhisperBackbone": lambda: models.WhisperBackbone(
            **_ENCODER,
            num_mels=8,
            max_encoder_sequence_length=16,
            max_decoder_sequence_length=16,
        ),
    }


def _gemma3n() -> Any:
    return keras_hub.models.Gemma3nBackbone(
        text_vocab_size=50,
        text_hidden_size=8,
        num_hidden_layers=1,
        pad_token_id=0,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=[16],
        hidden_activation="gelu_approximate",
        layer_types=["full_attention"],
        sliding_window=4,
        rope_theta=10000.0,
        max_position_embeddings=16,
        vocab_size_per_layer_input=50,
        hidden_size_per_layer_input=2,
        altup_num_inputs=2,
        laurel_rank=1,
    )
