"""A training under Hugging Face's Trainer ends as it would have ended without the callback.

Compared to the last bit: weights, modes, optimizer state, losses, logs and random streams. Oracle:
the same training without it.
"""

import random

import numpy as np
import pytest
import torch
from integrations.hugging_face import Items, N, bert, ended, gpt2, texts
from integrations.trainings import differing
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, IterableDataset
from transformers import default_data_collator

from ntkwatch import NTKTrainerCallback


class Touchy(Dataset):
    """Every item draws from every random stream, as augmentations do, and from its own."""

    def __init__(self):
        self.items, self.own = texts(), np.random.default_rng(0)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        noise = random.random() + np.random.rand() + self.own.random() + torch.rand(())
        item = self.items[index]
        return {**item, "input_ids": (item["input_ids"] + int(10 * noise)) % 20}


class Masking:
    """Hides words by a generator of its own, made at the first call, as some collators do."""

    generator = None

    def __call__(self, items):
        assert all("id" not in item for item in items), "a column that the model does not take"
        if self.generator is None:
            self.generator = torch.Generator().manual_seed(0)
        batch = default_data_collator(items)
        hidden = torch.rand(batch["input_ids"].shape, generator=self.generator) < 0.2
        return {**batch, "input_ids": batch["input_ids"].masked_fill(hidden, 0)}


class Stream(IterableDataset):
    def __iter__(self):
        return iter(texts())


class Images(nn.Module):
    """Dropout and BatchNorm, in evaluation mode as pretrained models come."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
        self.eval()

    def forward(self, pixel_values, labels=None):
        logits = self.net(pixel_values)
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits} if loss is not None else {"logits": logits}


def _plain():
    return bert(), {}


def _evaluated_and_accumulated():
    held_out = {"a": Stream(), "b": Items(texts(40, seed=5))}
    return bert(), {
        "eval_dataset": held_out,
        "eval_strategy": "epoch",
        "gradient_accumulation_steps": 2,
        "logging_steps": 2,
    }


def _random_items():
    return bert(), {"data": Touchy()}


def _masked():
    return bert(), {"data_collator": Masking(), "num_train_epochs": 1}


def _streamed():
    return bert(), {"data": Stream(), "max_steps": 12, "gradient_accumulation_steps": 2}


def _half_precision():
    return bert(), {"bf16": True, "num_train_epochs": 1}


def _language():
    return gpt2(), {"data": Items(texts(language=True)), "activation_checkpointing": True}


def _images():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 5, generator=generator)
    rows = [{"pixel_values": x[i], "labels": (x[i, 0] > 0).long()} for i in range(N)]
    torch.manual_seed(0)
    return Images(), {"data": Items(rows)}


CASES = {
    "evaluated and accumulated": (_evaluated_and_accumulated, [0, 5, 6]),
    "streamed": (_streamed, [0, 5, 10, 12]),
    "batchnorm": (_images, [0, 5, 10, 12]),
}
SLOW = {
    "plain": (_plain, [0, 5, 10, 12]),
    "masked": (_masked, [0, 5, 6]),
    "bfloat16 autocast": (_half_precision, [0, 5, 6]),
    "random items": (_random_items, [0, 5, 10, 12]),
    "language model, checkpointed": (_language, [0, 5, 10, 12]),
}


@pytest.mark.parametrize(
    "case",
    [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)],
)
def test_a_watched_training_ends_in_the_same_state_bit_for_bit(tmp_path, case):
    make, steps = (CASES | SLOW)[case]
    watch = NTKTrainerCallback(every_n_steps=5, probe_size=8, metrics="minimal", on_error="raise")
    _, watched = ended(make, tmp_path / "watched", [watch])
    _, alone = ended(make, tmp_path / "alone")
    assert [o.step for o in watch.history] == steps, "an observation is missing or came twice"
    assert watch.history[-1].kernel_angle > 0
    assert differing(watched, alone) == []
