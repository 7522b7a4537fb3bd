"""Data parallel training: processes that share each step's prompts and know each step's whole gradient.

The predictor is the only thing that learns, and it is small beside the networks it learns through: its gradient is
summed once, at the end of a step, over NCCL or gloo. Every process then takes the same step, so their weights are the
same numbers. Noise depends on (prompt_id, seed) alone and not on who draws it: the step is that of one process with the
same prompts, up to the order of floating-point sums.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


class Group:
    """The processes of one training, as torch.distributed knows them; without it, this one alone."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.size = dist.get_world_size() if together else 1
        # NCCL exchanges what lies on this process's GPU, gloo what lies in memory.
        gpu = together and dist.get_backend() == "nccl"
        self.device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's own of some rows (n, ...), contiguous; the processes' shares differ by at most one row."""
        return rows.tensor_split(self.size)[self.rank]

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replaces tensors of one dtype by their sums over all processes, in one exchange."""
        if self.size == 1:
            return
        found = list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in found]).to(self.device)
        dist.all_reduce(flat)
        for tensor, total in zip(found, flat.split([tensor.numel() for tensor in found]), strict=True):
            tensor.copy_(total.view_as(tensor))
