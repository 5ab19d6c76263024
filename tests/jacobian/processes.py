"""Two processes of a gloo group that run the same module, for tests of data-parallel models."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import torch

import ntkwatch

__all__ = ["join", "results_of"]

_PATHS = [str(Path(ntkwatch.__file__).parents[1]), str(Path(__file__).parents[1])]
_SECONDS = 240


def join(rank, folder):
    """Make this process one of the two."""
    store = torch.distributed.FileStore(str(Path(folder) / "store"), 2)
    patience = timedelta(seconds=_SECONDS / 4)
    torch.distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=2, timeout=patience
    )


def results_of(module, folder):
    """Run ``python -m module RANK FOLDER`` twice at once; return what each saved as RANK.pt."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(_PATHS)}
    files = [(folder / f"{rank}.txt").open("w") for rank in (0, 1)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), str(folder)],
            stdout=files[rank],
            stderr=files[rank],
            env=environment,
        )
        for rank in (0, 1)
    ]
    try:
        codes = [process.wait(timeout=_SECONDS) for process in processes]
    finally:
        for process, file in zip(processes, files, strict=True):
            process.kill()
            file.close()
    assert codes == [0, 0], "\n\n".join((folder / f"{r}.txt").read_text() for r in (0, 1))
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
