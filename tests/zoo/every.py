"""All entries, by domain."""

from zoo import (
    convolutions,
    decoders,
    encoder_decoders,
    experts,
    layers,
    many_senses,
    sounds_and_series,
    states,
    text_encoders,
    vision,
)
from zoo.entry import Entry

__all__ = ["ZOO"]

ZOO: dict[str, list[Entry]] = {
    "Text encoders": text_encoders.ENTRIES,
    "Decoders": decoders.ENTRIES,
    "Encoder-decoders": encoder_decoders.ENTRIES,
    "Mixtures of experts": experts.ENTRIES,
    "State spaces and recurrences": states.ENTRIES,
    "Images by convolution": convolutions.ENTRIES,
    "Images and videos by patches": vision.ENTRIES,
    "Sounds and time series": sounds_and_series.ENTRIES,
    "Several senses": many_senses.ENTRIES,
    "Layers of torch.nn": layers.ENTRIES,
}
