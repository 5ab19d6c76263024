"""Models of audio and of time series from transformers."""

import torch
from zoo.entry import COUNT, WORDS, hugging

__all__ = ["ENTRIES"]

_SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}
_WAVE = {
    **_SMALL,
    **WORDS,
    "conv_dim": (4, 4),
    "conv_stride": (4, 2),
    "conv_kernel": (6, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 6,
    "num_labels": 2,
}
_TWO = {
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12,
}
_SERIES = {
    "prediction_length": 2,
    "context_length": 6,
    "lags_sequence": [1, 2],
    "num_time_features": 1,
    "num_static_categorical_features": 1,
    "cardinality": [3],
    "embedding_dimension": [2],
}


def _normal(*shape):
    return torch.randn(COUNT, *shape, dtype=torch.float64)


def _wave(*, padded=False):
    def draw():
        inputs = {"input_values": _normal(64)}
        if padded:
            lengths = torch.tensor([64, 48, 40])[:, None]
            inputs["attention_mask"] = (torch.arange(64) < lengths).long()
        return inputs

    return draw


def _waves(name, kind, **options):
    return [
        hugging(name, kind, _wave(), outputs="full", **options),
        hugging(name, kind, _wave(padded=True), outputs="full", variant="padded", **options),
    ]


def _words(count=3):
    return torch.randint(3, 11, (COUNT, count))


def _past(*, padded=False):
    def draw():
        observed = torch.ones(COUNT, 8)
        if padded:
            observed[1, :3] = 0
        return {
            "past_values": _normal(8).abs() + 1,
            "past_time_features": _normal(8, 1),
            "past_observed_mask": observed.double(),
            "static_categorical_features": torch.randint(3, (COUNT, 1)),
            "future_values": _normal(2),
            "future_time_features": _normal(2, 1),
        }

    return draw


ENTRIES = [
    *_waves("Wav2Vec2", "Wav2Vec2ForSequenceClassification", **_WAVE),
    *_waves("HuBERT", "HubertForSequenceClassification", **_WAVE),
    *_waves("WavLM", "WavLMForSequenceClassification", **_WAVE),
    *_waves("SEW", "SEWForSequenceClassification", squeeze_factor=2, **_WAVE),
    *_waves("UniSpeech-SAT", "UniSpeechSatForSequenceClassification", **_WAVE),
    *_waves("Data2Vec audio", "Data2VecAudioForSequenceClassification", **_WAVE),
    hugging(
        "Wav2Vec2 conformer",
        "Wav2Vec2ConformerForSequenceClassification",
        _wave(),
        outputs="full",
        position_embeddings_type="relative",
        conv_depthwise_kernel_size=3,
        **_WAVE,
    ),
    hugging(
        "Wav2Vec2-BERT",
        "Wav2Vec2BertForSequenceClassification",
        lambda: {"input_features": _normal(6, 4)},
        outputs="full",
        feature_projection_input_dim=4,
        conv_depthwise_kernel_size=3,
        num_labels=2,
        classifier_proj_size=6,
        **_SMALL,
    ),
    hugging(
        "Whisper",
        "WhisperForConditionalGeneration",
        lambda: {"input_features": _normal(4, 12), "decoder_input_ids": _words()},
        num_mel_bins=4,
        max_source_positions=6,
        max_target_positions=8,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **_TWO,
        **WORDS,
    ),
    hugging(
        "Audio spectrogram transformer",
        "ASTForAudioClassification",
        lambda: {"input_values": _normal(12, 8)},
        outputs="full",
        patch_size=4,
        frequency_stride=4,
        time_stride=4,
        max_length=12,
        num_mel_bins=8,
        num_labels=2,
        **_SMALL,
    ),
    hugging(
        "Speech2Text",
        "Speech2TextForConditionalGeneration",
        lambda: {"input_features": _normal(16, 4), "decoder_input_ids": _words()},
        input_feat_per_channel=4,
        input_channels=1,
        conv_channels=8,
        num_conv_layers=2,
        max_source_positions=24,
        max_target_positions=24,
        decoder_start_token_id=2,
        **_TWO,
        **WORDS,
    ),
    hugging(
        "Moonshine",
        "MoonshineForConditionalGeneration",
        lambda: {"input_values": _normal(1200), "decoder_input_ids": _words()},
        hidden_size=8,
        intermediate_size=12,
        encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        encoder_num_key_value_heads=2,
        decoder_num_key_value_heads=2,
        max_position_embeddings=24,
        decoder_start_token_id=1,
        **WORDS,
    ),
    hugging(
        "CLAP, audio",
        "ClapAudioModel",
        lambda: {"input_features": _normal(1, 16, 8)},
        spec_size=16,
        num_mel_bins=8,
        window_size=4,
        patch_size=2,
        patch_stride=[2, 2],
        patch_embeds_hidden_size=4,
        depths=[1],
        num_attention_heads=[2],
        hidden_size=4,
        num_classes=2,
        flatten_patch_embeds=True,
    ),
    hugging(
        "EnCodec",
        "EncodecModel",
        lambda: {"input_values": _normal(1, 32)},
        audio_channels=1,
        num_filters=2,
        upsampling_ratios=[2, 2],
        hidden_size=4,
        num_residual_layers=1,
        codebook_size=4,
        codebook_dim=4,
        num_lstm_layers=1,
        sampling_rate=100,
        target_bandwidths=[1.0],
        forward=lambda model, inputs: model.decoder(model.encoder(inputs["input_values"])),
    ),
    hugging(
        "PatchTST",
        "PatchTSTForPrediction",
        lambda: {"past_values": _normal(16, 2)},
        num_input_channels=2,
        context_length=16,
        prediction_length=2,
        patch_length=4,
        patch_stride=4,
        d_model=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=12,
        loss="mse",
        forward=lambda model, inputs: model(**inputs).prediction_outputs,
    ),
    hugging(
        "PatchTSMixer",
        "PatchTSMixerForPrediction",
        lambda: {"past_values": _normal(16, 2)},
        num_input_channels=2,
        context_length=16,
        prediction_length=2,
        patch_length=4,
        patch_stride=4,
        d_model=4,
        num_layers=1,
        mode="mix_channel",
        gated_attn=True,
        forward=lambda model, inputs: model(**inputs).prediction_outputs,
    ),
    hugging("Time series transformer", "TimeSeriesTransformerModel", _past(), **_SERIES, **_TWO),
    hugging(
        "Time series transformer",
        "TimeSeriesTransformerModel",
        _past(padded=True),
        variant="padded",
        **_SERIES,
        **_TWO,
    ),
    hugging("Informer", "InformerModel", _past(), attention_type="full", **_SERIES, **_TWO),
    hugging(
        "Autoformer",
        "AutoformerModel",
        _past(),
        refused="no way was found to call",
        moving_average=3,
        label_length=2,
        **_SERIES,
        **_TWO,
    ),
    hugging(
        "TimesFM 2.5",
        "TimesFm2_5ModelForPrediction",
        lambda: {"past_values": _normal(8)},
        patch_length=4,
        context_length=8,
        horizon_length=4,
        head_dim=4,
        num_key_value_heads=2,
        output_quantile_len=4,
        quantiles=[0.5],
        forward=lambda model, inputs: model(list(inputs["past_values"])).mean_predictions,
        **_SMALL,
    ),
]
