"""Decoders of text from transformers."""

from zoo.entry import WORDS, hugging, masked, tokens

__all__ = ["ENTRIES"]

_SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 24,
    **WORDS,
}
_ROTARY = {**_SMALL, "num_key_value_heads": 1, "head_dim": 4}

ENTRIES = [
    *masked(
        hugging(
            "GPT-2",
            "GPT2LMHeadModel",
            tokens(),
            n_positions=24,
            n_embd=8,
            n_layer=1,
            n_head=2,
            **WORDS,
        )
    ),
    *masked(
        hugging(
            "GPT-Neo",
            "GPTNeoForCausalLM",
            tokens(),
            hidden_size=8,
            num_layers=2,
            num_heads=2,
            intermediate_size=12,
            attention_types=[[["global", "local"], 1]],
            window_size=2,
            max_position_embeddings=24,
            **WORDS,
        ),
        left=True,
    ),
    *masked(
        hugging(
            "GPT-J",
            "GPTJForCausalLM",
            tokens(),
            n_positions=24,
            n_embd=8,
            n_layer=1,
            n_head=2,
            rotary_dim=2,
            **WORDS,
        )
    ),
    *masked(hugging("GPT-NeoX", "GPTNeoXForCausalLM", tokens(), **_SMALL)),
    *masked(
        hugging(
            "OPT",
            "OPTForCausalLM",
            tokens(),
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            ffn_dim=12,
            max_position_embeddings=24,
            word_embed_proj_dim=6,
            **WORDS,
        )
    ),
    *masked(
        hugging("BLOOM", "BloomForCausalLM", tokens(), hidden_size=8, n_layer=1, n_head=2, **WORDS)
    ),
    *masked(hugging("LLaMA", "LlamaForCausalLM", tokens(), **_ROTARY), left=True),
    *masked(hugging("Mistral", "MistralForCausalLM", tokens(), sliding_window=3, **_ROTARY)),
    *masked(hugging("Qwen2", "Qwen2ForCausalLM", tokens(), **_ROTARY)),
    *masked(hugging("Qwen3", "Qwen3ForCausalLM", tokens(), **_ROTARY), left=True),
    *masked(hugging("Gemma", "GemmaForCausalLM", tokens(), **_ROTARY)),
    *masked(
        hugging(
            "Gemma 2",
            "Gemma2ForCausalLM",
            tokens(),
            sliding_window=3,
            query_pre_attn_scalar=4,
            **_ROTARY,
        )
    ),
    *masked(
        hugging(
            "Gemma 3",
            "Gemma3ForCausalLM",
            tokens(),
            sliding_window=3,
            query_pre_attn_scalar=4,
            **_ROTARY,
        )
    ),
    *masked(hugging("Phi", "PhiForCausalLM", tokens(), **_SMALL)),
    *masked(hugging("Phi-3", "Phi3ForCausalLM", tokens(), num_key_value_heads=1, **_SMALL)),
    *masked(
        hugging(
            "Falcon",
            "FalconForCausalLM",
            tokens(),
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            ffn_hidden_size=12,
            **WORDS,
        )
    ),
    *masked(
        hugging(
            "MPT",
            "MptForCausalLM",
            tokens(),
            d_model=8,
            n_heads=2,
            n_layers=1,
            max_seq_len=24,
            expansion_ratio=2,
            **WORDS,
        )
    ),
    *masked(
        hugging(
            "CodeGen",
            "CodeGenForCausalLM",
            tokens(),
            n_positions=24,
            n_embd=16,
            n_layer=1,
            n_head=4,
            rotary_dim=2,
            n_ctx=24,
            **WORDS,
        )
    ),
    *masked(hugging("StableLM", "StableLmForCausalLM", tokens(), num_key_value_heads=1, **_SMALL)),
    *masked(hugging("OLMo 2", "Olmo2ForCausalLM", tokens(), num_key_value_heads=1, **_SMALL)),
    *masked(hugging("Cohere", "CohereForCausalLM", tokens(), num_key_value_heads=1, **_SMALL)),
    *masked(
        hugging("StarCoder2", "Starcoder2ForCausalLM", tokens(), num_key_value_heads=1, **_SMALL)
    ),
    *masked(
        hugging(
            "CTRL",
            "CTRLLMHeadModel",
            tokens(),
            n_positions=24,
            n_embd=8,
            n_layer=1,
            n_head=2,
            dff=12,
            **WORDS,
        )
    ),
    *masked(hugging("BioGPT", "BioGptForCausalLM", tokens(), **_SMALL)),
    *masked(hugging("GLM-4", "Glm4ForCausalLM", tokens(), **_ROTARY)),
    *masked(hugging("Persimmon", "PersimmonForCausalLM", tokens(), **_SMALL)),
    *masked(hugging("Nemotron", "NemotronForCausalLM", tokens(), **_ROTARY)),
    *masked(
        hugging(
            "GPT-BigCode",
            "GPTBigCodeForCausalLM",
            tokens(),
            n_positions=24,
            n_embd=8,
            n_layer=1,
            n_head=2,
            **WORDS,
        )
    ),
    *masked(hugging("SmolLM3", "SmolLM3ForCausalLM", tokens(), **_ROTARY)),
    *masked(
        hugging(
            "DiffLlama", "DiffLlamaForCausalLM", tokens(), **{**_ROTARY, "num_key_value_heads": 2}
        )
    ),
]
