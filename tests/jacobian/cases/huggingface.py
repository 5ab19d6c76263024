"""Tiny transformers with random weights, with and without a mask of two dimensions."""

import warnings

import pytest
import torch
import transformers
from jacobian.cases.case import case
from versions import at_least

KNOWN = "5.20"  # older ones draw numbers in evaluation, overflow in float64 and lack ways to choose

# Norms and scans in float32 round cotangents too, so an engine that adds up output directions in
# another order than the oracle is about 1e-8 off.
SINGLE = {"tolerance": 1e-7, "loose": "it computes partly in float32 whatever its dtype"}
MASKED = "transformers reads a mask of two dimensions in a way that depends on its values"

_SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
}
_WORDS = {"vocab_size": 7, "pad_token_id": 0}
_STARTS = {"bos_token_id": 1, "eos_token_id": 2}


def _quiet(kind, config):
    if not at_least("transformers", KNOWN):
        pytest.skip(f"what these models are made of is known for transformers {KNOWN} and newer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = kind(config).double()
    with torch.no_grad():  # first weights are so small that attention is uniform
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.4)
    return model


def _tokens(n=3, length=4):
    return torch.randint(1, 7, (n, length))


def _masked(tokens):
    mask = torch.ones_like(tokens)
    mask[1, -1] = mask[2, -2:] = 0
    return {"input_ids": tokens.masked_fill(mask == 0, 0), "attention_mask": mask}


def _last(model, inputs):
    return model(**inputs).logits[:, -1]


def _second(model, inputs):
    """At a token that every sample has and that sees another one."""
    return model(**inputs).logits[:, 1]


def _bert():
    config = transformers.BertConfig(**_SMALL, **_WORDS, num_labels=2)
    return _quiet(transformers.BertForSequenceClassification, config)


def _gpt2():
    config = transformers.GPT2Config(
        n_positions=16, n_embd=8, n_layer=1, n_head=2, **_WORDS, **_STARTS
    )
    return _quiet(transformers.GPT2LMHeadModel, config)


def _llama():
    config = transformers.LlamaConfig(**_SMALL, **_WORDS, **_STARTS, num_key_value_heads=1)
    return _quiet(transformers.LlamaForCausalLM, config)


def _t5():
    options = {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(**options, **_WORDS, eos_token_id=1, decoder_start_token_id=0)
    return _quiet(transformers.T5ForConditionalGeneration, config)


@case
def bert():
    return _bert(), {"input_ids": _tokens()}


@case(vmap=MASKED)
def bert_with_a_mask():
    return _bert(), _masked(_tokens())


@case(vmap="transformers looks whether a sequence ends in padding")
def gpt2():
    return _gpt2(), {"input_ids": _tokens()}, {"forward": _last}


@case(vmap=MASKED)
def gpt2_with_a_mask():
    return _gpt2(), _masked(_tokens()), {"forward": _second}


@case(**SINGLE)
def llama():
    return _llama(), {"input_ids": _tokens()}, {"forward": _last}


@case(vmap=MASKED, **SINGLE)
def llama_with_a_mask():
    return _llama(), _masked(_tokens()), {"forward": _second}


@case(**SINGLE)
def t5():
    inputs = {"input_ids": _tokens(), "decoder_input_ids": _tokens(3, 2)}
    return _t5(), inputs, {"forward": _last}


@case(vmap=MASKED, **SINGLE)
def t5_with_a_mask():
    inputs = _masked(_tokens()) | {"decoder_input_ids": _tokens(3, 2)}
    return _t5(), inputs, {"forward": _last}


@case
def bart():
    config = transformers.BartConfig(
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=12,
        decoder_ffn_dim=12,
        max_position_embeddings=16,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
        **_WORDS,
        **_STARTS,
    )
    model = _quiet(transformers.BartForConditionalGeneration, config)
    inputs = {"input_ids": _tokens(), "decoder_input_ids": _tokens(3, 2)}
    return model, inputs, {"forward": _last}


@case
def deberta_with_a_mask():
    config = transformers.DebertaV2Config(
        **_SMALL,
        **_WORDS,
        relative_attention=True,
        position_buckets=4,
        pos_att_type=["p2c", "c2p"],
        num_labels=2,
    )
    return _quiet(transformers.DebertaV2ForSequenceClassification, config), _masked(_tokens())


@case(vmap="tokens are routed to experts", **SINGLE)
def mixtral():
    config = transformers.MixtralConfig(
        **_SMALL,
        **_WORDS,
        **_STARTS,
        num_key_value_heads=1,
        num_local_experts=3,
        num_experts_per_tok=2,
    )
    model = _quiet(transformers.MixtralForCausalLM, config)
    model.set_experts_implementation("eager")  # the default knows no float64
    return model, {"input_ids": _tokens()}, {"forward": _last}


@case(vmap="its scan writes in place", **SINGLE)
def mamba():
    config = transformers.MambaConfig(
        hidden_size=8, state_size=3, num_hidden_layers=1, conv_kernel=3, **_WORDS, **_STARTS
    )
    model = _quiet(transformers.MambaForCausalLM, config)
    return model, {"input_ids": _tokens()}, {"forward": _last}


@case(vmap="its scan writes in place", **SINGLE)
def mamba2():
    config = transformers.Mamba2Config(
        hidden_size=8,
        num_heads=2,
        head_dim=8,
        state_size=4,
        n_groups=1,
        chunk_size=4,
        num_hidden_layers=1,
        **_WORDS,
        **_STARTS,
    )
    model = _quiet(transformers.Mamba2ForCausalLM, config)
    return model, {"input_ids": _tokens()}, {"forward": _last}


@case
def vit():
    config = transformers.ViTConfig(
        **{key: value for key, value in _SMALL.items() if key != "max_position_embeddings"},
        image_size=8,
        patch_size=4,
        num_labels=2,
    )
    model = _quiet(transformers.ViTForImageClassification, config)
    return model, {"pixel_values": torch.randn(3, 3, 8, 8)}


@case
def convnext():
    config = transformers.ConvNextConfig(
        hidden_sizes=[4, 8], depths=[1, 1], num_stages=2, num_labels=2
    )
    model = _quiet(transformers.ConvNextForImageClassification, config)
    return model, {"pixel_values": torch.randn(3, 3, 16, 16)}


@case
def resnet():
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=2
    )
    model = _quiet(transformers.ResNetForImageClassification, config)
    return model, {"pixel_values": torch.randn(3, 3, 16, 16)}


@case
def swin():
    config = transformers.SwinConfig(
        image_size=8,
        patch_size=2,
        embed_dim=4,
        depths=[2],
        num_heads=[2],
        window_size=2,
        num_labels=2,
    )
    model = _quiet(transformers.SwinForImageClassification, config)
    return model, {"pixel_values": torch.randn(3, 3, 8, 8)}


def _wav2vec2():
    config = transformers.Wav2Vec2Config(
        **_SMALL,
        **_WORDS,
        conv_dim=(4, 4),
        conv_stride=(4, 2),
        conv_kernel=(6, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=6,
        num_labels=2,
    )
    return _quiet(transformers.Wav2Vec2ForSequenceClassification, config)


@case
def wav2vec2():
    return _wav2vec2(), {"input_values": torch.randn(3, 64)}


@case(vmap=MASKED)
def wav2vec2_with_a_mask():
    mask = torch.arange(64) < torch.tensor([64, 48, 40])[:, None]
    return _wav2vec2(), {"input_values": torch.randn(3, 64), "attention_mask": mask.long()}


@case
def whisper():
    config = transformers.WhisperConfig(
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=12,
        decoder_ffn_dim=12,
        num_mel_bins=4,
        max_source_positions=6,
        max_target_positions=8,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **_WORDS,
        **_STARTS,
    )
    model = _quiet(transformers.WhisperForConditionalGeneration, config)
    inputs = {"input_features": torch.randn(3, 4, 12), "decoder_input_ids": _tokens(3, 2)}
    return model, inputs, {"forward": _last}
