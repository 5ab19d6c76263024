"""Tiny Hugging Face models with random weights, against plain autograd in float64 (to 1e-9)."""

import pytest
import torch
import transformers
from jacobian.models import gap
from jacobian.snapshots import assert_same, state_of
from versions import needs

from ntkwatch.errors import CoverageError
from ntkwatch.jacobian.engine import empirical_ntk

from oracles import dense_ntk

_SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 5,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
}


def _tokens(n=3, length=4):
    return torch.randint(1, 5, (n, length))


def _mask(tokens):
    mask = torch.ones_like(tokens)
    mask[1, -1] = mask[2, -2:] = 0
    return mask


def _gpt2():
    config = transformers.GPT2Config(
        vocab_size=5,
        n_positions=16,
        n_embd=8,
        n_layer=1,
        n_head=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.GPT2LMHeadModel(config)


def _bert():
    config = transformers.BertConfig(**_SMALL, num_labels=3)
    return transformers.BertForSequenceClassification(config)


def _vit():
    config = transformers.ViTConfig(
        **{k: v for k, v in _SMALL.items() if k not in ("vocab_size", "pad_token_id")},
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    return transformers.ViTForImageClassification(config)


def _t5():
    config = transformers.T5Config(
        vocab_size=5, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def _llama():
    config = transformers.LlamaConfig(**_SMALL, num_key_value_heads=1, bos_token_id=1)
    return transformers.LlamaForCausalLM(config)


def _last(model, inputs):
    """Logits at the last position."""
    return model(**inputs).logits[:, -1]


CASES = {
    "decoder": (_gpt2, lambda: {"input_ids": _tokens()}, _last),
    "decoder with rotary positions": (_llama, lambda: {"input_ids": _tokens()}, _last),
    "encoder": (_bert, lambda: {"input_ids": _tokens()}, None),
    "encoder of images": (_vit, lambda: {"pixel_values": torch.randn(3, 3, 8, 8)}, None),
    "encoder and decoder": (
        _t5,
        lambda: {"input_ids": _tokens(), "decoder_input_ids": _tokens(3, 3)},
        _last,
    ),
}


def _oracle(model, inputs, forward):
    return dense_ntk(model, inputs, forward or (lambda m, i: m(**i).logits))


@pytest.mark.parametrize("case", CASES)
def test_models_in_training_mode_are_measured_in_evaluation_mode_and_left_alone(case):
    """The oracle gets a copy in evaluation mode."""
    build, draw, forward = CASES[case]
    model, inputs = build().train(), draw()
    before = state_of(model)
    kernel = empirical_ntk(model, inputs, forward=forward, dtype=torch.float64)
    assert_same(before, state_of(model))
    assert gap(kernel.matrix, _oracle(model.eval(), inputs, forward)) < 1e-9


@needs("transformers", "5.20")  # older masks overflow in float64
@pytest.mark.parametrize("case", ["decoder", "encoder"])
def test_a_mask_of_two_dimensions_needs_the_loop_or_works_with_vmap_all_the_same(case):
    build, draw, forward = CASES[case]
    model, inputs = build().eval(), draw()
    inputs["attention_mask"] = _mask(inputs["input_ids"])
    kernel = empirical_ntk(model, inputs, forward=forward, dtype=torch.float64)
    assert gap(kernel.matrix, _oracle(model, inputs, forward)) < 1e-9
    (route,) = set(kernel.coverage.values())
    if route == "loop":
        with pytest.raises(CoverageError, match="engine='vmap' cannot differentiate"):
            empirical_ntk(model, inputs, forward=forward, engine="vmap")


def test_an_encoding_is_a_mapping_like_any_other():
    model, tokens = _bert().eval(), _tokens()
    encoding = transformers.BatchEncoding({"input_ids": tokens})
    plain = empirical_ntk(model, {"input_ids": tokens})
    assert gap(empirical_ntk(model, encoding).matrix, plain.matrix) < 1e-6
    assert plain.spec.forward == "model(**inputs)"
    assert plain.spec.output_shape == (3,)


def test_a_tied_head_counts_once():
    kernel = empirical_ntk(_gpt2(), {"input_ids": _tokens()}, forward=_last, outputs="trace")
    assert "transformer.wte.weight" in kernel.coverage
    assert "lm_head.weight" not in kernel.coverage


@needs("transformers", "5.20")
def test_checkpointing_changes_nothing():
    model, inputs = _gpt2(), {"input_ids": _tokens()}
    plain = empirical_ntk(model, inputs, forward=_last, dtype=torch.float64)
    model.activation_checkpointing_enable()
    again = empirical_ntk(model.train(), inputs, forward=_last, dtype=torch.float64)
    assert gap(again.matrix, plain.matrix) < 1e-12
