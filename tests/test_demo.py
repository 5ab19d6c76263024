"""The demo, run as a user runs it.

The oracle is how the two networks were made: one by a large output scale, one without.
"""

import json
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def _demo(folder, *arguments, code="from ntkwatch.__main__ import main; sys.exit(main())"):
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[0] = 'ntkwatch'; {code}", "demo", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_demo_s_verdicts_are_what_the_networks_were_made_to_be(tmp_path):
    run = _demo(tmp_path, "--out", "here")
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    for name in ("lazy", "feature-learning"):
        folder = tmp_path / "here" / name
        verdict = json.loads((folder / "ntk" / "verdict.json").read_text())
        assert verdict["strength"] == name
        events = EventAccumulator(str(folder)).Reload()
        assert events.Scalars("test/accuracy")[-1].value > 0.9
        assert events.Scalars("ntk/strength")[-1].value == {"lazy": 1, "feature-learning": 3}[name]
        assert f"ntkwatch report {'here/lazy'}" in run.stdout
    assert "feature-learning" in (tmp_path / "here" / "comparison.html").read_text()
    assert (tmp_path / "here" / "comparison.png").stat().st_size > 10_000
    again = _demo(tmp_path, "--out", "here")
    assert again.returncode == 1
    assert "never overwritten" in again.stderr


def test_without_scikit_learn_the_demo_says_what_to_install(tmp_path):
    blocked = "sys.modules['sklearn'] = None; from ntkwatch.__main__ import main; sys.exit(main())"
    run = _demo(tmp_path, code=blocked)
    assert run.returncode == 1
    assert "pip install 'ntkwatch[demo]'" in run.stderr
    assert "Traceback" not in run.stderr
    assert list(tmp_path.iterdir()) == []
