"""One of two processes that train together while the first is watching; what it saw is saved.

``python -m integrations.process_worker RANK FOLDER``; both run the same cases in the same order.
"""

import contextlib
import dataclasses
import os
import sys
import time
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from integrations.trainings import remains, seed_all
from jacobian.processes import join
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ntkwatch import KernelTracker, NTKMonitor, ProbeBatch
from ntkwatch.watch.budget import OverheadBudget
from ntkwatch.watch.processes.asking import Asking
from ntkwatch.watch.processes.helping import Helper
from ntkwatch.watch.processes.team import Team
from ntkwatch.watch.store import RunFiles

f64 = {"dtype": torch.float64}


class Net(nn.Module):
    """What a stray draw, a flipped mode or a written buffer would show in: dropout, BatchNorm."""

    def __init__(self, classes=3):
        super().__init__()
        self.first, self.norm = nn.Linear(5, 8, **f64), nn.BatchNorm1d(8, **f64)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(8, classes, **f64)
        self.mischief = None

    def forward(self, x):
        x = self.head(self.drop(torch.tanh(self.norm(self.first(x)))))
        if self.mischief is not None and distributed.get_rank() == 1 and not self.training:
            if self.mischief == "raises":
                raise RuntimeError("no forward here")
            x = x * float("nan")
        return x


class Doubled(nn.Module):
    """Its one child is another function than itself."""

    def __init__(self, net):
        super().__init__()
        self.net, self.mischief = net, None

    def forward(self, x):
        if self.mischief is not None and distributed.get_rank() == 1:
            raise RuntimeError("nothing doubles here")
        return 2 * self.net(x)


class Exchanges(Doubled):
    """Averages its outputs over all processes, as contrastive heads and some norms do."""

    def forward(self, x):
        y = self.net(x)
        distributed.all_reduce(y.detach().clone())
        return y


class Clips(nn.Module):
    """Clips a weight past torch, whenever it is measured, in the second process."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x):
        if not self.training and distributed.get_rank() == 1:
            self.net.head.weight.detach().numpy()[...] *= 0.99
        return self.net(x)


class Shaped(nn.Module):
    """A convolution, attention and two kinds of norms."""

    def __init__(self):
        super().__init__()
        self.patch, self.norm = nn.Conv1d(5, 4, 1, **f64), nn.LayerNorm(4, **f64)
        self.mix = nn.MultiheadAttention(4, 2, batch_first=True, **f64)
        self.group, self.drop = nn.GroupNorm(2, 4, **f64), nn.Dropout(0.2)
        self.head = nn.Linear(4, 3, **f64)

    def forward(self, x):
        x = self.patch(x[:, :, None].expand(-1, -1, 3)).mT
        h = self.norm(x)
        x = self.drop(x + self.mix(h, h, h, need_weights=False)[0])
        return self.head(torch.tanh(self.group(x.mean(dim=1))))


class Lit(pl.LightningModule):
    def __init__(self, net, reshard=None):
        super().__init__()
        self.net, self.reshard = net, reshard
        self.curve = []

    def configure_model(self):
        if self.reshard is None or hasattr(self.net, "unshard"):
            return
        mesh = self.device_mesh["data_parallel"]
        for part in (self.net.patch, self.net.mix):
            fully_shard(part, mesh=mesh, reshard_after_forward=self.reshard)
        fully_shard(self.net, mesh=mesh, reshard_after_forward=self.reshard)

    def training_step(self, batch, batch_idx):
        loss = functional.cross_entropy(self.net(batch[0]), batch[1])
        self.curve.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


class Stream(IterableDataset):
    """Batches of four samples, others in each process."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __iter__(self):
        rank = distributed.get_rank()
        for start in range(rank * 4, len(self.x), 8):
            yield self.x[start : start + 4], self.y[start : start + 4]


def data(n=48):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 5, generator=generator, **f64)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


class Keeps(pl.Callback):
    """The whole weights at every step, gathered by all processes."""

    def __init__(self):
        self.weights = {}

    def note(self, trainer, model):
        found = {}
        for name, p in model.net.named_parameters():
            whole = p.detach()
            found[name] = (whole.full_tensor() if hasattr(whole, "full_tensor") else whole).clone()
        self.weights[trainer.global_step] = found

    def on_train_start(self, trainer, pl_module):
        self.note(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.note(trainer, pl_module)


class SeedsEachStep(pl.Callback):
    """So that a resumed training draws what one that never stopped draws."""

    def on_train_batch_start(self, trainer, *_):
        torch.manual_seed(100 * trainer.global_step + distributed.get_rank())


def fitted(
    folder,
    monitor,
    *,
    net=None,
    reshard=None,
    stream=False,
    keep=False,
    further=(),
    checkpoint=None,
    **settings,
):
    """Train, and return what is left, the monitor's last kernel, and what was said."""
    torch.manual_seed(0)
    model = Lit(Net() if net is None else net, reshard)
    x, y = data()
    source = Stream(x, y) if stream else TensorDataset(x, y)
    batches = DataLoader(source, batch_size=None if stream else 4)
    keeper = Keeps()
    strategy = "ddp"
    if reshard is not None:
        strategy = pl.strategies.ModelParallelStrategy(
            data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=True
        )
    chosen = {"max_epochs": 2, "logger": False, "log_every_n_steps": 1}
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        callbacks=[
            *([monitor] if monitor is not None else []),
            *([keeper] if keep else []),
            *further,
        ],
        default_root_dir=folder,
        enable_checkpointing=any(isinstance(c, pl.callbacks.ModelCheckpoint) for c in further),
        enable_model_summary=False,
        enable_progress_bar=False,
        **{**chosen, **settings},
    )
    seed_all()
    torch.manual_seed(11 + distributed.get_rank())  # so that dropout differs between processes
    raised = ""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            trainer.fit(model, batches, ckpt_path=checkpoint)
        except Exception as error:
            raised = f"{type(error).__name__}: {error}"
    left = remains(model, trainer)
    for kind in ("state", "gradients"):
        left[kind] = {n: _local(t) for n, t in left[kind].items()}
    left["optimizers"] = [_local_states(o) for o in left["optimizers"]]
    ours = [str(w.message) for w in said if "ntkwatch" in str(w.message)]
    found = {"left": left, "raised": raised, "said": ours, "weights": keeper.weights}
    if monitor is not None:
        found["history"] = [dataclasses.asdict(o) for o in monitor.history]
        found["gaps"] = [gap.step for gap in monitor.history.gaps]
        run = monitor._run
        tracker = None if run is None else run._tracker
        if tracker is not None and tracker.kernel is not None:
            found["kernel"] = (tracker.kernel.matrix, tracker.kernel.layers)
            found["shared"] = run._crew.shared_kernels
            found["probe"] = tracker.probe.inputs
    return found


def _local(tensor):
    return tensor.to_local().clone() if hasattr(tensor, "to_local") else tensor


def _local_states(state):
    flat = {}
    for index, values in state["state"].items():
        flat[str(index)] = {key: _local(value) for key, value in values.items()}
    return flat


# Kernels in shares. -------------------------------------------------------------------------------


def _together(team, wrong=None, *, classes=12, off=None, raises=False, outer=None, **settings):
    """A model watched by both, and by one process alone; what the first process saw."""
    torch.manual_seed(1)
    net = Net(classes) if outer is None else outer(Net(classes))
    x, y = data(8)
    if off is not None and team.rank == 1:
        off(net)
    net.mischief = wrong
    asking = Asking(team, raises=raises)
    if team.rank == 1:
        outputs = settings.get("outputs")
        helper = Helper(team, forward=None, outputs=outputs if callable(outputs) else None)
        while (message := team.tell()) != "over":
            helper.answer(net, message)
        return None
    said, error = [], ""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pair = []
            for helpers in (asking.kernel, None):
                tracker = KernelTracker(ProbeBatch(x, y), helpers=helpers, **settings)
                tracker.observe(net, 0)
                moved = {n: p.detach() * 1.01 for n, p in net.named_parameters()}
                seen = tracker.observe(net, 1, state=moved)
                kernel = tracker.kernel
                coverage = sorted(set(kernel.coverage.values()))
                numbers = (seen.linearization_error, seen.relative_kernel_change)
                pair.append((kernel.matrix, kernel.layers, coverage, numbers, kernel.plan.passes))
        said = [str(w.message) for w in caught]
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
        pair = []
    finally:
        team.tell("over")
    return {"pair": pair, "said": said, "error": error, "shared": asking.shared}


def _nudged(net):
    with torch.no_grad():
        weight = net.first.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0, **f64))
        net.norm.running_mean += 1


def _shares():
    team = Team.of_all()
    every = {"params": None}
    found = {
        "full": _together(team, classes=3),
        "random": _together(team),
        "trace": _together(team, outputs="trace"),
        "sum": _together(team, outputs="sum"),
        "function": _together(team, outputs=lambda f: f[:, :5]),
        "running": _together(team, batchnorm="running", off=_nudged),
        "reference": _together(team, batchnorm="reference", off=_nudged),
        "probe": _together(team, off=_nudged),
        "loop": _together(team, engine="loop", classes=3),
        "one parameter": _together(team, classes=3, params=["first.weight"]),
        "raises": _together(team, "raises", **every),
        "nan": _together(team, "nan", **every),
        "otherwise": _together(team, "raises", outer=Doubled, **every),
        "exchanges": _together(team, outer=Exchanges),
        "strict": _together(team, "raises", raises=True),
    }
    team.close()
    return found


# Trainings. ---------------------------------------------------------------------------------------


def _monitor(**settings):
    chosen = {"every_n_train_steps": 3, "on_error": "raise", "probe_size": 16}
    return NTKMonitor(**{**chosen, **settings})


def _ddp(folder):
    found = {"alone": fitted(folder / "alone", None)}
    found["watched"] = fitted(folder / "watched", _monitor())
    found["capped"] = fitted(
        folder / "capped", _monitor(every_n_train_steps=None, max_overhead=0.05), max_epochs=4
    )
    found["stream"] = fitted(folder / "stream", _monitor(), stream=True)
    found["stream alone"] = fitted(folder / "stream alone", None, stream=True)
    return found


def _mischief(folder):
    found = {}
    for what in ("raises", "nan"):
        for on_error in ("warn", "raise"):
            torch.manual_seed(0)
            net = Net()
            net.mischief = what
            name = f"{what}, {on_error}"
            found[name] = fitted(folder / name, _monitor(on_error=on_error), net=net, max_epochs=1)
            if found[name]["raised"]:
                continue
    for on_error in ("warn", "raise"):
        torch.manual_seed(0)
        name = f"clips, {on_error}"
        found[name] = fitted(folder / name, _monitor(on_error=on_error), net=Clips(), max_epochs=1)
    with _no_group():
        found["no group"] = fitted(folder / "no group", _monitor(on_error="warn"), max_epochs=1)
    found["disk"] = _full_disk(folder / "disk", "warn")
    found["later"] = _fails_later(folder / "later")
    with _no_reference_at_first(only=0):
        found["reference"] = fitted(folder / "reference", _monitor(on_error="warn"))
    return found


@contextlib.contextmanager
def _no_reference_at_first(only=None):
    """The first look of all is lost at its end, in one process or in every one."""
    before, tried = KernelTracker._remember, []

    def failing(self, seen, step, **rest):
        tried.append(step)
        if len(tried) == 1 and only in (None, distributed.get_rank()):
            raise RuntimeError("lost")
        return before(self, seen, step, **rest)

    KernelTracker._remember = failing
    try:
        yield
    finally:
        KernelTracker._remember = before


@contextlib.contextmanager
def _no_group():
    """The second process finds no network that gloo could use."""
    name = "GLOO_SOCKET_IFNAME"
    before = os.environ.get(name)
    if distributed.get_rank() == 1:
        os.environ[name] = "nowhere0"
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


@contextlib.contextmanager
def _no_room():
    before = RunFiles.append

    def full(self, record):
        raise OSError(28, "No space left on device")

    if distributed.get_rank() == 0:
        RunFiles.append = full
    try:
        yield
    finally:
        RunFiles.append = before


def _full_disk(folder, on_error):
    with _no_room():
        return fitted(folder, _monitor(on_error=on_error), max_epochs=1)


def _fails_later(folder):
    """The first process's own measurement fails at one step only."""
    before = KernelTracker.observe

    def failing(self, model, step, **rest):
        if step == 3:
            raise MemoryError("once")
        return before(self, model, step, **rest)

    KernelTracker.observe = failing
    try:
        return fitted(folder, _monitor(on_error="warn"), max_epochs=2)
    finally:
        KernelTracker.observe = before


def _fsdp(folder):
    found = {}
    for reshard in (True, False):
        for monitor in (_monitor(), None):
            torch.manual_seed(0)
            name = f"{'watched' if monitor else 'alone'}, {reshard}"
            found[name] = fitted(folder / name, monitor, net=Shaped(), reshard=reshard, keep=True)
    torch.manual_seed(0)
    found["stream"] = fitted(
        folder / "stream", _monitor(), net=Shaped(), reshard=True, keep=True, stream=True
    )
    torch.manual_seed(0)
    found["resampled"] = fitted(
        folder / "resampled",
        _monitor(resample_probe=True, probe="train"),
        net=Shaped(),
        reshard=True,
        max_epochs=1,
    )
    found["brief"] = _mostly_brief(folder / "brief")
    found["later"] = _fails_later_sharded(folder / "later")
    torch.manual_seed(0)
    with _no_reference_at_first():
        found["reference"] = fitted(
            folder / "reference", _monitor(on_error="warn"), net=Shaped(), reshard=True, keep=True
        )
    return found


def _resumed(folder):
    """A sharded training that never stops, and one that stops past its warm-up and goes on."""

    def fit(place, steps, checkpoint=None, **settings):
        torch.manual_seed(0)
        keep = pl.callbacks.ModelCheckpoint(
            place / "checkpoints", every_n_train_steps=STOPS_AT, save_top_k=-1
        )
        how = {"max_epochs": None, "max_steps": steps, "further": [SeedsEachStep(), keep]}
        monitor = _monitor(every_n_train_steps=4, **settings)
        how |= {"net": Shaped(), "reshard": True, "checkpoint": checkpoint, "keep": True}
        return fitted(place, monitor, **how)

    found = {"whole": fit(folder / "whole", 36), "stopped": fit(folder / "stopped", STOPS_AT)}
    (checkpoint,) = (folder / "stopped" / "checkpoints").glob(f"*step={STOPS_AT}.ckpt")
    found["elsewhere"] = fit(folder / "elsewhere", 36, checkpoint)
    found["in place"] = fit(folder / "stopped", 36, checkpoint)
    shards = folder / "stopped" / "ntk" / "shards"
    distributed.barrier()
    if distributed.get_rank() == 1:
        (shards / "start-00001-of-00002.safetensors").rename(folder / "kept")
    distributed.barrier()
    found["a part is gone"] = fit(folder / "lost", 28, checkpoint)
    if distributed.get_rank() == 1:
        other = folder / "elsewhere" / "ntk" / "shards" / "start-00001-of-00002.safetensors"
        other.rename(shards / other.name)
    distributed.barrier()
    found["parts of two runs"] = fit(folder / "mixed", 28, checkpoint)
    return found


def _mostly_brief(folder):
    """The first process's budget never affords a kernel before the end; the others have none."""
    before = OverheadBudget.choice
    OverheadBudget.choice = lambda self, step: "brief"
    torch.manual_seed(0)
    try:
        monitor = _monitor(every_n_train_steps=None, max_overhead=0.5)
        return fitted(folder, monitor, net=Shaped(), reshard=True, keep=True)
    finally:
        OverheadBudget.choice = before


def _fails_later_sharded(folder):
    """One process alone fails at one step, and what they remember is not the same any more."""
    before = KernelTracker._remember

    def failing(self, seen, step, **rest):
        if step == 3 and distributed.get_rank() == 1:
            raise MemoryError("here only")
        return before(self, seen, step, **rest)

    KernelTracker._remember = failing
    torch.manual_seed(0)
    try:
        monitor = _monitor(on_error="warn")
        return fitted(folder, monitor, net=Shaped(), reshard=True, max_epochs=1)
    finally:
        KernelTracker._remember = before


STOPS_AT = 24

CASES = {
    "shares": lambda folder: _shares(),
    "ddp": _ddp,
    "mischief": _mischief,
    "fsdp": _fsdp,
    "resumed": _resumed,
}


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    join(rank, folder)
    found = {}
    wanted = sys.argv[3:] or list(CASES)
    for name in wanted:
        start = time.perf_counter()
        (folder / name).mkdir(exist_ok=True)
        found[name] = CASES[name](folder / name)
        sys.stdout.write(f"{name}: {time.perf_counter() - start:.1f} s\n")
        sys.stdout.flush()
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()
