"""Short real trainings under Hugging Face's Trainer, and what is left of them afterwards."""

from pathlib import Path
from typing import Any

import torch
from integrations.trainings import seed_all, streams
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)

N, LENGTH, WORDS, CLASSES = 48, 6, 20, 3


def bert(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=CLASSES,
        **settings,
    )
    return BertForSequenceClassification(config)


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=WORDS, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    )


def texts(n: int = N, *, seed: int = 0, language: bool = False) -> list[dict[str, Any]]:
    """Word numbers whose class is that of the first, or that are their own labels."""
    words = torch.randint(0, WORDS, (n, LENGTH), generator=torch.Generator().manual_seed(seed))
    labels = words if language else words[:, 0] % CLASSES
    mask = torch.ones(LENGTH, dtype=torch.long)
    return [
        {"input_ids": words[i], "attention_mask": mask, "labels": labels[i], "id": f"text {i}"}
        for i in range(n)
    ]


class Items(Dataset):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Curve(Trainer):
    """Keeps the loss of every batch as it is trained on."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.curve = [*getattr(self, "curve", []), loss.item()]
        return loss


def trainer(
    model: nn.Module, root: Path, callbacks: Any = (), *, data: Any = None, **settings: Any
) -> Curve:
    parts = {key: settings.pop(key) for key in ("data_collator", "eval_dataset", "compute_metrics")
             if key in settings}  # fmt: skip
    chosen = {
        "output_dir": str(root),
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "learning_rate": 0.01,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }
    return Curve(
        model=model,
        args=TrainingArguments(**{**chosen, **settings}),
        train_dataset=Items(texts()) if data is None else data,
        callbacks=list(callbacks),
        **parts,
    )


def remains(ended: Curve) -> dict[str, Any]:
    """All that a training leaves: weights, modes, optimizer, losses, logs, random streams."""
    timed = ("runtime", "per_second")
    logs = [
        {key: value for key, value in entry.items() if not key.endswith(timed)}
        for entry in ended.state.log_history
    ]
    return {
        "state": {name: tensor.clone() for name, tensor in ended.model.state_dict().items()},
        "modes": {name: part.training for name, part in ended.model.named_modules()},
        "optimizer": ended.optimizer.state_dict(),
        "curve": ended.curve,
        "logs": logs,
        "streams": streams(),
    }


def ended(make: Any, root: Path, callbacks: Any = ()) -> tuple[Curve, dict[str, Any]]:
    seed_all()
    model, settings = make()
    run = trainer(model, root, callbacks, **settings)
    run.train()
    return run, remains(run)
