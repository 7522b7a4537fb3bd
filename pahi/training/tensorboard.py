"""Figures of training for TensorBoard, beside the metrics table."""

from typing import Any

from pahi.errors import UserError


class Board:
    """Writes event files into a folder. It is the trainer's `watch`."""

    def __init__(self, folder: str) -> None:
        """Raises UserError where TensorBoard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "train.tensorboard needs the package tensorboard: pip install 'pahi[tensorboard]', or leave it empty"
            ) from None
        self.folder, self.make = folder, SummaryWriter
        self.writer: Any = None

    def __call__(self, step: int, figures: dict[str, float]) -> None:
        if self.writer is None:
            # What a killed run wrote of this step and later ones is hidden.
            self.writer = self.make(self.folder, purge_step=step)
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Before the state is saved: a resumed run goes on from there, and does not write earlier steps again."""
        if self.writer is not None:
            self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
