"""Numbers beyond drift and spectrum, against numpy on kernels from plain autograd."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from watch.tiny import Deep, inputs, labels, moved, start_and_now

from ntkwatch import KernelTracker, ProbeBatch

from oracles import dense_jacobian, dense_ntk, naive_angle, naive_distance

N = 40


def _trace(model, x) -> np.ndarray:
    return torch.einsum("nmcc->nm", dense_ntk(model, x)).numpy()


def _centred(kernel: np.ndarray) -> np.ndarray:
    H = np.eye(len(kernel)) - 1 / len(kernel)
    return H @ kernel @ H


def _leaves(value, where: str = "") -> dict:
    """Nested values as one flat dictionary."""
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, tuple):
        pairs = enumerate(value)
    else:
        return {where: value}
    return {leaf: v for key, part in pairs for leaf, v in _leaves(part, f"{where}/{key}").items()}


def _one_hot(classes: int = 3) -> np.ndarray:
    return np.eye(classes)[labels(N).numpy()]


def _alignment(kernel: np.ndarray, Y: np.ndarray) -> float:
    K, Y = _centred(kernel), Y - Y.mean(axis=0)
    return float((K * (Y @ Y.T)).sum() / (np.linalg.norm(K) * np.linalg.norm(Y @ Y.T)))


@pytest.fixture(scope="module")
def deep():
    """A network, the same moved, their kernels, and what the tracker says of the pair."""
    torch.manual_seed(0)
    x, start = inputs(N, 4), Deep()
    now = moved(start)
    _, first, seen = start_and_now(start, now, ProbeBatch(x, labels(N)), metrics="full")
    return start, now, x, first, seen


def test_the_centred_distance_is_that_of_kernels_centred_by_a_matrix(deep):
    start, now, x, _, seen = deep
    expected = naive_distance(_centred(_trace(now, x)), _centred(_trace(start, x)))
    assert seen.kernel_distance_centred == pytest.approx(expected, rel=1e-9)
    assert abs(expected - seen.kernel_distance) > 1e-4, "the test would see nothing"


def test_a_centred_distance_takes_32_points():
    torch.manual_seed(0)
    start = Deep()
    _, _, seen = start_and_now(start, moved(start), ProbeBatch(inputs(31, 4)))
    assert seen.kernel_distance_centred is None
    assert "32 probe points" in seen.left_out["kernel_distance_centred"]


def test_subspace_overlaps_are_those_of_numpys_eigenvectors(deep):
    start, now, x, _, seen = deep
    found = [np.linalg.eigh(_trace(model, x)) for model in (now, start)]
    (now_values, now_vectors), (then_values, then_vectors) = found
    five = np.linalg.norm(now_vectors[:, -5:].T @ then_vectors[:, -5:]) ** 2 / 5
    assert seen.subspace_overlap["5"] == pytest.approx(five, rel=1e-7)
    assert seen.subspace_overlap_null["5"] == pytest.approx(5 / N)

    def rank(values: np.ndarray) -> int:
        shares = np.cumsum(values[::-1]) / values.sum()
        return int((shares < 0.9).sum()) + 1

    k, k_then = rank(now_values), rank(then_values)
    held = np.linalg.norm(now_vectors[:, -k:].T @ then_vectors[:, -k_then:]) ** 2 / min(k, k_then)
    assert seen.subspace_overlap["90%"] == pytest.approx(held, rel=1e-7)
    assert seen.subspace_overlap_null["90%"] == pytest.approx(max(k, k_then) / N)


def test_an_overlap_of_few_points_has_too_high_a_null_and_is_left_out():
    torch.manual_seed(0)
    start = Deep()
    _, _, seen = start_and_now(start, moved(start), ProbeBatch(inputs(19, 4)))
    assert list(seen.subspace_overlap) == ["90%"]
    assert "20 probe points" in seen.left_out["subspace_overlap/5"]


def test_smallest_eigenvalue_and_condition_are_numpys(deep):
    _, now, x, _, seen = deep
    values = np.linalg.eigvalsh(_trace(now, x))
    assert seen.min_eigenvalue == pytest.approx(values[0], rel=1e-6)
    assert seen.condition_number == pytest.approx(values[-1] / values[0], rel=1e-6)
    assert seen.tail_exponent is None
    assert "160 probe points" in seen.left_out["tail_exponent"]


def test_equal_probe_points_leave_the_smallest_eigenvalue_at_the_floor():
    torch.manual_seed(0)
    x = inputs(8, 4)
    seen = KernelTracker(ProbeBatch(torch.cat([x, x]))).observe(Deep(), 0)
    assert (seen.min_eigenvalue, seen.condition_number) == (None, None)
    assert "rounding floor of float64" in seen.left_out["condition_number"]


def test_layer_alignments_are_those_of_each_layers_own_jacobian(deep):
    _, now, x, _, seen = deep
    jacobian = dense_jacobian(now, x)
    for layer in ("first", "norm", "second", "third", "head"):
        own = [name for name in jacobian if name.rpartition(".")[0] == layer]
        K = sum(torch.einsum("iap,jap->ij", jacobian[n], jacobian[n]) for n in own).numpy()
        assert seen.layer_target_alignment[layer] == pytest.approx(
            _alignment(K, _one_hot()), rel=1e-7
        )
    rng = np.random.default_rng(0)
    K, Y = _trace(now, x), _one_hot()
    null = [_alignment(K, Y[rng.permutation(N)]) for _ in range(400)]
    z = (_alignment(K, Y) - np.mean(null)) / np.std(null)
    assert seen.target_alignment_z == pytest.approx(z, abs=0.5)
    assert all(math.isfinite(z) for z in seen.layer_target_alignment_z.values())


def test_the_rise_of_alignment_and_norm_is_that_of_two_kernels_on_one_probe(deep):
    start, now, x, first, seen = deep
    Y = _one_hot()
    K, R = _trace(now, x), _trace(start, x)
    rise = (_alignment(K, Y) - _alignment(R, Y)) / first.target_alignment_null_sd
    assert seen.target_alignment_rise == pytest.approx(rise, rel=1e-6)

    def norm(kernel: np.ndarray, ridge: float) -> float:
        centred = Y - Y.mean(axis=0)
        solved = np.linalg.solve(kernel + ridge * np.trace(kernel) / N * np.eye(N), centred)
        return float(np.trace(kernel) * (centred * solved).sum())

    for ridge in (1e-6, 1e-3):
        expected = norm(K, ridge) / norm(R, ridge)
        assert seen.rkhs_norm_ratio[f"{ridge:g}"] == pytest.approx(expected, rel=1e-6)


def test_a_shift_common_to_all_samples_is_out_of_the_centred_error():
    """The head's bias alone moves all outputs alike, and a square of it is not linear."""

    class Shifted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(4, 3, dtype=torch.float64)
            self.shift = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))

        def forward(self, x):
            return self.inner(x) + self.shift + 3 * self.shift**2

    torch.manual_seed(0)
    start = Shifted()
    _, _, seen = start_and_now(start, moved(start, 0.5), ProbeBatch(inputs(N, 4)))
    assert seen.linearization_error > 0.05
    assert seen.linearization_error_centred < 1e-12


def test_the_way_is_the_sum_of_its_angles_and_the_velocity_that_of_the_last_stretch():
    torch.manual_seed(0)
    x, start = inputs(12, 4), Deep()
    models = {0: start, 4: moved(start, 0.2), 6: moved(start, 0.3, seed=5), 16: moved(start, 0.01)}
    tracker = KernelTracker(ProbeBatch(x))
    seen = [tracker.observe(model, step) for step, model in models.items()]
    kernels = [_trace(model, x) for model in models.values()]
    angles = [naive_angle(kernels[i + 1], kernels[i]) for i in range(3)]
    assert [o.path_length for o in seen] == pytest.approx([0, *np.cumsum(angles)], rel=1e-9)
    assert seen[0].angular_velocity is None
    assert [o.angular_velocity for o in seen[1:]] == pytest.approx(
        [angles[0] / 4, angles[1] / 2, angles[2] / 10], rel=1e-9
    )
    ratio = sum(angles) / naive_angle(kernels[3], kernels[0])
    assert seen[3].path_length_ratio == pytest.approx(ratio, rel=1e-9)
    assert ratio > 5, "there and back again"
    assert seen[1].path_length_ratio == pytest.approx(1)
    again = tracker.observe(models[16], 16)  # the same step once more is no further way
    assert again.path_length == pytest.approx(seen[3].path_length)


def test_a_kernel_that_stays_has_a_path_of_noise_only():
    torch.manual_seed(0)
    _, _, seen = start_and_now(start := Deep(), start, ProbeBatch(inputs(12, 4)))
    assert seen.path_length_ratio is None
    assert "up to noise" in seen.left_out["path_length_ratio"]


def test_a_resumed_run_without_its_last_kernel_says_that_part_of_the_way_is_missing():
    torch.manual_seed(0)
    probe, start = ProbeBatch(inputs(12, 4)), Deep()
    first, second = KernelTracker(probe), KernelTracker(probe)
    first.observe(start, 0)
    first.observe(moved(start), 3)
    second.resume(first.history, first.reference)
    seen = second.observe(moved(start, 0.2), 5)
    assert "not kept" in seen.left_out["angular_velocity"]
    later = second.observe(moved(start, 0.3), 6)
    assert later.angular_velocity is not None
    assert "not observed" in later.left_out["path_length"]


def test_each_level_of_metrics_holds_the_cheaper_one():
    torch.manual_seed(0)
    start, probe = Deep(), ProbeBatch(inputs(N, 4), labels(N))
    known = {}
    for level in ("minimal", "standard", "full"):
        _, _, seen = start_and_now(start, moved(start), probe, metrics=level)
        about = {"seconds", "left_out", "noise_floor"}
        values = {f: getattr(seen, f) for f in seen.__dataclass_fields__ if f not in about}
        known[level] = {f: v for f, v in values.items() if v not in (None, {}, ())}
    assert known["minimal"].keys() < known["standard"].keys() < known["full"].keys()
    # The one sums over outputs in the kernel, the other afterwards.
    full, standard = (
        _leaves({f: known[level][f] for f in known["standard"]}) for level in ("full", "standard")
    )
    close = {leaf: v for leaf, v in standard.items() if isinstance(v, float)}
    assert {leaf: full[leaf] for leaf in close} == pytest.approx(close, rel=1e-9, abs=1e-12)
    assert {leaf: v for leaf, v in full.items() if leaf not in close} == {
        leaf: v for leaf, v in standard.items() if leaf not in close
    }
    only = known["full"].keys() - known["standard"].keys()
    assert only == {
        "displacement_path",
        "displacement_path_ratio",
        "full_kernel_angle",
        "full_kernel_change",
        "layer_target_alignment",
        "layer_target_alignment_z",
    }
    assert {"kernel_angle", "linearization_error", "displacement"} <= known["minimal"].keys()


def test_the_weights_path_is_the_sum_of_its_parts_and_a_straight_one_is_the_displacement():
    torch.manual_seed(0)
    start = Deep()
    places = [start, moved(start, 0.1, seed=2), moved(start, 0.2, seed=3)]
    tracker = KernelTracker(ProbeBatch(inputs(N, 4)), metrics="full")
    seen = [tracker.observe(place, step) for step, place in enumerate(places)]
    flat = [torch.nn.utils.parameters_to_vector(p.parameters()).detach().numpy() for p in places]
    parts = [np.linalg.norm(b - a) for a, b in pairwise(flat)]
    assert seen[0].displacement_path == 0
    assert seen[1].displacement_path_ratio == pytest.approx(1, rel=1e-12)
    assert seen[2].displacement_path == pytest.approx(sum(parts), rel=1e-12)
    ratio = sum(parts) / np.linalg.norm(flat[2] - flat[0])
    assert seen[2].displacement_path_ratio == pytest.approx(ratio, rel=1e-12)
    again = tracker.observe(places[2], 2)
    assert again.displacement_path == pytest.approx(sum(parts), rel=1e-12)
    back = tracker.observe(places[0], 3)
    assert "where they were" in back.left_out["displacement_path_ratio"]


def test_the_weights_path_is_not_known_after_a_resume_nor_kept_unasked():
    start, x = Deep(), inputs(N, 4)
    plain = KernelTracker(ProbeBatch(x))
    plain.observe(start, 0)
    assert plain.observe(moved(start), 1).displacement_path is None
    tracker = KernelTracker(ProbeBatch(x), metrics="full")
    tracker.observe(start, 0)
    later = KernelTracker(ProbeBatch(x), metrics="full")
    later.resume(tracker.history, tracker.reference)
    seen = later.observe(moved(start), 1)
    assert "not kept" in seen.left_out["displacement_path"]


def test_drift_between_outputs_is_that_of_the_whole_kernel(deep):
    start, now, x, _, seen = deep
    flat = [dense_ntk(m, x).permute(0, 2, 1, 3).reshape(N * 3, -1).numpy() for m in (now, start)]
    change = np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1])
    assert seen.full_kernel_change == pytest.approx(change, rel=1e-9)
    assert seen.full_kernel_angle == pytest.approx(naive_angle(*flat), rel=1e-7)
    assert abs(seen.full_kernel_angle - seen.kernel_angle) > 1e-3, "the test would see nothing"


def test_drift_between_outputs_takes_their_kernel():
    start = Deep()
    traced = start_and_now(
        start, moved(start), ProbeBatch(inputs(N, 4)), metrics="full", outputs="trace"
    )
    assert "outputs='full'" in traced[2].left_out["full_kernel_angle"]
