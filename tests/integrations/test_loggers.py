"""What the run's loggers get; oracle: TensorBoard's own reader of event files, and the csv module.

The record of the run (``history.jsonl``) and the curves must tell the same story.
"""

import csv
import html
import io
import math
import pathlib
import re

import markdown
import pytest
from integrations.trainings import lightning, loader, mlp, module, trainer
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from ntkwatch import NTKMonitor
from ntkwatch.watch.record.history import History, read_history
from ntkwatch.watch.verdict.verdict import judge

pl = lightning()
SCALARS = {
    "relative_kernel_change": "relative_kernel_change",
    "kernel_scale": "kernel_scale",
    "kernel_angle": "kernel_angle",
    "layer_angle_median": "layer_angle_median",
    "linearization_error": "linearization_error",
    "effective_rank": "effective_rank",
    "relative_displacement": "relative_displacement",
    "target_alignment": "target_alignment",
}


def _fit(root, watch, loggers, *, batches=None, model=None, **settings):
    run = trainer(pl, root, [watch], logger=loggers, **settings)
    run.fit(module(pl) if model is None else model, loader() if batches is None else batches)
    return run


def _monitor(**settings) -> NTKMonitor:
    return NTKMonitor(**{"every_n_train_steps": 2, "on_error": "raise", **settings})


def _tensorboard(root, name="default"):
    return pl.loggers.TensorBoardLogger(root, name=name)


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A run of two epochs under TensorBoard: the monitor, and what its event files say."""
    root = tmp_path_factory.mktemp("tensorboard")
    watch, logger = _monitor(), _tensorboard(root)
    run = _fit(root, watch, logger, max_epochs=2)
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    return watch, run, events


def test_about_ten_scalars_are_logged_under_their_documented_tags(logged):
    watch, _, events = logged
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("ntk/")}
    expected = {*SCALARS, "top_eigenvalue_1", "strength", "overhead_share"}
    if watch.verdict.strength.rank is None:
        expected.remove("strength")
    assert tags == {f"ntk/{tag}" for tag in expected}


@pytest.mark.parametrize("tag", SCALARS)
def test_a_curve_has_the_numbers_of_the_record(logged, tag):
    watch, _, events = logged
    seen = [(o.logged_step, getattr(o, SCALARS[tag])) for o in watch.history]
    expected = [(x, value) for x, value in seen if value is not None]
    curve = [(event.step, event.value) for event in events.Scalars(f"ntk/{tag}")]
    assert [x for x, _ in curve] == [x for x, _ in expected]
    assert [v for _, v in curve] == pytest.approx([v for _, v in expected], rel=1e-6, abs=1e-12)


def test_curves_line_up_with_the_runs_own(logged):
    """Lightning writes the loss of batch i at x = i; after that batch there are i + 1 steps."""
    watch, _, events = logged
    own = {event.step for event in events.Scalars("loss")}
    steps = {o.step: o.logged_step for o in watch.history}
    assert steps == {0: 0, 2: 1, 4: 3, 6: 5, 8: 7, 10: 9, 12: 11}
    assert set(steps.values()) <= own


def test_the_last_step_lines_up_too_when_training_ends_between_observations(tmp_path):
    watch = _monitor(every_n_train_steps=5)
    _fit(tmp_path, watch, False)
    assert {o.step: o.logged_step for o in watch.history} == {0: 0, 5: 4, 6: 5}


def test_accumulation_lines_up_with_the_runs_own_curves(tmp_path):
    watch, logger = _monitor(every_n_train_steps=1), _tensorboard(tmp_path)
    _fit(tmp_path, watch, logger, accumulate_grad_batches=2)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    own = [event.step for event in events.Scalars("loss")]
    assert {o.step: o.logged_step for o in watch.history} == {0: 0, 1: 0, 2: 1, 3: 2}
    assert {o.logged_step for o in watch.history} <= set(own)


def test_the_recorded_loss_is_the_one_that_the_training_step_gave(tmp_path):
    """Under accumulation Lightning hands callbacks a share of it."""
    watch, model = _monitor(every_n_train_steps=1), module(pl)
    _fit(tmp_path, watch, False, model=model, accumulate_grad_batches=2)
    first, *later = watch.history
    assert first.loss == first.loss_start == pytest.approx(model.curve[0], rel=1e-6)
    means = [sum(model.curve[: 2 * o.step]) / (2 * o.step) for o in later]
    assert [o.loss for o in later] == pytest.approx(means, rel=1e-6)


def test_the_kernel_is_shown_as_pictures_and_its_spectrum_as_a_histogram(logged):
    watch, _, events = logged
    shown = {tag: events.Images(f"ntk/{tag}") for tag in ("kernel", "spectrum", "layer_angles")}
    steps = {o.step: o.logged_step for o in watch.history}
    assert [event.step for event in shown["kernel"]] == [steps[at] for at in (0, 2, 8, 12)]
    for tag in ("spectrum", "layer_angles"):
        assert [event.step for event in shown[tag]] == [steps[at] for at in (2, 8, 12)]
    for pictures in shown.values():
        drawn = Image.open(io.BytesIO(pictures[-1].encoded_image_string))
        assert drawn.format == "PNG"
        assert drawn.size == (pictures[-1].width, pictures[-1].height)
        assert len(drawn.convert("RGB").getcolors(drawn.width * drawn.height)) > 50
    histogram = events.Histograms("ntk/log10_eigenvalues")[-1].histogram_value
    top = math.log10(watch.history[-1].top_eigenvalues[0])
    assert histogram.max == pytest.approx(top, rel=1e-6)
    assert 0 < histogram.num <= 48


def _words(text):
    """What TensorBoard's page shows of a Markdown text: it has the same converter."""
    page = markdown.markdown(text, extensions=["tables", "fenced_code"])
    return html.unescape(re.sub(r"<[^>]+>", "", page))


def test_the_verdict_is_text_with_its_evidence_and_its_past(logged):
    watch, _, events = logged
    texts = events.Tensors("ntk/verdict/text_summary")
    text = texts[-1].tensor_proto.string_val[0].decode()
    assert texts[-1].step == watch.history[-1].logged_step
    assert text.startswith("## ")
    shown = _words(text)
    verdict = watch.verdict
    for line in (verdict.label, verdict.reason, *verdict.evidence, verdict.next_step):
        assert line in shown
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", text, re.MULTILINE)
    so_far = [
        judge(History(watch.history.run, watch.history.observations[:n])).label
        for n in range(1, len(watch.history) + 1)
    ]
    expected = [
        (o.step, label)
        for o, label, before in zip(watch.history, so_far, ["", *so_far], strict=False)
        if label != before
    ]
    assert [(int(step), _words(label).strip()) for step, label in rows] == expected


def _layouts(events):
    """Every Custom Scalars page of a run, as groups of charts; TensorBoard shows the last."""
    for event in events.Tensors("custom_scalars__config__"):
        page = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
        yield {group.title: list(group.chart) for group in page.category}


def _matched(chart, tags):
    """Tags that a chart shows: patterns matched from the start, or the three of a margin."""
    if chart.HasField("margin"):
        (series,) = chart.margin.series
        return [{series.value}, {series.lower}, {series.upper}]
    return [{tag for tag in tags if re.match(p, tag)} for p in chart.multiline.tag]


def test_the_custom_scalars_page_has_no_empty_chart_and_forgets_no_scalar(logged):
    _, _, events = logged
    tags = set(events.Tags()["scalars"])
    *_, page = _layouts(events)
    assert list(page) == [
        f"ntk: {group}"
        for group in (
            "regime (set Smoothing to 0)",
            "drift",
            "spectrum and stability",
            "parameters",
            "cost",
        )
    ]
    shown = [
        found for charts in page.values() for chart in charts for found in _matched(chart, tags)
    ]
    assert all(found and found <= tags for found in shown)
    assert set().union(*shown) >= {tag for tag in tags if tag.startswith("ntk")}
    assert "loss" in set().union(*shown), "the run's own loss stands beside them"


def test_a_margin_has_a_point_wherever_its_curve_has(logged):
    """The page draws nothing where one of the three is missing."""
    watch, _, events = logged
    *_, page = _layouts(events)
    margins = [
        c.margin.series[0] for charts in page.values() for c in charts if c.HasField("margin")
    ]
    assert len(margins) == 4
    for series in margins:
        value, lower, upper = (
            {event.step: event.value for event in events.Scalars(tag)}
            for tag in (series.value, series.lower, series.upper)
        )
        assert set(lower) == set(upper) <= set(value)
        assert all(lower[x] <= upper[x] for x in lower)
    last = watch.history[-1]
    ends = [events.Scalars(f"ntk_margins/linearization_error_{e}")[-1].value for e in ("lo", "hi")]
    assert ends == pytest.approx(last.intervals["linearization_error"], rel=1e-6)
    edges = ("lazy_below", "features_above")
    bands = [events.Scalars(f"ntk_margins/linearization_error_{e}")[-1].value for e in edges]
    assert bands == pytest.approx(
        [watch.verdict.bands.lazy_error, watch.verdict.bands.feature_error]
    )


def test_the_user_s_hyperparameters_are_left_alone(logged):
    _, _, events = logged
    assert not [tag for tag in events.Tags()["tensors"] if tag.startswith("_hparams_")]


def test_the_custom_scalars_page_can_be_left_to_the_user(tmp_path):
    logger = _tensorboard(tmp_path)
    _fit(tmp_path, _monitor(custom_scalars=False), logger)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert "custom_scalars__config__" not in events.Tags()["tensors"]
    assert "ntk/kernel_angle" in events.Tags()["scalars"]
    assert not [tag for tag in events.Tags()["scalars"] if tag.startswith("ntk_margins/")]


def test_a_table_gets_a_row_for_each_observation(tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path)
    watch = _monitor()
    _fit(tmp_path, watch, logger)
    with pathlib.Path(f"{logger.log_dir}/metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["ntk/kernel_angle"]]
    assert [int(row["step"]) for row in rows] == [o.logged_step for o in watch.history]
    angles = [float(row["ntk/kernel_angle"]) for row in rows]
    assert angles == pytest.approx([o.kernel_angle for o in watch.history], rel=1e-12)
    assert read_history(logger.log_dir).observations == watch.history.observations


def test_several_loggers_all_get_the_numbers(tmp_path):
    loggers = [_tensorboard(tmp_path), pl.loggers.CSVLogger(tmp_path)]
    watch = _monitor()
    _fit(tmp_path, watch, loggers)
    events = EventAccumulator(loggers[0].log_dir)
    events.Reload()
    assert len(events.Scalars("ntk/kernel_angle")) == len(watch.history)
    assert "ntk/kernel_angle" in (tmp_path / "lightning_logs/version_0/metrics.csv").read_text()


def test_without_a_logger_the_record_lies_in_the_root_folder(tmp_path, caplog):
    root, watch = tmp_path / "my runs", _monitor()
    with caplog.at_level("INFO"):
        _fit(root, watch, False)
    assert len(read_history(root / "ntk")) == len(watch.history) == 4
    assert f"run: ntkwatch report '{root / 'ntk'}'" in caplog.text, "as a shell understands it"


def test_a_trial_run_leaves_no_files(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    watch = _monitor()
    with caplog.at_level("INFO"):
        _fit(tmp_path, watch, True, fast_dev_run=2)
    assert [o.step for o in watch.history] == [0, 2]
    assert list(tmp_path.iterdir()) == []
    assert "Nothing is kept of a trial run." in caplog.text


def test_barebones_trainings_are_watched_as_well(tmp_path):
    watch = _monitor()
    run = pl.Trainer(
        barebones=True,
        max_epochs=1,
        accelerator="cpu",
        callbacks=[watch],
        default_root_dir=tmp_path,
    )

    class Silent(type(module(pl))):
        def log(self, *args, **kwargs):
            pass

    model = Silent()
    model.net = mlp()
    run.fit(model, loader())
    assert [o.step for o in watch.history] == [0, 2, 4, 6]


def test_early_stopping_can_watch_a_tag(tmp_path):
    watch = _monitor(every_n_train_steps=1)
    stop = pl.callbacks.EarlyStopping(
        "ntk/relative_displacement",
        mode="max",
        stopping_threshold=1e-6,
        check_on_train_epoch_end=True,
    )
    run = trainer(pl, tmp_path, [watch, stop], max_epochs=5)
    run.fit(module(pl), loader())
    assert run.current_epoch == 1


def test_a_checkpoint_can_be_kept_by_a_tag(tmp_path):
    watch = _monitor(every_n_train_steps=1)
    keep = pl.callbacks.ModelCheckpoint(
        tmp_path, monitor="ntk/relative_displacement", mode="max", save_on_train_epoch_end=True
    )
    run = trainer(pl, tmp_path, [watch, keep], max_epochs=2, enable_checkpointing=True)
    run.fit(module(pl), loader())
    best = {o.step: o.relative_displacement for o in watch.history}[12]
    assert float(keep.best_model_score) == pytest.approx(best)


def test_a_logger_that_loses_its_server_gets_scalars_all_the_same(tmp_path):
    class Distant(pl.loggers.logger.Logger):
        name, version = "distant", 0

        def __init__(self):
            super().__init__()
            self.lost, self.rows = False, []

        @property
        def experiment(self):
            if self.lost:
                raise ConnectionError("no server")
            return object()

        def log_metrics(self, metrics, step=None):
            self.rows.append(metrics)

        def log_hyperparams(self, *args, **kwargs):
            pass

    watch, logger = _monitor(), Distant()
    loses = pl.callbacks.LambdaCallback(
        on_train_start=lambda trainer, model: setattr(logger, "lost", True)
    )
    trainer(pl, tmp_path, [watch, loses], logger=logger).fit(module(pl), loader())
    assert sum("ntk/kernel_angle" in row for row in logger.rows) == len(watch.history) == 4
