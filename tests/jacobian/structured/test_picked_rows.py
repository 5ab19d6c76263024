"""Parameters of which a batch shows a part only, such as positions: held against plain autograd."""

import pytest
import torch
from torch import Tensor, nn

from ntkwatch import empirical_ntk


class Positioned(nn.Module):
    """Texts of a few tokens under learned positions, in the forms in which they come."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form = form
        self.tokens = nn.Embedding(7, 4)
        self.table = nn.Embedding(9, 4, padding_idx=8)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.tanh(self.tokens(x) + self._positions(x))
        if self.form == "two uses":
            found = found + self.table.weight[1 : x.shape[1] + 1]
        return self.head(found).mean(dim=1)

    def _positions(self, x: Tensor) -> Tensor:
        length, table = x.shape[1], self.table.weight
        count = torch.arange(length)
        if self.form in ("slice", "two uses"):
            return table[:length]
        if self.form == "step":
            return table[: 2 * length : 2].unsqueeze(0)
        if self.form == "transposed slice":
            return table.T[:, :length].T
        if self.form == "lookup":
            return self.table(count)
        if self.form == "lookup of one row each":
            return self.table(count.flip(0)[None])
        if self.form == "repeated lookup":
            return self.table(count // 2)
        if self.form == "lookup of padding":
            return self.table(count + 9 - length)
        if self.form == "broadcast":
            return table[:1].expand(length, 4)
        assert self.form == "twice"
        return table[:length] + table[1 : length + 1]


FORMS = (
    "slice",
    "step",
    "transposed slice",
    "lookup",
    "lookup of one row each",
    "repeated lookup",
    "lookup of padding",
    "broadcast",
    "twice",
    "two uses",
)


def _rows(model: nn.Module, texts: Tensor) -> Tensor:
    """Gradients (N, C, P) of every output by itself."""
    parameters = list(model.parameters())
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(y, parameters, retain_graph=True)])
        for x in texts
        for y in model(x[None])[0]
    ]
    return torch.stack(rows).view(len(texts), 3, -1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lengths", [(4, None), (4, 4), (4, 3)])
@pytest.mark.parametrize("budget", [2**30, 2**12])
def test_positions_that_a_text_does_not_reach_add_nothing(form, lengths, budget):
    model = Positioned(form).double()
    texts = torch.arange(5 * lengths[0]).view(5, -1) % 7
    others = None if lengths[1] is None else torch.arange(3 * lengths[1]).view(3, -1) ** 2 % 7
    found = empirical_ntk(
        model, texts, other=others, outputs="full", engine="structured", memory_budget=budget
    )
    left = _rows(model, texts)
    right = left if others is None else _rows(model, others)
    expected = torch.einsum("ncp,mdp->nmcd", left, right)
    assert set(found.coverage.values()) == {"structured"}
    torch.testing.assert_close(found.matrix.view(expected.shape), expected, rtol=1e-12, atol=1e-13)


def test_a_long_table_of_which_little_is_read_is_not_held():
    model = Positioned("lookup").double()
    model.table = nn.Embedding(100_000, 4, dtype=torch.float64)
    texts = torch.arange(20).view(5, 4) % 7
    found = empirical_ntk(model, texts, outputs="full", engine="structured")
    assert found.plan is not None
    held = {step.parameter: step.nbytes for step in found.plan.steps}
    assert held["table.weight"] == 5 * 3 * (4 * 4) * 8  # samples, outputs, entries read, bytes
