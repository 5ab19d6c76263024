"""Models of several kinds of inputs, and of actions, from transformers."""

import torch
from zoo.entry import COUNT, WORDS, hugging, masked, tokens

__all__ = ["ENTRIES"]

_SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}
_TEXT = {**_SMALL, **WORDS, "max_position_embeddings": 24}
_IMAGE = {**_SMALL, "image_size": 8, "patch_size": 4}


def _normal(*shape):
    return torch.randn(COUNT, *shape, dtype=torch.float64)


def _both():
    return {**tokens()(), "pixel_values": _normal(3, 8, 8)}


def _moves():
    return {
        "states": _normal(3, 4),
        "actions": _normal(3, 2),
        "rewards": _normal(3, 1),
        "returns_to_go": _normal(3, 1),
        "timesteps": torch.arange(3).expand(COUNT, 3),
    }


ENTRIES = [
    hugging(
        "CLIP, logits",
        "CLIPModel",
        _both,
        refused="mixes samples",
        text_config=_TEXT,
        vision_config=_IMAGE,
        projection_dim=4,
        forward=lambda model, inputs: model(**inputs).logits_per_image,
    ),
    hugging(
        "CLIP",
        "CLIPModel",
        _both,
        text_config=_TEXT,
        vision_config=_IMAGE,
        projection_dim=4,
        forward=lambda model, inputs: torch.cat(
            [(out := model(**inputs)).text_embeds, out.image_embeds], dim=1
        ),
    ),
    *masked(hugging("CLIP, text", "CLIPTextModel", tokens(), **_TEXT)),
    hugging(
        "ViLT",
        "ViltModel",
        _both,
        refused="draws random numbers",
        **_TEXT,
        image_size=8,
        patch_size=4,
    ),
    *masked(
        hugging(
            "BLIP",
            "BlipForImageTextRetrieval",
            _both,
            text_config={**_TEXT, "encoder_hidden_size": 8},
            vision_config=_IMAGE,
            image_text_hidden_size=4,
            forward=lambda model, inputs: model(**inputs).itm_score,
        )
    ),
    hugging(
        "Decision transformer",
        "DecisionTransformerModel",
        _moves,
        state_dim=4,
        act_dim=2,
        hidden_size=8,
        n_layer=1,
        n_head=2,
        n_positions=24,
        max_ep_len=8,
        forward=lambda model, inputs: model(**inputs).action_preds,
    ),
]
