"""Short real trainings under either Lightning, and what is left of them afterwards."""

import importlib
import inspect
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

NAMESPACES = ("lightning.pytorch", "pytorch_lightning")
CLASSES = 3


def lightning(namespace: str = "pytorch_lightning") -> Any:
    return importlib.import_module(namespace)


def data(n: int = 48, *, features: int = 5, seed: int = 3) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long())


def loader(n: int = 48, batch_size: int = 8, **settings: Any) -> DataLoader:
    return DataLoader(data(n), batch_size=batch_size, **settings)


class Resumable(DataLoader):
    """Goes on in the middle of an epoch, as Lightning asks of loaders that are resumed there.

    Shuffled or not: an epoch's order hangs on its number alone.
    """

    start = seen = epoch = 0

    def __init__(self, dataset: TensorDataset, *, shuffle: bool = False, **settings: Any) -> None:
        self.generator_of_order = torch.Generator()
        order = RandomSampler(dataset, generator=self.generator_of_order) if shuffle else None
        super().__init__(dataset, sampler=order, **settings)

    def __iter__(self):
        start, self.start = self.start, 0
        self.generator_of_order.manual_seed(self.epoch)
        for number, batch in enumerate(super().__iter__(), start=1):
            if number > start:
                self.seen = number
                yield batch
        self.epoch += 1

    def state_dict(self):
        return {"seen": self.seen, "epoch": self.epoch}

    def load_state_dict(self, state):
        self.start, self.epoch = state["seen"], state["epoch"]


def mlp(*extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), *extra, nn.Tanh(), nn.Linear(8, CLASSES))


def module(pl: Any, net: nn.Module | None = None, *, optimizer: Any = None) -> Any:
    """A LightningModule that has no forward of its own and wraps one network."""

    class Lit(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp() if net is None else net
            self.curve: list[float] = []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            loss = functional.cross_entropy(self.net(x), y)
            self.log("loss", loss)
            self.curve.append(loss.item())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            if optimizer is not None:
                return optimizer(self.parameters())
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    return Lit()


def trainer(pl: Any, root: Path, callbacks: Any = (), **settings: Any) -> Any:
    chosen = {
        "accelerator": "cpu",
        "callbacks": list(callbacks) if isinstance(callbacks, tuple) else callbacks,
        "default_root_dir": root,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "log_every_n_steps": 1,
        "logger": False,
        "max_epochs": 1,
    }
    return pl.Trainer(**{**chosen, **settings})


def without_trust(trainer: Any) -> dict[str, bool]:
    """What tells ``fit`` to trust plain values only: nothing, before Lightning 2.6."""
    told = "weights_only" in inspect.signature(trainer.fit).parameters
    return {"weights_only": True} if told else {}


def streams() -> dict[str, Any]:
    """The state of every random stream of the process."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
    }


def seed_all() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)


def remains(model: Any, trainer: Any) -> dict[str, Any]:
    """All that a training leaves: weights, gradients, optimizers, losses, random streams."""
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "gradients": {
            name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
        },
        "hooks": {
            name: sum(len(hooks) for key, hooks in vars(part).items() if key.endswith("_hooks"))
            for name, part in model.named_modules()
        },
        "modes": {name: part.training for name, part in model.named_modules()},
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "curve": list(model.curve),
        "streams": streams(),
    }


def differing(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two nested remains differ; tensors to the last bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict) and set(a) == set(b):
        return [d for key in a for d in differing(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [d for i, (x, y) in pairs for d in differing(x, y, f"{where}/{i}")]
    return [] if type(a) is type(b) and a == b else [where]
