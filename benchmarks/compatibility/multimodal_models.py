"""Small random configurations of KerasHub's backbones with several modalities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras_hub
from keras_hub import models

from benchmarks.compatibility.vision_models import vae

_TEXT = dict(
    vocabulary_size=50,
    embedding_dim=16,
    hidden_dim=16,
    num_layers=2,
    num_heads=2,
    intermediate_dim=32,
)
_VISION = dict(
    patch_size=8,
    hidden_dim=16,
    num_layers=2,
    num_heads=2,
    intermediate_dim=32,
    image_shape=(16, 16, 3),
)


def multimodal_backbones() -> dict[str, Callable[[], Any]]:
    """Return a builder for every multimodal backbone and its encoders, by class name."""
    return {
        "BLIP2Backbone": _blip2,
        "CLIPBackbone": lambda: models.CLIPBackbone(
            models.CLIPVisionEncoder(**_VISION), models.CLIPTextEncoder(**_TEXT), 8
        ),
        "CLIPTextEncoder": lambda: models.CLIPTextEncoder(**_TEXT),
        "CLIPVisionEncoder": lambda: models.CLIPVisionEncoder(**_VISION),
        "FluxBackbone": lambda: models.FluxBackbone(
            input_channels=8,
            hidden_size=32,
            mlp_ratio=2.0,
            num_heads=2,
            depth=1,
            depth_single_blocks=1,
            axes_dim=[4, 6, 6],
            theta=10000,
            use_bias=True,
            image_shape=(8, 8),
            text_shape=(8, 8),
            image_ids_shape=(8, 3),
            text_ids_shape=(8, 3),
            y_shape=(8,),
        ),
        "MetaCLIP2Backbone": lambda: models.MetaCLIP2Backbone(
            models.MetaCLIP2VisionEncoder(**_VISION), models.MetaCLIP2TextEncoder(**_TEXT), 8
        ),
        "MetaCLIP2TextEncoder": lambda: models.MetaCLIP2TextEncoder(**_TEXT),
        "MetaCLIP2VisionEncoder": lambda: models.MetaCLIP2VisionEncoder(**_VISION),
        "PARSeqBackbone": lambda: models.PARSeqBackbone(
            image_encoder=models.ViTBackbone(
                image_shape=(16, 32, 3),
                patch_size=(4, 8),
                num_layers=1,
                num_heads=2,
                hidden_dim=16,
                mlp_dim=32,
                use_class_token=False,
            ),
            vocabulary_size=50,
            max_label_length=8,
            decoder_hidden_dim=16,
            num_decoder_layers=1,
            num_decoder_heads=2,
            decoder_mlp_dim=32,
            dropout_rate=0.0,
            attention_dropout=0.0,
        ),
        "PaliGemmaBackbone": lambda: models.PaliGemmaBackbone(
            vocabulary_size=50,
            image_size=16,
            num_layers=2,
            num_query_heads=2,
            num_key_value_heads=1,
            hidden_dim=16,
            intermediate_dim=32,
            head_dim=8,
            vit_patch_size=8,
            vit_num_heads=2,
            vit_hidden_dim=16,
            vit_num_layers=2,
            vit_intermediate_dim=32,
        ),
        "SigLIPBackbone": lambda: models.SigLIPBackbone(
            models.SigLIPVisionEncoder(**_VISION),
            models.SigLIPTextEncoder(**_TEXT, max_sequence_length=8),
        ),
        "SigLIPTextEncoder": lambda: models.SigLIPTextEncoder(**_TEXT, max_sequence_length=8),
        "SigLIPVisionEncoder": lambda: models.SigLIPVisionEncoder(**_VISION),
        "SAM3PromptableConceptBackbone": _sam3,
        "StableDiffusion3Backbone": _stable_diffusion,
    }


def _blip2() -> Any:
    from keras_hub.src.models.blip2.blip2_custom_opt import BLIP2CustomOPT
    from keras_hub.src.models.blip2.blip2_qformer import BLIP2QFormer
    from keras_hub.src.models.blip2.blip2_vision_encoder import BLIP2VisionEncoder

    return models.BLIP2Backbone(
        vision_encoder=BLIP2VisionEncoder(
            image_size=16,
            patch_size=8,
            num_layers=2,
            num_heads=2,
            hidden_dim=16,
            intermediate_dim=32,
            use_patch_bias=True,
            use_class_token=True,
            use_mha_bias=True,
            use_mlp_bias=True,
            dropout_rate=0.0,
            layer_norm_epsilon=1e-6,
            initializer_range=0.02,
        ),
        qformer=BLIP2QFormer(
            num_query_tokens=2,
            num_layers=2,
            num_heads=2,
            hidden_dim=16,
            intermediate_dim=32,
            vision_dim=16,
            cross_attention_frequency=1,
            dropout=0.0,
            layer_norm_epsilon=1e-6,
        ),
        language_model=BLIP2CustomOPT(
            vocabulary_size=50,
            num_layers=2,
            num_heads=2,
            hidden_dim=16,
            intermediate_dim=32,
            num_query_tokens=2,
            qformer_hidden_dim=16,
            max_sequence_length=16,
            dropout=0.0,
        ),
    )


def _sam3() -> Any:
    small = dict(hidden_dim=16, intermediate_dim=32, num_heads=2)
    layers = keras_hub.layers
    return models.SAM3PromptableConceptBackbone(
        vision_encoder=layers.SAM3VisionEncoder(
            image_shape=(56, 56, 3),
            patch_size=14,
            num_layers=2,
            **small,
            fpn_hidden_dim=16,
            fpn_scale_factors=[4.0, 2.0, 1.0, 0.5],
            pretrain_image_shape=(28, 28, 3),
            window_size=2,
            global_attn_indexes=[1],
        ),
        text_encoder=layers.SAM3TextEncoder(
            vocabulary_size=50, embedding_dim=16, num_layers=1, **small
        ),
        geometry_encoder=layers.SAM3GeometryEncoder(num_layers=1, **small, roi_size=3),
        detr_encoder=layers.SAM3DetrEncoder(num_layers=1, **small),
        detr_decoder=layers.SAM3DetrDecoder(
            image_shape=(56, 56, 3), patch_size=14, num_layers=1, **small, num_queries=4
        ),
        mask_decoder=layers.SAM3MaskDecoder(num_upsampling_stages=2, hidden_dim=16, num_heads=2),
        dtype="float32",
    )


def _stable_diffusion() -> Any:
    model = models.StableDiffusion3Backbone(
        mmdit_patch_size=2,
        mmdit_hidden_dim=32,
        mmdit_num_layers=1,
        mmdit_num_heads=2,
        mmdit_position_size=16,
        mmdit_qk_norm=None,
        mmdit_dual_attention_indices=None,
        vae=vae(),
        clip_l=models.CLIPTextEncoder(50, 16, 16, 2, 2, 32, "quick_gelu", -2),
        clip_g=models.CLIPTextEncoder(50, 16, 16, 2, 2, 32, "gelu", -2),
        image_shape=(32, 32, 3),
    )
    # The schedule is Python state, which KerasHub's tasks set as well before they trace.
    model.configure_scheduler(1)
    return model
