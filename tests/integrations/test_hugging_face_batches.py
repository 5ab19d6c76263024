"""Mappings as Hugging Face's models take them; oracle: the model called by hand on the probe."""

import inspect

import pytest
import torch
from integrations.trainings import lightning, trainer
from torch import nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from ntkwatch import NTKMonitor
from ntkwatch.integrations.trainer_probe import inputs_for
from ntkwatch.watch.store import read_probe

from oracles import dense_ntk

pl = lightning()
N, LENGTH, WORDS = 12, 6, 20


def _bert():
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=3,
    )
    return BertForSequenceClassification(config), torch.arange(N) % 3


def _gpt2():
    config = GPT2Config(vocab_size=WORDS, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    return GPT2LMHeadModel(config), None


class Tuned(pl.LightningModule):
    """What tutorials do: the batch goes to the model whole, and the loss comes back."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        known = {k: v for k, v in batch.items() if k not in ("id", "text")}
        return self.net(**known).loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def _items(labels):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, WORDS, (N, LENGTH), generator=generator)
    return [
        {
            "input_ids": ids[i],
            "attention_mask": torch.ones(LENGTH, dtype=torch.long),
            "labels": ids[i] if labels is None else labels[i],
            "id": torch.tensor(1000 + i),
            "text": f"text {i}",
        }
        for i in range(N)
    ]


@pytest.mark.parametrize("make", [_bert, _gpt2])
def test_a_transformer_is_watched_on_its_own_batches(tmp_path, make):
    torch.manual_seed(0)
    net, labels = make()
    watch = NTKMonitor(every_n_train_steps=2, on_error="raise")
    model = Tuned(net)
    run = trainer(pl, tmp_path, [watch])
    run.fit(model, DataLoader(_items(labels), batch_size=4))
    assert [o.step for o in watch.history] == [0, 2, 3]
    last = watch.history[-1]
    assert last.linearization_error is not None
    assert last.kernel_angle > 0
    probe = read_probe(tmp_path / "ntk" / "probe.safetensors")
    taken = inspect.signature(net.forward).parameters.values()
    more = {"id"} if any(each.kind == each.VAR_KEYWORD for each in taken) else set()
    assert set(probe.inputs) == {"input_ids", "attention_mask", *more}
    assert probe.targets.shape[0] == N


def test_the_kernel_of_a_transformer_is_that_of_its_logits(tmp_path):
    torch.manual_seed(0)
    net, labels = _bert()
    watch = NTKMonitor(every_n_train_steps=9, on_error="raise")
    trainer(pl, tmp_path, [watch], max_steps=1).fit(
        Tuned(net), DataLoader(_items(labels), batch_size=4)
    )
    probe = read_probe(tmp_path / "ntk" / "probe.safetensors")
    logits = lambda model, x: model(**x).logits  # noqa: E731
    expected = torch.einsum("nmcc->nm", dense_ntk(net.eval(), probe.inputs, logits))
    assert watch.history[-1].trace == pytest.approx(float(expected.trace()), rel=1e-3)


class _Explicit(nn.Module):
    def forward(self, input_ids, attention_mask=None):
        return input_ids


class _Open(nn.Module):
    def forward(self, input_ids, **others):
        return input_ids


class _Whole(nn.Module):
    def forward(self, batch):
        return batch["input_ids"]


BATCH = {
    "input_ids": torch.zeros(2, 3),
    "id": torch.arange(2),
    "text": ["a", "b"],
    "flag": True,
}


@pytest.mark.parametrize(
    ("model", "kept"),
    [
        (_Explicit(), {"input_ids"}),
        (_Open(), {"input_ids", "id", "flag"}),
        (_Whole(), {"input_ids", "id", "flag"}),
    ],
)
def test_a_model_is_given_what_it_takes(model, kept):
    assert set(inputs_for(model, BATCH)) == kept


def test_inputs_that_are_no_mapping_are_given_as_they_are():
    x = torch.zeros(2, 3)
    assert inputs_for(_Explicit(), x) is x
