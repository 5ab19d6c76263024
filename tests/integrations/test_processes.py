"""Two processes that train together while one of them watches.

Oracles: the run that nobody watched, and kernels by plain autograd on whole weights. Both processes
run ``process_worker`` once; the tests look at what they saved.
"""

import re

import pytest
import torch
from integrations.process_worker import STOPS_AT, Shaped, data
from integrations.trainings import differing
from jacobian.processes import results_of

from ntkwatch import read_history
from ntkwatch.watch.record.records import NOT_TAKEN, TIMINGS

from oracles import dense_jacobian, dense_ntk

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def both(folder):
    return results_of("integrations.process_worker", folder)


def _close(found, exact):
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10 * float(exact.abs().max()))


# Kernels in shares. -------------------------------------------------------------------------------


KINDS = "full random trace sum function running reference probe loop"


@pytest.mark.parametrize("kind", [*KINDS.split(), "one parameter"])
def test_a_kernel_in_shares_is_that_of_one_process(both, kind):
    shared, alone = both[0]["shares"][kind]["pair"]
    assert both[0]["shares"][kind]["shared"] == 2, (
        "the reference and one look; the noise floor is the first one's own"
    )
    _close(shared[0], alone[0])
    assert list(shared[1]) == list(alone[1])
    for layer, part in alone[1].items():
        _close(shared[1][layer], part)
    assert shared[2] == alone[2]
    assert shared[3] == pytest.approx(alone[3], rel=1e-10)


@pytest.mark.parametrize("kind", ["random", "trace"])
def test_backward_passes_are_shared_where_directions_are_added_up(both, kind):
    shared, alone = both[0]["shares"][kind]["pair"]
    assert shared[4] == alone[4], "all processes together make as many as one would"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("raises", "no forward here"),
        ("nan", "are NaN or infinite"),
        ("otherwise", "cannot be called on the probe"),  # and its child, which could, is not asked
    ],
)
def test_what_another_process_cannot_do_is_done_by_the_first_and_said_once(both, kind, words):
    found = both[0]["shares"][kind]
    (said,) = found["said"]
    assert said.startswith("another process could not help ntkwatch")
    assert "process 1: " in said
    assert words in said
    shared, alone = found["pair"]
    assert torch.equal(shared[0], alone[0])
    assert found["shared"] == 0


def test_the_failure_of_another_process_is_raised_where_that_is_wanted(both):
    assert both[0]["shares"]["strict"]["error"].startswith("ProcessError: process 1: ForwardError")


def test_a_forward_that_waits_for_the_others_is_refused_before_it_does(both):
    found = both[0]["shares"]["exchanges"]
    assert found["error"].startswith("ProcessError: the forward pass exchanges something")


# Data-parallel training. --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["", "stream"])
def test_a_watched_data_parallel_run_ends_as_an_unwatched_one_bit_for_bit(both, kind):
    for rank, saved in enumerate(both):
        watched, alone = saved["ddp"][kind or "watched"], saved["ddp"][f"{kind} alone".strip()]
        assert not watched["raised"]
        assert differing(watched["left"], alone["left"]) == [], rank


def test_the_first_process_alone_writes_and_every_observation_is_there_once(both, folder):
    first, second = (saved["ddp"]["watched"] for saved in both)
    steps = [0, 3, 6, 9, 12]
    assert [seen["step"] for seen in first["history"]] == steps
    assert second["history"] == []
    (run,) = (folder / "ddp" / "watched").glob("ntk*")
    assert [seen.step for seen in read_history(run)] == steps
    assert first["shared"] == len(steps), "the noise floor is the first process's own"


def test_the_schedule_under_a_budget_is_that_of_the_first_process(both):
    steps = [seen["step"] for seen in both[0]["ddp"]["capped"]["history"]]
    assert steps[0] == 0
    assert steps[-1] == 24


@pytest.mark.parametrize("what", ["raises", "nan"])
def test_a_failure_in_one_process_only_neither_hangs_nor_stops_the_watching(both, what):
    first, second = (saved["mischief"][f"{what}, warn"] for saved in both)
    assert first["raised"] == second["raised"] == ""
    (said,) = first["said"]
    assert "process 1: " in said
    assert second["said"] == []
    assert [seen["step"] for seen in first["history"]] == [0, 3, 6]


@pytest.mark.parametrize("what", ["raises", "nan"])
def test_all_processes_stop_where_failures_are_to_be_raised(both, what):
    first, second = (saved["mischief"][f"{what}, raise"] for saved in both)
    assert first["raised"].startswith("ProcessError: process 1: ")
    assert second["raised"].startswith("ProcessError: the first process stopped watching")


def test_what_measuring_did_to_another_process_is_said_there_and_ends_no_training(both):
    first, second = (saved["mischief"]["clips, warn"] for saved in both)
    assert first["raised"] == second["raised"] == ""
    (said,) = second["said"]
    assert "this process helps to measure no more: " in said
    assert "changed 1 of the tensors" in said
    assert [seen["step"] for seen in first["history"]] == [0, 3, 6]


def test_what_measuring_did_to_another_process_is_raised_in_all_where_that_is_wanted(both):
    first, second = (saved["mischief"]["clips, raise"] for saved in both)
    assert first["raised"].startswith("ProcessError: process 1: WeightsChangedError")
    assert second["raised"].startswith("ProcessError: the first process stopped watching")


def test_processes_that_find_no_network_of_their_own_are_watched_by_the_first_alone(both):
    first, second = (saved["mischief"]["no group"] for saved in both)
    assert first["raised"] == second["raised"] == ""
    (said,) = first["said"]
    assert "Set GLOO_SOCKET_IFNAME" in said
    assert [seen["step"] for seen in first["history"]] == [0, 3, 6]
    assert first["shared"] == 0


def test_a_full_disk_of_the_first_process_is_said_once_and_training_goes_on(both):
    first, second = (saved["mischief"]["disk"] for saved in both)
    assert first["raised"] == second["raised"] == ""
    (said,) = first["said"]
    assert "No space left on device" in said
    assert [seen["step"] for seen in first["history"]] == [0, 3, 6]


def test_a_look_that_fails_in_the_first_process_is_a_gap_and_the_others_go_on(both):
    first, second = (saved["mischief"]["later"] for saved in both)
    assert first["raised"] == second["raised"] == ""
    assert first["gaps"] == [3]
    assert [seen["step"] for seen in first["history"]] == [0, 6, 9, 12]


@pytest.mark.parametrize("strategy", ["mischief", "fsdp"])
def test_a_reference_that_fails_once_is_late_in_all_processes(both, strategy):
    first, second = (saved[strategy]["reference"] for saved in both)
    assert first["raised"] == second["raised"] == ""
    (said,) = first["said"]
    assert "could not observe step 0: RuntimeError: lost." in said
    assert second["said"] == []
    assert first["gaps"] == [0]
    assert [seen["step"] for seen in first["history"]] == [1, 3, 6, 9, 12]
    if strategy == "fsdp":
        _check_against_autograd(first, start=1)


# Shards. ------------------------------------------------------------------------------------------


def _at(weights):
    model = Shaped().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])
    return model


def _check_against_autograd(saved, *, start=0):
    """The last kernel, and every linearization error and displacement."""
    weights, x = saved["weights"], saved["probe"]
    exact = dense_ntk(_at(weights[12]), x)
    _close(saved["kernel"][0], exact.diagonal(dim1=2, dim2=3).sum(dim=-1))
    reference = _at(weights[start])
    jacobian = dense_jacobian(reference, x)
    for seen in saved["history"][1:]:
        now = weights[seen["step"]]
        moved = {name: (now[name] - w).flatten() for name, w in weights[start].items()}
        with torch.no_grad():
            change = _at(now)(x) - reference(x)
        linear = sum(jacobian[name] @ moved[name] for name in moved)
        error = float((change - linear).norm() / change.norm())
        assert seen["linearization_error"] == pytest.approx(error, rel=1e-8)
        distance = float(torch.cat(list(moved.values())).norm())
        assert seen["displacement"] == pytest.approx(distance, rel=1e-10)


@pytest.mark.parametrize("reshard", [True, False])
def test_a_watched_sharded_run_ends_as_an_unwatched_one_bit_for_bit(both, reshard):
    for rank, saved in enumerate(both):
        watched, alone = (saved["fsdp"][f"{how}, {reshard}"] for how in ("watched", "alone"))
        assert not watched["raised"]
        assert differing(watched["left"], alone["left"]) == [], rank


def test_brief_observations_of_shards_have_the_same_errors_and_no_kernel(both):
    saved = both[0]["fsdp"]["brief"]
    assert saved["said"] == []
    assert saved["raised"] == ""
    brief = [seen["left_out"].get("kernel") == NOT_TAKEN for seen in saved["history"]]
    assert len(brief) > 3
    assert brief == [False, *[True] * (len(brief) - 2), False]
    _check_against_autograd(saved)


@pytest.mark.parametrize("reshard", [True, False])
def test_what_is_seen_of_shards_is_what_autograd_sees_of_the_whole(both, reshard):
    saved = both[0]["fsdp"][f"watched, {reshard}"]
    assert [seen["step"] for seen in saved["history"]] == [0, 3, 6, 9, 12]
    _check_against_autograd(saved)
    assert both[1]["fsdp"][f"watched, {reshard}"]["history"] == []


def test_a_probe_of_the_first_process_is_gathered_and_its_reference_is_the_start(both):
    saved = both[0]["fsdp"]["stream"]
    assert saved["history"][0]["step"] == 0
    # Rows of the first process's own batches, every other four.
    own = data()[0].view(-1, 2, 4, 5)[:4, 0].reshape(16, 5)
    assert sorted(saved["probe"].tolist()) == sorted(own.tolist())
    _check_against_autograd(saved)


def test_fresh_probes_reach_every_process(both):
    first, second = (saved["fsdp"]["resampled"] for saved in both)
    assert first["raised"] == second["raised"] == ""
    prints = [seen["probe_fingerprint"] for seen in first["history"]]
    assert len(set(prints)) == len(prints) == 3


def test_processes_that_remember_different_things_stop_watching_together(both):
    first, second = (saved["fsdp"]["later"] for saved in both)
    assert first["raised"] == second["raised"] == ""
    (said,) = first["said"]
    assert "could not be observed by all processes (process 1: MemoryError: here only)" in said
    assert "not watched any further" in said
    assert first["gaps"] == [3]


# Shards, resumed. ---------------------------------------------------------------------------------


def _numbers(saved):
    return [{k: v for k, v in seen.items() if k not in TIMINGS} for seen in saved["history"]]


@pytest.mark.parametrize("where", ["elsewhere", "in place"])
def test_a_resumed_sharded_run_sees_what_one_that_never_stopped_sees(both, folder, where):
    """Past its warm-up, in the folder of the stopped run and in one of its own."""
    first, second = (saved["resumed"][where] for saved in both)
    assert first["raised"] == second["raised"] == ""
    assert first["said"] == second["said"] == []
    whole = both[0]["resumed"]["whole"]
    assert differing(first["left"]["state"], whole["left"]["state"]) == []
    assert _numbers(first) == _numbers(whole)
    steps = [0, 4, 8, 12, 16, 20, STOPS_AT, 28, 32, 36]
    assert [seen["step"] for seen in first["history"]] == steps
    assert first["history"][-1]["since_warmup"]["anchor_step"] == 20
    place = {"elsewhere": "elsewhere", "in place": "stopped"}[where]
    again = read_history(folder / "resumed" / place / "ntk")
    assert [seen.step for seen in again] == steps
    assert again.run.reference_is_start


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("a part is gone", "process 1: .*start-00001-of-00002.safetensors cannot be read"),
        ("parts of two runs", "the parts in the processes' files are of different anchors"),
    ],
)
def test_a_sharded_run_without_all_its_parts_says_so_and_counts_from_here(both, what, words):
    first, second = (saved["resumed"][what] for saved in both)
    assert first["raised"] == second["raised"] == ""
    (said,) = first["said"]
    assert said.startswith(f"training goes on from step {STOPS_AT} and what ntkwatch saw of it")
    assert re.search(words, said)
    assert second["said"] == []
    assert [seen["step"] for seen in first["history"]] == [STOPS_AT, 28]


def test_what_is_found_unusable_is_left_as_it_was(both, folder):
    """The history of the stopped run is not cut for a run that does not take it up."""
    again = read_history(folder / "resumed" / "stopped" / "ntk")
    assert again[-1].step == 36
