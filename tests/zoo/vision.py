"""Models of images and videos from transformers."""

import torch
from zoo.entry import COUNT, hugging

__all__ = ["ENTRIES"]

_SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "num_labels": 2,
}
_PATCHES = {**_SMALL, "image_size": 8, "patch_size": 4}


def _images(side=8):
    return lambda: {"pixel_values": torch.randn(COUNT, 3, side, side, dtype=torch.float64)}


def _video(side=8, frames=4):
    return lambda: {"pixel_values": torch.randn(COUNT, frames, 3, side, side, dtype=torch.float64)}


def _classifier(name, kind, draw, **options):
    return hugging(name, f"{kind}ForImageClassification", draw, outputs="full", **options)


ENTRIES = [
    _classifier("ViT", "ViT", _images(), **_PATCHES),
    _classifier("DeiT", "DeiT", _images(), **_PATCHES),
    _classifier(
        "BEiT",
        "Beit",
        _images(),
        use_relative_position_bias=True,
        use_mean_pooling=True,
        layer_scale_init_value=0.1,
        **_PATCHES,
    ),
    _classifier("DINOv2", "Dinov2", _images(), **_PATCHES),
    _classifier("DINOv2 with registers", "Dinov2WithRegisters", _images(), **_PATCHES),
    hugging("DINOv3", "DINOv3ViTModel", _images(), **_PATCHES),
    _classifier(
        "Swin",
        "Swin",
        _images(),
        image_size=8,
        patch_size=2,
        embed_dim=4,
        depths=[2],
        num_heads=[2],
        window_size=2,
        num_labels=2,
    ),
    _classifier(
        "Swin v2",
        "Swinv2",
        _images(),
        image_size=8,
        patch_size=2,
        embed_dim=4,
        depths=[2],
        num_heads=[2],
        window_size=2,
        num_labels=2,
    ),
    _classifier(
        "SegFormer",
        "Segformer",
        _images(16),
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[4, 8],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=8,
        num_labels=2,
    ),
    _classifier(
        "PVT",
        "Pvt",
        _images(16),
        image_size=16,
        num_encoder_blocks=2,
        depths=[1, 1],
        sequence_reduction_ratios=[2, 1],
        hidden_sizes=[4, 8],
        patch_sizes=[4, 2],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        num_labels=2,
    ),
    _classifier(
        "PVT v2",
        "PvtV2",
        _images(16),
        image_size=16,
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[4, 8],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        num_labels=2,
    ),
    _classifier(
        "Hiera",
        "Hiera",
        _images(16),
        image_size=[16, 16],
        patch_size=[3, 3],
        patch_stride=[2, 2],
        patch_padding=[1, 1],
        embed_dim=4,
        depths=[1, 1],
        num_heads=[1, 2],
        query_stride=[2, 2],
        masked_unit_size=[4, 4],
        masked_unit_attention=[True, False],
        num_query_pool=1,
        num_labels=2,
    ),
    hugging("SigLIP", "SiglipVisionModel", _images(), **_PATCHES),
    hugging("CLIP, images", "CLIPVisionModel", _images(), **_PATCHES),
    hugging("ViT MAE", "ViTMAEModel", _images(), refused="draws random numbers", **_PATCHES),
    hugging("VideoMAE", "VideoMAEModel", _video(), num_frames=4, tubelet_size=2, **_PATCHES),
    hugging(
        "ViViT",
        "VivitModel",
        _video(),
        num_frames=4,
        tubelet_size=[2, 4, 4],
        **{k: v for k, v in _PATCHES.items() if k != "patch_size"},
    ),
    hugging("TimeSformer", "TimesformerModel", _video(frames=2), num_frames=2, **_PATCHES),
    hugging(
        "YOLOS",
        "YolosForObjectDetection",
        _images(),
        num_detection_tokens=2,
        **{**_PATCHES, "image_size": [8, 8]},
    ),
    hugging(
        "DPT",
        "DPTForSemanticSegmentation",
        _images(),
        backbone_out_indices=[0, 1],
        reassemble_factors=[1, 0.5],
        neck_hidden_sizes=[4, 4],
        fusion_hidden_size=4,
        use_auxiliary_head=False,
        **{**_PATCHES, "num_hidden_layers": 2},
    ),
    hugging(
        "SAM, images",
        "SamVisionModel",
        _images(),
        image_size=8,
        patch_size=4,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        mlp_dim=12,
        output_channels=4,
        window_size=2,
        global_attn_indexes=[],
        num_pos_feats=4,
    ),
    hugging(
        "SegFormer, pixels",
        "SegformerForSemanticSegmentation",
        _images(16),
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[4, 8],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=8,
        num_labels=2,
    ),
]
