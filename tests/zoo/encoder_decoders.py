"""Encoders with a decoder of text behind them, from transformers."""

from collections.abc import Callable

import torch
from torch import Tensor
from zoo.entry import COUNT, WORDS, hugging, masked, tokens

__all__ = ["ENTRIES"]

_TWO = {
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12,
    "max_position_embeddings": 24,
    "decoder_start_token_id": 2,
    **WORDS,
}
_T5 = {
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 12,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "vocab_size": 11,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


def _pairs(length: int = 5) -> Callable[[], dict[str, Tensor]]:
    def draw() -> dict[str, Tensor]:
        return {**tokens(length)(), "decoder_input_ids": torch.randint(3, 11, (COUNT, 3))}

    return draw


ENTRIES = [
    *masked(hugging("T5", "T5ForConditionalGeneration", _pairs(), **_T5)),
    *masked(hugging("UMT5", "UMT5ForConditionalGeneration", _pairs(), **_T5)),
    *masked(
        hugging(
            "LongT5",
            "LongT5ForConditionalGeneration",
            _pairs(6),
            encoder_attention_type="transient-global",
            local_radius=2,
            global_block_size=2,
            **_T5,
        )
    ),
    *masked(hugging("BART", "BartForConditionalGeneration", _pairs(), **_TWO)),
    *masked(hugging("mBART", "MBartForConditionalGeneration", _pairs(), **_TWO)),
    *masked(hugging("Pegasus", "PegasusForConditionalGeneration", _pairs(), **_TWO)),
    *masked(
        hugging(
            "Pegasus-X",
            "PegasusXForConditionalGeneration",
            _pairs(8),
            block_size=4,
            num_global_tokens=2,
            stagger_local_blocks=False,
            **_TWO,
        )
    ),
    *masked(hugging("Marian", "MarianMTModel", _pairs(), **_TWO)),
    *masked(hugging("Blenderbot", "BlenderbotForConditionalGeneration", _pairs(), **_TWO)),
    *masked(hugging("M2M-100", "M2M100ForConditionalGeneration", _pairs(), **_TWO)),
    *masked(
        hugging(
            "LED",
            "LEDForConditionalGeneration",
            _pairs(8),
            attention_window=[4],
            max_encoder_position_embeddings=24,
            max_decoder_position_embeddings=24,
            **{k: v for k, v in _TWO.items() if k != "max_position_embeddings"},
        )
    ),
    *masked(
        hugging(
            "ProphetNet",
            "ProphetNetForConditionalGeneration",
            _pairs(),
            hidden_size=8,
            encoder_ffn_dim=12,
            decoder_ffn_dim=12,
            num_encoder_layers=1,
            num_decoder_layers=1,
            num_encoder_attention_heads=2,
            num_decoder_attention_heads=2,
            max_position_embeddings=24,
            ngram=2,
            num_buckets=8,
            decoder_start_token_id=0,
            **WORDS,
        ),
        refused="NaN or infinite",
    ),
    *masked(
        hugging(
            "BigBird-Pegasus",
            "BigBirdPegasusForConditionalGeneration",
            _pairs(),
            attention_type="original_full",
            **_TWO,
        )
    ),
    *masked(hugging("PLBart", "PLBartForConditionalGeneration", _pairs(), **_TWO)),
]
