"""What is said about a model before training.

The oracles are models made to be coupled or not, and memory of a known size.
"""

import copy
import json
import time

import pytest
import torch
from torch import nn
from watch.tiny import Attends, Deep, inputs, labels

from ntkwatch import ProbeBatch, forecast
from ntkwatch.errors import RandomForwardError
from ntkwatch.report.checkup_json import render_checkup_json
from ntkwatch.report.checkup_text import render_checkup_text
from ntkwatch.watch.before_training.checkup import Checkup, Cost
from ntkwatch.watch.before_training.examine import examine, sizes_up_to
from ntkwatch.watch.before_training.peak_memory import peak_memory


def _probe(n=40):
    return ProbeBatch(inputs(n, 4), labels(n))


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [(2, [2]), (16, [16]), (20, [16, 20]), (64, [16, 32, 64]), (100, [16, 32, 64, 100])],
)
def test_probe_sizes_double_up_to_the_largest(largest, sizes):
    assert sizes_up_to(largest) == sizes


def test_every_parameter_has_a_route_and_the_model_is_left_as_found():
    model = Deep()
    before = copy.deepcopy(model.state_dict())
    sizes = []
    checkup = examine(model, _probe(), on_size=sizes.append)
    assert list(checkup.routes) == [name for name, _ in model.named_parameters()]
    assert checkup.elements == {name: p.numel() for name, p in model.named_parameters()}
    assert set(checkup.routes.values()) == {"structured"}
    assert {step["parameter"] for step in checkup.plan} == set(checkup.routes)
    assert checkup.no_kernel is None
    assert [cost.probe_size for cost in checkup.costs] == sizes == [16, 32, 40]
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert model.training


def test_coupled_samples_have_no_kernel_and_are_said_to_have_none():
    checkup = examine(Attends(), _probe(32))
    assert checkup.routes == {}
    assert "Attends mixes samples" in checkup.no_kernel
    text = " ".join(render_checkup_text(checkup).split())
    assert "It can be watched in part" in text
    assert "Attends mixes samples" in text


class Draws(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.randn(len(x), 1, dtype=x.dtype)


def test_a_model_that_draws_random_numbers_cannot_be_watched():
    with pytest.raises(RandomForwardError, match="draws random numbers"):
        examine(Draws(4, 3, dtype=torch.float64), _probe())


def test_time_is_that_of_a_forward_that_sleeps():
    class Sleeps(nn.Linear):
        def forward(self, x):
            time.sleep(0.02)
            return super().forward(x)

    checkup = examine(Sleeps(4, 3, dtype=torch.float64), _probe(16), metrics="minimal")
    assert checkup.costs[0].seconds > 0.02


def test_memory_is_what_was_held_at_the_height():
    with peak_memory(torch.device("cpu")) as peak:
        held = torch.ones(2**24)  # 64 MiB
        time.sleep(0.05)
        del held
    if peak.nbytes is None:
        pytest.skip("the system does not tell")
    assert 0.9 * 2**26 < peak.nbytes < 2 * 2**26
    with peak_memory(torch.device("meta")) as peak:
        pass
    assert peak.nbytes is None


def test_the_forecast_is_that_of_the_largest_probe():
    model, probe = Deep(), _probe(40)
    found = examine(model, probe)
    said = forecast(model, probe.inputs, probe.targets)
    assert found.no_forecast is None
    assert found.forecast["strength"] == said.strength
    assert found.forecast["samples"] == 40
    expected = [point.linearization_error for point in said.points]
    assert [p["linearization_error"] for p in found.forecast["points"]] == pytest.approx(expected)
    text = " ".join(render_checkup_text(found).split())
    assert f"{said.strength}, for training on these 40 samples" in text


@pytest.mark.parametrize(
    ("model", "probe", "says"),
    [
        (Deep, ProbeBatch(inputs(16, 4)), "no targets"),
        (Deep, ProbeBatch(inputs(16, 4), labels(16, 5)), "not all from 0 to 2"),
        (Deep, ProbeBatch(inputs(16, 4), torch.ones(16, 2)), "no residual"),
        (Deep, ProbeBatch(inputs(16, 4), torch.full((16, 3), torch.nan)), "hold NaN"),
        (Attends, ProbeBatch(inputs(16, 4), labels(16)), "Attends mixes samples"),
    ],
)
def test_where_nothing_is_foretold_the_reason_is_said(model, probe, says):
    found = examine(model(), probe, metrics="minimal")
    assert found.forecast == {}
    assert says in found.no_forecast
    assert says in " ".join(render_checkup_text(found).split())
    assert json.loads(render_checkup_json(found))["forecast"] == {}


def test_a_model_that_takes_long_is_not_kept_busy_with_a_forecast(monkeypatch):
    monkeypatch.setattr("ntkwatch.watch.before_training.examine._TOO_LONG", 0.0)
    found = examine(Deep(), _probe(16), metrics="minimal")
    assert found.forecast == {}
    assert "takes several kernels" in found.no_forecast


# Forms. -------------------------------------------------------------------------------------------


def _made(**changes):
    names = [f"layer.{i}.weight" for i in range(40)]
    plain = {
        "model": "Net\x1b[31m",
        "spec": {"outputs": "full", "params": names},
        "probe": {"size": 64},
        "elements": dict.fromkeys(names, 25),
        "routes": {name: "structured" if i < 10 else "loop" for i, name in enumerate(names)},
        "no_kernel": None,
        "costs": (
            Cost(probe_size=16, reference_seconds=1.0, seconds=0.5, peak_bytes=3 * 2**20),
            Cost(probe_size=32, reference_seconds=100.0, seconds=61.0, peak_bytes=None),
        ),
        "settings": {"probe_size": 32},
    }
    return Checkup(**{**plain, **changes})


def test_the_text_lists_routes_by_share_and_names_what_is_slow():
    text = render_checkup_text(_made())
    words = " ".join(text.split())
    assert "\x1b" not in text
    assert "loop 30 parameters 75.00% of 1,000 weights" in words
    assert "structured 10 parameters 25.00%" in words
    assert "layer.10.weight: loop" in words
    assert "... and 10 more" in words
    assert "16 0.500 s 1.00 s 3.00 MiB" in words
    assert "32 1 min 1 s 1 min 40 s –" in words
    assert "NTKMonitor(probe_size=32)" in words


def test_json_holds_every_field_and_a_schema_number():
    page = json.loads(render_checkup_json(_made()))
    assert page["ntkwatch_checkup"] == 1
    assert page["costs"][1] == {
        "probe_size": 32,
        "reference_seconds": 100.0,
        "seconds": 61.0,
        "peak_bytes": None,
    }
    assert page["routes"]["layer.39.weight"] == "loop"


def test_a_small_probe_is_advised_to_be_larger():
    checkup = examine(Deep(), _probe(20))
    assert any("a verdict needs as many" in said for said in checkup.suggestions)
    assert checkup.settings["probe_size"] == 32
