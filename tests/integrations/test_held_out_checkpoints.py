"""Were features needed, asked of checkpoints; oracle: ``counterfactual`` on the live weights."""

import json

import pytest
import torch
from integrations.plain_training import CLASSES, Data, Live, Net, train
from torch.utils.data import DataLoader, TensorDataset

from ntkwatch import counterfactual, read_history
from ntkwatch.__main__ import main

HERE = "integrations.test_held_out_checkpoints"
MODEL = ["--model", "integrations.plain_training:Net"]


def _others(n=120, seed=5):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


class WithVal(Data):
    """Samples beside those that are trained on."""

    def val_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(*_others()), batch_size=50)


class Seen(Data):
    """A validation set that is the training set."""

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=16)


class Large(WithVal):
    """More samples times outputs than regression takes."""

    def setup(self, stage: str) -> None:
        self.rows = TensorDataset(*_others(1400, 6))


def others() -> tuple[torch.Tensor, torch.Tensor]:
    return _others()


def fewer() -> tuple[torch.Tensor, torch.Tensor]:
    return _others(60)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of checkpoints, and the live weights by step."""
    live, folder = Live(), tmp_path_factory.mktemp("plain") / "ckpts"
    train(folder, live)
    return folder, live.states


@pytest.mark.parametrize("held_out", ["val", f"{HERE}:others"])
def test_checkpoints_answer_whether_the_features_were_needed(trained, tmp_path, capsys, held_out):
    folder, live = trained
    how = [*MODEL, "--data", f"{HERE}:WithVal", "--held-out", held_out, "--dir", str(tmp_path)]
    assert main(["report", str(folder), *how, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    last = report["observations"][-1]
    data = WithVal()
    data.setup("fit")
    start = torch.load(folder / "step=0.pt", weights_only=True)
    net = Net(width=12)
    net.load_state_dict(live[last["step"]])
    found = counterfactual(start, net, data.rows.tensors, _others())
    assert report["verdict"]["use"]["features_needed"] == found.features_needed
    for name in ("acc_net", "acc_kernel_ref", "acc_kernel_final"):
        assert last[name] == pytest.approx(found.numbers[name], abs=1e-12)
    assert (last["held_out"]["n_train"], last["held_out"]["n_test"]) == (96, 120)
    assert last["probe_size"] == 96


def test_other_held_out_samples_are_measured_anew(trained, tmp_path):
    how = [*MODEL, "--data", f"{HERE}:WithVal", "--dir", str(tmp_path / "ntk")]
    for held_out, count in ((None, None), ("val", 120), (f"{HERE}:fewer", 60), (None, None)):
        more = [] if held_out is None else ["--held-out", held_out]
        assert main(["report", str(trained[0]), *how, *more]) == 0
        assert read_history(tmp_path / "ntk")[-1].held_out.get("n_test") == count


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (["--data", f"{HERE}:Seen"], "are in the training set as well"),
        (["--data", f"{HERE}:Large"], f"1400 samples of {CLASSES} outputs"),
        (["--data", "integrations.plain_training:Data"], "defines no val_dataloader"),
        (["--probe", "probe.safetensors"], "comes from --data"),
    ],
)
def test_what_cannot_be_compared_is_an_error_that_says_so(trained, capsys, data, says):
    assert main(["report", str(trained[0]), *MODEL, *data, "--held-out", "val"]) == 1
    assert says in " ".join(capsys.readouterr().err.split())
