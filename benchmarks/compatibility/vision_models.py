"""Small random configurations of KerasHub's image and video backbones and of keras.applications."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras_hub import models

IMAGE = (32, 32, 3)
_TRANSFORMER = dict(num_layers=2, num_heads=2, hidden_dim=16)


def vision_backbones() -> dict[str, Callable[[], Any]]:
    """Return a builder for every image backbone, by class name."""
    return {**_transformers(), **_convolutional(), **_mobile(), **_dense_prediction()}


def applications() -> dict[str, Callable[[], Any]]:
    """Return a builder for one member of each of 13 families of keras.applications."""
    small = dict(weights=None, input_shape=(64, 64, 3), classes=10)
    large = dict(weights=None, input_shape=(96, 96, 3), classes=10)
    family = keras.applications
    return {
        "ConvNeXtTiny": lambda: family.ConvNeXtTiny(**small),
        "DenseNet121": lambda: family.DenseNet121(**small),
        "EfficientNetB0": lambda: family.EfficientNetB0(**small),
        "EfficientNetV2B0": lambda: family.EfficientNetV2B0(**small),
        "InceptionResNetV2": lambda: family.InceptionResNetV2(**large),
        "InceptionV3": lambda: family.InceptionV3(**large),
        "MobileNet": lambda: family.MobileNet(**small, alpha=0.25),
        "MobileNetV2": lambda: family.MobileNetV2(**small, alpha=0.35),
        "MobileNetV3Small": lambda: family.MobileNetV3Small(**small),
        "NASNetMobile": lambda: family.NASNetMobile(**small),
        "ResNet50": lambda: family.ResNet50(**small),
        "VGG16": lambda: family.VGG16(**small),
        "Xception": lambda: family.Xception(**large),
    }


def _transformers() -> dict[str, Callable[[], Any]]:
    return {
        "DINOV2Backbone": lambda: models.DINOV2Backbone(
            patch_size=8,
            **_TRANSFORMER,
            intermediate_dim=32,
            image_shape=IMAGE,
            position_embedding_shape=IMAGE,
        ),
        "DINOV3Backbone": lambda: models.DINOV3Backbone(
            patch_size=8, **_TRANSFORMER, intermediate_dim=32, image_shape=IMAGE
        ),
        "DeiTBackbone": lambda: models.DeiTBackbone(
            image_shape=IMAGE, patch_size=8, **_TRANSFORMER, intermediate_dim=32
        ),
        "MiTBackbone": lambda: models.MiTBackbone(
            layerwise_depths=[1, 1],
            num_layers=2,
            layerwise_num_heads=[1, 2],
            layerwise_sr_ratios=[4, 2],
            max_drop_path_rate=0.1,
            layerwise_patch_sizes=[7, 3],
            layerwise_strides=[4, 2],
            image_shape=IMAGE,
            hidden_dims=[8, 16],
        ),
        "SwinTransformerBackbone": lambda: models.SwinTransformerBackbone(
            image_shape=IMAGE, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=4
        ),
        "ViTBackbone": lambda: models.ViTBackbone(
            image_shape=IMAGE, patch_size=8, **_TRANSFORMER, mlp_dim=32
        ),
        "ViTDetBackbone": lambda: vit_det(IMAGE),
        "VideoPrismBackbone": lambda: models.VideoPrismBackbone(
            num_frames=2,
            patch_size=8,
            hidden_dim=16,
            intermediate_dim=32,
            num_heads=2,
            num_spatial_layers=1,
            num_temporal_layers=1,
            num_auxiliary_layers=1,
            vocabulary_size=50,
            num_text_layers=1,
            image_shape=(16, 16, 3),
        ),
    }


def _convolutional() -> dict[str, Callable[[], Any]]:
    return {
        "CSPNetBackbone": lambda: models.CSPNetBackbone(
            stem_filters=8,
            stem_kernel_size=3,
            stem_strides=1,
            stackwise_depth=[1, 1],
            stackwise_strides=2,
            stackwise_num_filters=[8, 16],
            block_type="dark_block",
            bottle_ratio=(0.5, 1.0),
            block_ratio=(1.0, 0.5),
            expand_ratio=(2.0, 1.0),
            stage_type="csp",
            down_growth=True,
            stem_padding="same",
        ),
        "DenseNetBackbone": lambda: models.DenseNetBackbone(
            stackwise_num_repeats=[2, 2], growth_rate=8
        ),
        "HGNetV2Backbone": lambda: hgnet(),
        "ResNetBackbone": lambda: resnet(),
        "VGGBackbone": lambda: models.VGGBackbone(
            stackwise_num_repeats=[1, 1], stackwise_num_filters=[8, 16]
        ),
        "XceptionBackbone": lambda: models.XceptionBackbone(
            stackwise_conv_filters=[[8, 8], [8, 16], [16, 16, 16]],
            stackwise_pooling=[False, True, False],
        ),
        "VAEBackbone": lambda: vae(),
    }


def _mobile() -> dict[str, Callable[[], Any]]:
    return {
        "EfficientNetBackbone": lambda: models.EfficientNetBackbone(
            stackwise_width_coefficients=[1.0, 1.0],
            stackwise_depth_coefficients=[1.0, 1.0],
            stackwise_kernel_sizes=[3, 3],
            stackwise_num_repeats=[1, 2],
            stackwise_input_filters=[8, 8],
            stackwise_output_filters=[8, 16],
            stackwise_expansion_ratios=[1, 4],
            stackwise_squeeze_and_excite_ratios=[0.0, 0.25],
            stackwise_strides=[1, 2],
            stackwise_block_types=["fused", "unfused"],
            stackwise_force_input_filters=[0, 0],
            stackwise_nores_option=[False, False],
            num_features=32,
        ),
        "MobileNetBackbone": lambda: models.MobileNetBackbone(
            stackwise_expansion=[[8], [16, 16]],
            stackwise_num_blocks=[1, 2],
            stackwise_num_filters=[[8], [16, 16]],
            stackwise_kernel_size=[[3], [3, 5]],
            stackwise_num_strides=[[2], [2, 1]],
            stackwise_se_ratio=[[0.25], [None, 0.25]],
            stackwise_activation=[["relu"], ["hard_swish", "hard_swish"]],
            stackwise_padding=[[1], [1, 2]],
            output_num_filters=32,
            depthwise_filters=8,
            depthwise_stride=2,
            depthwise_residual=False,
            last_layer_filter=32,
            input_num_filters=8,
            image_shape=IMAGE,
        ),
        "MobileNetV5Backbone": lambda: mobilenet_v5(),
    }


def _dense_prediction() -> dict[str, Callable[[], Any]]:
    return {
        "BASNetBackbone": lambda: models.BASNetBackbone(
            image_encoder=models.ResNetBackbone(
                input_conv_filters=[64],
                input_conv_kernel_sizes=[7],
                stackwise_num_filters=[64, 16, 16, 16],
                stackwise_num_blocks=[2, 2, 2, 2],
                stackwise_num_strides=[1, 2, 2, 2],
                block_type="basic_block",
            ),
            num_classes=1,
        ),
        "DFineBackbone": _dfine,
        "DeepLabV3Backbone": lambda: models.DeepLabV3Backbone(
            image_encoder=resnet(),
            spatial_pyramid_pooling_key="P4",
            low_level_feature_key="P2",
            dilation_rates=[6, 12, 18],
            upsampling_size=4,
            image_shape=(64, 64, 3),
        ),
        "DepthAnythingBackbone": lambda: models.DepthAnythingBackbone(
            image_encoder=models.DINOV2Backbone(
                14, 4, 16, 2, 32, 1.0, 0, image_shape=(126, 126, 3), apply_layernorm=True
            ),
            reassemble_factors=[4, 2, 1, 0.5],
            neck_hidden_dims=[8, 8, 16, 16],
            fusion_hidden_dim=16,
            head_hidden_dim=8,
            head_in_index=-1,
            feature_keys=["stage1", "stage2", "stage3", "stage4"],
        ),
        "RetinaNetBackbone": lambda: models.RetinaNetBackbone(
            image_encoder=models.ResNetBackbone(
                input_conv_filters=[64],
                input_conv_kernel_sizes=[7],
                stackwise_num_filters=[64, 16, 16, 16],
                stackwise_num_blocks=[1, 1, 1, 1],
                stackwise_num_strides=[1, 2, 2, 2],
                block_type="basic_block",
                image_shape=(64, 64, 3),
            ),
            min_level=3,
            max_level=4,
            use_p5=False,
            image_shape=(64, 64, 3),
        ),
        "SAMBackbone": _sam,
        "SegFormerBackbone": lambda: models.SegFormerBackbone(
            image_encoder=models.MiTBackbone(
                layerwise_depths=[1, 1, 1, 1],
                num_layers=4,
                layerwise_num_heads=[1, 1, 2, 2],
                layerwise_sr_ratios=[8, 4, 2, 1],
                max_drop_path_rate=0.1,
                layerwise_patch_sizes=[7, 3, 3, 3],
                layerwise_strides=[4, 2, 2, 2],
                image_shape=(64, 64, 3),
                hidden_dims=[8, 16, 24, 32],
            ),
            projection_filters=16,
        ),
    }


def resnet() -> Any:
    """Build a residual network with the outputs P2 to P4."""
    return models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 16, 16],
        stackwise_num_blocks=[1, 1, 1],
        stackwise_num_strides=[1, 2, 2],
        block_type="basic_block",
    )


def hgnet(**changes: Any) -> Any:
    """Build HGNetV2 with four stages."""
    return models.HGNetV2Backbone(
        **{
            **dict(
                depths=[1, 1, 1, 1],
                embedding_size=8,
                hidden_sizes=[16, 16, 32, 32],
                stem_channels=[3, 8, 8],
                hidden_act="relu",
                use_learnable_affine_block=True,
                stackwise_stage_filters=[
                    [8, 8, 16, 1, 1, 3],
                    [16, 8, 16, 1, 1, 3],
                    [16, 8, 32, 1, 1, 3],
                    [32, 8, 32, 1, 1, 3],
                ],
                apply_downsample=[False, True, True, True],
                use_lightweight_conv_block=[False, False, True, True],
                image_shape=(64, 64, 3),
            ),
            **changes,
        }
    )


def mobilenet_v5() -> Any:
    """Build MobileNetV5 with a fused and two universal inverted bottlenecks."""
    return models.MobileNetV5Backbone(
        stackwise_block_types=[["er"], ["uir", "uir"]],
        stackwise_num_blocks=[1, 2],
        stackwise_num_filters=[[8], [16, 16]],
        stackwise_strides=[[2], [2, 1]],
        stackwise_act_layers=[["relu"], ["relu", "relu"]],
        stackwise_exp_ratios=[[4.0], [6.0, 6.0]],
        stackwise_se_ratios=[[0.0], [0.0, 0.0]],
        stackwise_dw_kernel_sizes=[[0], [5, 5]],
        stackwise_dw_start_kernel_sizes=[[0], [0, 0]],
        stackwise_dw_end_kernel_sizes=[[0], [0, 0]],
        stackwise_exp_kernel_sizes=[[3], [0, 0]],
        stackwise_pw_kernel_sizes=[[1], [0, 0]],
        stackwise_num_heads=[[0], [0, 0]],
        stackwise_key_dims=[[0], [0, 0]],
        stackwise_value_dims=[[0], [0, 0]],
        stackwise_kv_strides=[[0], [0, 0]],
        stackwise_use_cpe=[[False], [False, False]],
        stem_size=8,
        use_msfa=False,
        image_shape=IMAGE,
    )


def vae() -> Any:
    """Build an image autoencoder that takes the mode of its latent distribution."""
    from keras_hub.src.models.vae.vae_backbone import VAEBackbone

    return VAEBackbone([32, 32], [1, 1], [32, 32], [1, 1], sampler_method="mode", image_shape=IMAGE)


def vit_det(image_shape: tuple[int, int, int]) -> Any:
    """Build the windowed transformer that SAM encodes images with."""
    return models.ViTDetBackbone(
        hidden_size=16,
        num_layers=2,
        intermediate_dim=32,
        num_heads=2,
        global_attention_layer_indices=[1],
        patch_size=8,
        num_output_channels=8,
        window_size=2,
        image_shape=image_shape,
    )


def _dfine() -> Any:
    encoder = hgnet(out_features=["stage3", "stage4"])
    return models.DFineBackbone(
        backbone=encoder,
        decoder_in_channels=[16, 16],
        encoder_hidden_dim=16,
        num_labels=5,
        num_denoising=0,
        learn_initial_query=False,
        num_queries=6,
        anchor_image_size=(64, 64),
        feat_strides=[16, 32],
        num_feature_levels=2,
        hidden_dim=16,
        encoder_in_channels=[32, 32],
        encode_proj_layers=[1],
        num_attention_heads=2,
        encoder_ffn_dim=32,
        num_encoder_layers=1,
        hidden_expansion=0.5,
        depth_multiplier=0.5,
        eval_idx=-1,
        num_decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        decoder_n_points=[2, 2],
        lqe_hidden_dim=8,
        num_lqe_layers=2,
        out_features=["stage3", "stage4"],
        image_shape=(64, 64, 3),
        seed=0,
    )


def _sam() -> Any:
    from keras_hub.src.models.sam.sam_mask_decoder import SAMMaskDecoder
    from keras_hub.src.models.sam.sam_prompt_encoder import SAMPromptEncoder

    return models.SAMBackbone(
        image_encoder=vit_det((16, 16, 3)),
        prompt_encoder=SAMPromptEncoder(
            hidden_size=8,
            image_embedding_size=(2, 2),
            input_image_size=(16, 16),
            mask_in_channels=16,
        ),
        mask_decoder=SAMMaskDecoder(
            num_layers=2,
            hidden_size=8,
            intermediate_dim=32,
            num_heads=2,
            embedding_dim=8,
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=8,
        ),
    )
