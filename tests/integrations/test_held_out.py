"""Held-out samples in a Lightning run; oracle: the trained model's own accuracy on them."""

import json

import pytest
import torch
from integrations.trainings import data, lightning, loader, module, trainer

from ntkwatch import NTKMonitor, ProbeBatch, read_history
from ntkwatch.errors import InputError
from ntkwatch.report.html import render_html
from ntkwatch.report.json_report import render_json
from ntkwatch.report.markdown import render_markdown
from ntkwatch.report.text import render_text
from ntkwatch.watch.verdict.verdict import judge

pl = lightning()
TRAIN = ProbeBatch(*data(48).tensors, whole_training_set=True)
OTHERS = data(80, seed=9)


def _fit(root, *, validation=None, on_error="raise", **settings):
    watch = NTKMonitor(
        probe=TRAIN,
        metrics="full",
        outputs="full",
        every_n_train_steps=6,
        on_error=on_error,
        **settings,
    )
    model = module(pl)
    if validation is not None:
        type(model).validation_step = lambda self, batch, batch_idx: None
    trainer(pl, root, [watch]).fit(model, loader(48), validation)
    return watch, model


@pytest.mark.parametrize("named", ["val", "batch", "path"])
def test_a_run_says_what_the_kernel_at_the_start_does_on_held_out_samples(tmp_path, named):
    held = {"val": "val", "batch": OTHERS.tensors, "path": f"{__name__}:OTHERS_AS_PROBE"}[named]
    validation = torch.utils.data.DataLoader(OTHERS, batch_size=16) if named == "val" else None
    watch, model = _fit(tmp_path, held_out=held, validation=validation)
    x, y = OTHERS.tensors
    with torch.no_grad():
        expected = (model.net(x).argmax(dim=1) == y).double().mean().item()
    last = watch.history[-1]
    assert last.acc_net == pytest.approx(expected)
    assert last.acc_kernel_ref is not None
    assert last.held_out["n_test"] == 80
    assert last.representer_gap is not None  # SGD with momentum
    history = read_history(tmp_path)
    assert history[-1].acc_net == last.acc_net
    assert history[-1].held_out == last.held_out
    verdict = judge(history)
    for render in (render_text, render_markdown, render_html):
        page = render(history, verdict, title="run")
        assert "held-out accuracy: kernel at the start" in page
    page = json.loads(render_json(history, verdict, title="run"))
    assert page["observations"][-1]["acc_kernel_ref"] == last.acc_kernel_ref
    assert page["verdict"]["use"]["features_needed"] in ("yes", "no", "unknown")


def test_names_and_settings_that_cannot_be_held_out_are_refused():
    with pytest.raises(InputError, match="held_out='nowhere' is not known"):
        NTKMonitor(held_out="nowhere", metrics="full")
    with pytest.raises(InputError, match="metrics='standard' does without"):
        NTKMonitor(held_out="val")


def test_a_run_without_validation_data_ends_all_the_same(tmp_path):
    with pytest.warns(UserWarning, match="'val' asks for validation data"):
        _fit(tmp_path, held_out="val", on_error="warn")


OTHERS_AS_PROBE = ProbeBatch(*OTHERS.tensors)
