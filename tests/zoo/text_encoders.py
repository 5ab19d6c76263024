"""Encoders of text from transformers."""

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
_LABELS = {**_SMALL, "num_labels": 2}

ENTRIES = [
    *masked(hugging("BERT", "BertForSequenceClassification", tokens(), outputs="full", **_LABELS)),
    *masked(hugging("RoBERTa", "RobertaForMaskedLM", tokens(), **_SMALL)),
    *masked(hugging("ALBERT", "AlbertModel", tokens(), embedding_size=4, **_SMALL)),
    *masked(
        hugging(
            "DistilBERT",
            "DistilBertForMaskedLM",
            tokens(),
            dim=8,
            n_layers=1,
            n_heads=2,
            hidden_dim=12,
            max_position_embeddings=24,
            **WORDS,
        )
    ),
    *masked(hugging("ELECTRA", "ElectraForPreTraining", tokens(), embedding_size=4, **_SMALL)),
    *masked(
        hugging(
            "DeBERTa v2",
            "DebertaV2ForSequenceClassification",
            tokens(),
            outputs="full",
            relative_attention=True,
            position_buckets=4,
            pos_att_type=["p2c", "c2p"],
            **_LABELS,
        )
    ),
    *masked(hugging("DeBERTa", "DebertaModel", tokens(), relative_attention=True, **_SMALL)),
    *masked(
        hugging(
            "MPNet",
            "MPNetForMaskedLM",
            tokens(),
            relative_attention_num_buckets=32,
            **{**_SMALL, "max_position_embeddings": 40},
        )
    ),
    *masked(
        hugging(
            "ConvBERT",
            "ConvBertForMaskedLM",
            tokens(6),
            embedding_size=8,
            conv_kernel_size=3,
            head_ratio=1,
            **_SMALL,
        )
    ),
    hugging("FNet", "FNetForMaskedLM", tokens(), **_SMALL),
    *masked(
        hugging(
            "Funnel",
            "FunnelModel",
            tokens(6),
            block_sizes=[1, 1],
            d_model=8,
            n_head=2,
            d_head=4,
            d_inner=12,
            num_decoder_layers=1,
            **WORDS,
        )
    ),
    *masked(
        hugging(
            "ModernBERT",
            "ModernBertForMaskedLM",
            tokens(),
            local_attention=4,
            cls_token_id=1,
            sep_token_id=2,
            **_SMALL,
        )
    ),
    *masked(
        hugging("Longformer", "LongformerForMaskedLM", tokens(8), attention_window=[4], **_SMALL)
    ),
    *masked(
        hugging("BigBird", "BigBirdForMaskedLM", tokens(), attention_type="original_full", **_SMALL)
    ),
    hugging(
        "Nyströmformer",
        "NystromformerForMaskedLM",
        tokens(8),
        refused="mixes samples",
        num_landmarks=4,
        segment_means_seq_len=8,
        conv_kernel_size=3,
        **_SMALL,
    ),
    *masked(
        hugging(
            "SqueezeBERT",
            "SqueezeBertForMaskedLM",
            tokens(),
            embedding_size=8,
            q_groups=2,
            k_groups=2,
            v_groups=2,
            post_attention_groups=1,
            intermediate_groups=2,
            output_groups=2,
            **_SMALL,
        )
    ),
    *masked(
        hugging(
            "MobileBERT",
            "MobileBertForMaskedLM",
            tokens(),
            embedding_size=8,
            intra_bottleneck_size=8,
            true_hidden_size=8,
            num_feedforward_networks=2,
            **_SMALL,
        )
    ),
    *masked(
        hugging(
            "RemBERT",
            "RemBertForMaskedLM",
            tokens(),
            input_embedding_size=4,
            output_embedding_size=6,
            **_SMALL,
        )
    ),
    *masked(hugging("RoFormer", "RoFormerForMaskedLM", tokens(), embedding_size=8, **_SMALL)),
    *masked(
        hugging(
            "XLNet",
            "XLNetLMHeadModel",
            tokens(),
            d_model=8,
            n_layer=1,
            n_head=2,
            d_inner=12,
            **WORDS,
        )
    ),
    *masked(
        hugging(
            "XLM",
            "XLMWithLMHeadModel",
            tokens(),
            emb_dim=8,
            n_layers=1,
            n_heads=2,
            max_position_embeddings=24,
            n_words=11,
            pad_index=0,
        )
    ),
    *masked(hugging("I-BERT", "IBertForMaskedLM", tokens(), **_SMALL)),
    *masked(
        hugging(
            "ESM",
            "EsmForMaskedLM",
            tokens(),
            position_embedding_type="rotary",
            mask_token_id=3,
            **_SMALL,
        )
    ),
    hugging(
        "Perceiver",
        "PerceiverForMaskedLM",
        tokens(6),
        num_latents=3,
        d_latents=8,
        d_model=8,
        num_blocks=1,
        num_self_attends_per_block=1,
        num_self_attention_heads=2,
        num_cross_attention_heads=2,
        qk_channels=8,
        v_channels=8,
        max_position_embeddings=6,
        vocab_size=11,
    ),
    *masked(
        hugging(
            "CANINE",
            "CanineModel",
            tokens(16),
            refused="NaN or infinite",
            **{**_SMALL, "max_position_embeddings": 64},
            upsampling_kernel_size=4,
            downsampling_rate=4,
            local_transformer_stride=8,
            num_hash_functions=2,
            num_hash_buckets=16,
        )
    ),
    *masked(
        hugging(
            "LayoutLM", "LayoutLMForMaskedLM", tokens(), max_2d_position_embeddings=16, **_SMALL
        )
    ),
    *masked(
        hugging(
            "Reformer",
            "ReformerModelWithLMHead",
            tokens(8),
            refused="cannot differentiate",
            attn_layers=["local"],
            axial_pos_embds=False,
            hidden_size=8,
            num_attention_heads=2,
            attention_head_size=4,
            feed_forward_size=12,
            local_attn_chunk_length=4,
            is_decoder=True,
            max_position_embeddings=24,
            **WORDS,
        )
    ),
    *masked(hugging("TAPAS", "TapasModel", tokens(), **_SMALL)),
    *masked(hugging("NomicBERT", "NomicBertModel", tokens(), **_SMALL)),
]
