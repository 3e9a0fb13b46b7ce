"""Several processes of this machine as one `torch.distributed` group."""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn


def launch(function: Callable[..., Any], processes: int, *args: Any) -> list[Any]:
    """Run a function in several processes that form a `torch.distributed` group.

    On a machine with as many GPUs as processes each gets one (NCCL), otherwise they compute on the CPU (Gloo).

    Args:
        function: importable by name; called with `args` in each process.
        processes: how many.
        args: picklable.

    Returns:
        What the function returned in each process, by rank.

    Raises:
        ValueError: fewer than one process.
        torch.multiprocessing.ProcessRaisedException: a process failed; its traceback is in the message.
    """
    if processes < 1:
        raise ValueError(f"processes is {processes}; expected at least 1")
    with tempfile.TemporaryDirectory(prefix="launch-") as folder:
        spawn(_in_group, (function, processes, folder, args), nprocs=processes)
        return [pickle.loads((Path(folder) / f"result-{rank}").read_bytes()) for rank in range(processes)]


def _in_group(rank: int, function: Callable[..., Any], processes: int, folder: str, args: Sequence[Any]) -> None:
    gpus = torch.cuda.device_count() >= processes
    if gpus:
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    dist.init_process_group(
        "nccl" if gpus else "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes
    )
    try:
        (Path(folder) / f"result-{rank}").write_bytes(pickle.dumps(function(*args)))
        dist.barrier()  # nobody leaves while another one still listens
    except BaseException:
        dist.destroy_process_group()
        raise
    # What is left of a group when the interpreter ends can abort the process, after its work is done.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
