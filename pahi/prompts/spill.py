"""What grows with the number of prompts, in memory up to a size and in a temporary file beyond it.

The files have no name, so that nothing is left behind however the process ends. They lie where TMPDIR says.
"""

import mmap
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

MEMORY = 64 << 20  # bytes of each table or array that stay in memory
BATCH = 10_000  # rows


class Rows:
    """A table that grows by rows or by batches, and is read when it is complete."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema, self.length = schema, 0
        self._waiting: list[tuple[Any, ...]] = []
        self._held: list[pa.RecordBatch] = []
        self._bytes = 0
        self._file: Any = None
        self._writer: pa.RecordBatchFileWriter | None = None

    def add(self, *values: Any) -> None:
        """One row, in the order of the schema."""
        self._waiting.append(values)
        if len(self._waiting) == BATCH:
            self._pack()

    def extend(self, batch: pa.RecordBatch) -> None:
        """A batch of this schema. Rows that were added one by one before it come first."""
        self._pack()
        self._keep(batch)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, of which only one batch at a time need be in memory. Nothing can be added any more."""
        self._finish()
        yield from self._held
        if self._file is not None:
            self._file.seek(0)
            reader = pa.ipc.open_file(pa.PythonFile(self._file, "r"))
            for i in range(reader.num_record_batches):
                yield reader.get_batch(i)

    def table(self) -> pa.Table:
        """All rows; those in the file are mapped, so that the system can let go of their memory."""
        self._finish()
        if self._file is None:
            return pa.Table.from_batches(self._held, self.schema)
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).read_all()

    def _pack(self) -> None:
        if self._waiting:
            columns = zip(*self._waiting, strict=True)
            arrays = [pa.array(c, field.type) for c, field in zip(columns, self.schema, strict=True)]
            self._waiting = []
            self._keep(pa.RecordBatch.from_arrays(arrays, schema=self.schema))

    def _keep(self, batch: pa.RecordBatch) -> None:
        self.length += len(batch)
        self._bytes += batch.nbytes
        if self._writer is None and self._bytes > MEMORY:
            self._file = tempfile.TemporaryFile(prefix="pahi-")  # noqa: SIM115, it is kept
            self._writer = pa.ipc.new_file(pa.PythonFile(self._file, "w"), self.schema)
            for held in self._held:
                self._writer.write_batch(held)
            self._held = []
        if self._writer is None:
            self._held.append(batch)
        else:
            self._writer.write_batch(batch)

    def _finish(self) -> None:
        self._pack()
        if self._writer is not None:
            self._writer.close()
            self._file.flush()


class Flat:
    """Numbers of one type that are written one after another, and read as one array."""

    def __init__(self, kind: Any) -> None:
        self.kind = np.dtype(kind)
        self._held: list[np.ndarray] = []
        self._bytes = 0
        self._file: Any = None

    def add(self, values: np.ndarray) -> None:
        self._bytes += values.nbytes
        self._held.append(np.ascontiguousarray(values, self.kind).reshape(-1))
        if self._file is None and self._bytes > MEMORY:
            self._file = tempfile.TemporaryFile(prefix="pahi-")  # noqa: SIM115, it is kept
        if self._file is not None:
            for held in self._held:
                self._file.write(held.data)
            self._held = []

    def array(self) -> np.ndarray:
        """(numbers,); mapped where it is in a file. Nothing can be added any more."""
        if self._file is None:
            return np.concatenate(self._held) if self._held else np.empty(0, self.kind)
        self._file.flush()
        return np.frombuffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ), self.kind)
