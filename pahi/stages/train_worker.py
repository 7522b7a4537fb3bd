"""One of several processes that train together: `python -m pahi.stages.train_worker` under torchrun.

It reads the store like the stage that started it; the first process alone writes there.
"""

import os
from typing import Any

import torch
import torch.distributed as dist

from pahi.errors import UserError
from pahi.generators.load import pick_device
from pahi.settings import Settings
from pahi.stages import ingest, train
from pahi.stages.common import Context
from pahi.training.launch import tell, together, told

SETTINGS, PARTITIONS = "PAHI_SETTINGS", "PAHI_PARTITIONS"


def start(ctx: Context, partitions: ingest.Chain) -> None:
    """Trains on these partitions in `train.devices` processes. Raises UserError where they cannot be had."""
    settings, count = ctx.settings, ctx.settings.train.devices
    device = pick_device(settings.device)
    if device.type == "cuda":
        if settings.device not in ("auto", "cuda"):
            raise UserError(f"train.devices is {count}, so device must be cuda or auto, not {settings.device}")
        if torch.cuda.device_count() < count:
            raise UserError(f"train.devices is {count}, and this machine has {torch.cuda.device_count()} GPUs")
    if "memory" in ctx.store.fs.protocol:
        raise UserError(f"train.devices is {count}, and no other process can read the store {settings.root!r}")
    variables = {SETTINGS: settings.model_dump_json(), PARTITIONS: str(len(partitions.outputs))}

    def heard(message: dict[str, Any]) -> None:
        ctx.progress(train.STAGE, message["done"], message["total"], message["note"])

    ctx.release()
    together(__name__, count, variables, heard)


def work() -> None:
    """This process's part, on the GPU of its number where there are GPUs."""
    settings = Settings.model_validate_json(os.environ[SETTINGS])
    gpu = pick_device(settings.device).type == "cuda"
    if gpu:
        number = int(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(number)
        settings = settings.model_copy(update={"device": f"cuda:{number}"})
    dist.init_process_group("nccl" if gpu else "gloo")
    ctx = Context(settings, lambda _, done, total, note: tell(done=done, total=total, note=note))
    chain, count = ingest.chain(ctx), int(os.environ[PARTITIONS])
    train.run(ctx, ingest.Chain(chain.key, chain.outputs[:count], chain.sources[:count]))
    dist.destroy_process_group()


if __name__ == "__main__":
    told(work)
