"""Mixtures of experts from transformers: which weights a token meets depends on the token."""

from torch import nn
from zoo.entry import WORDS, hugging, masked, tokens

__all__ = ["ENTRIES"]

_SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 12,
    "max_position_embeddings": 24,
    "num_experts_per_tok": 2,
    **WORDS,
}


def _one_by_one(model: nn.Module) -> None:
    model.set_experts_implementation("eager")  # the default knows no float64


_MIXED = {"prepare": _one_by_one}

ENTRIES = [
    *masked(
        hugging("Mixtral", "MixtralForCausalLM", tokens(), num_local_experts=3, **_MIXED, **_SMALL)
    ),
    *masked(
        hugging(
            "Qwen2 MoE",
            "Qwen2MoeForCausalLM",
            tokens(),
            num_experts=3,
            moe_intermediate_size=6,
            shared_expert_intermediate_size=6,
            decoder_sparse_step=1,
            **_MIXED,
            **_SMALL,
        )
    ),
    *masked(
        hugging(
            "Qwen3 MoE",
            "Qwen3MoeForCausalLM",
            tokens(),
            num_experts=3,
            moe_intermediate_size=6,
            head_dim=4,
            **_MIXED,
            **_SMALL,
        )
    ),
    *masked(hugging("OLMoE", "OlmoeForCausalLM", tokens(), num_experts=3, **_MIXED, **_SMALL)),
    *masked(
        hugging(
            "Granite MoE",
            "GraniteMoeForCausalLM",
            tokens(),
            num_local_experts=3,
            **_MIXED,
            **_SMALL,
        )
    ),
    *masked(
        hugging(
            "DeepSeek v3",
            "DeepseekV3ForCausalLM",
            tokens(),
            n_routed_experts=4,
            n_group=2,
            topk_group=1,
            n_shared_experts=1,
            moe_intermediate_size=6,
            first_k_dense_replace=0,
            kv_lora_rank=4,
            q_lora_rank=4,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=4,
            **_MIXED,
            **{**_SMALL, "num_key_value_heads": 2},
        )
    ),
    *masked(
        hugging("PhiMoE", "PhimoeForCausalLM", tokens(), num_local_experts=3, **_MIXED, **_SMALL)
    ),
    *masked(
        hugging(
            "GPT-OSS",
            "GptOssForCausalLM",
            tokens(),
            num_local_experts=3,
            head_dim=4,
            sliding_window=3,
            **_MIXED,
            **_SMALL,
        )
    ),
    *masked(
        hugging(
            "Jamba",
            "JambaForCausalLM",
            tokens(),
            num_experts=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            mamba_d_state=3,
            mamba_d_conv=3,
            mamba_dt_rank=2,
            use_mamba_kernels=False,
            **_MIXED,
            **{**_SMALL, "num_hidden_layers": 2},
        )
    ),
    *masked(
        hugging(
            "Llama 4",
            "Llama4ForCausalLM",
            tokens(),
            num_local_experts=2,
            intermediate_size_mlp=12,
            head_dim=4,
            attention_chunk_size=4,
            **_MIXED,
            **{**_SMALL, "num_experts_per_tok": 1},
        )
    ),
    *masked(
        hugging(
            "Switch",
            "SwitchTransformersEncoderModel",
            tokens(),
            d_model=8,
            d_kv=4,
            d_ff=12,
            num_layers=2,
            num_sparse_encoder_layers=1,
            num_heads=2,
            num_experts=3,
            expert_capacity=16,
            refused="writes to 1 of its own parameters",
            vocab_size=11,
            pad_token_id=0,
            prepare=_one_by_one,
        )
    ),
]
