"""State space and recurrent models from transformers, and their hybrids with attention."""

from zoo.entry import WORDS, hugging, masked, tokens

__all__ = ["ENTRIES"]

_SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 12,
    "max_position_embeddings": 24,
    **WORDS,
}

ENTRIES = [
    *masked(
        hugging(
            "Mamba",
            "MambaForCausalLM",
            tokens(),
            hidden_size=8,
            state_size=3,
            num_hidden_layers=1,
            conv_kernel=3,
            **WORDS,
        )
    ),
    *masked(
        hugging(
            "Mamba 2",
            "Mamba2ForCausalLM",
            tokens(),
            hidden_size=8,
            num_heads=2,
            head_dim=8,
            state_size=4,
            n_groups=1,
            chunk_size=4,
            num_hidden_layers=1,
            **WORDS,
        )
    ),
    *masked(
        hugging(
            "Falcon Mamba",
            "FalconMambaForCausalLM",
            tokens(),
            hidden_size=8,
            state_size=3,
            num_hidden_layers=1,
            conv_kernel=3,
            **WORDS,
        )
    ),
    hugging(
        "RWKV",
        "RwkvForCausalLM",
        tokens(),
        variant="its cache",
        refused="pass use_cache=False",
        hidden_size=8,
        num_hidden_layers=2,
        attention_hidden_size=8,
        intermediate_size=12,
        context_length=8,
        **WORDS,
    ),
    hugging(
        "RWKV",
        "RwkvForCausalLM",
        tokens(),
        use_cache=False,
        hidden_size=8,
        num_hidden_layers=2,
        attention_hidden_size=8,
        intermediate_size=12,
        context_length=8,
        **WORDS,
    ),
    *masked(
        hugging(
            "RecurrentGemma",
            "RecurrentGemmaForCausalLM",
            tokens(),
            lru_width=8,
            conv1d_width=3,
            attention_window_size=4,
            block_types=["recurrent", "attention"],
            **{**_SMALL, "num_hidden_layers": 2},
        )
    ),
    *masked(
        hugging(
            "Bamba",
            "BambaForCausalLM",
            tokens(),
            mamba_n_heads=4,
            mamba_d_head=4,
            mamba_n_groups=1,
            mamba_d_state=3,
            mamba_d_conv=3,
            mamba_expand=2,
            mamba_chunk_size=4,
            attn_layer_indices=[1],
            **{**_SMALL, "num_hidden_layers": 2},
        )
    ),
    *masked(
        hugging(
            "Zamba 2",
            "Zamba2ForCausalLM",
            tokens(),
            mamba_d_state=3,
            mamba_d_conv=3,
            mamba_expand=2,
            mamba_ngroups=1,
            n_mamba_heads=2,
            chunk_size=4,
            layers_block_type=["mamba", "hybrid"],
            num_mem_blocks=1,
            use_mem_rope=False,
            adapter_rank=2,
            use_mamba_kernels=False,
            **{**_SMALL, "num_hidden_layers": 2, "num_key_value_heads": 2},
        )
    ),
    *masked(
        hugging(
            "LFM2",
            "Lfm2ForCausalLM",
            tokens(),
            conv_L_cache=3,
            layer_types=["conv", "full_attention"],
            **{**_SMALL, "num_hidden_layers": 2},
        )
    ),
    *masked(
        hugging(
            "Falcon H1",
            "FalconH1ForCausalLM",
            tokens(),
            mamba_d_ssm=8,
            mamba_n_heads=2,
            mamba_d_head=4,
            mamba_n_groups=1,
            mamba_d_state=3,
            mamba_d_conv=3,
            mamba_chunk_size=4,
            head_dim=4,
            **_SMALL,
        )
    ),
    *masked(
        hugging(
            "Qwen3-Next",
            "Qwen3NextForCausalLM",
            tokens(),
            prepare=lambda m: m.set_experts_implementation("eager"),
            linear_num_key_heads=1,
            linear_num_value_heads=2,
            linear_key_head_dim=4,
            linear_value_head_dim=4,
            linear_conv_kernel_dim=3,
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=6,
            shared_expert_intermediate_size=6,
            decoder_sparse_step=2,
            head_dim=4,
            layer_types=["linear_attention", "full_attention"],
            **{**_SMALL, "num_hidden_layers": 2},
        )
    ),
    hugging(
        "xLSTM",
        "xLSTMForCausalLM",
        tokens(8),
        hidden_size=8,
        num_hidden_layers=1,
        num_blocks=1,
        num_heads=2,
        chunk_size=4,
        return_last_states=True,
        chunkwise_kernel="chunkwise--native_autograd",
        sequence_kernel="native_sequence__native",
        step_kernel="native",
        mode="inference",
        use_cache=False,
        **WORDS,
    ),
    *masked(
        hugging(
            "MiniMax",
            "MiniMaxForCausalLM",
            tokens(),
            num_local_experts=2,
            num_experts_per_tok=1,
            block_size=4,
            layer_types=["linear_attention", "full_attention"],
            prepare=lambda m: m.set_experts_implementation("eager"),
            **{**_SMALL, "num_hidden_layers": 2},
        )
    ),
]
