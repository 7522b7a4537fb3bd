"""Prompts in: sources of any format, cleaning, duplicates, filters and splits."""

from pahi.prompts.cleaning import clean, prompt_id
from pahi.prompts.ingest import Ingested, ingest_rows, source_statistics, split_of
from pahi.prompts.location import expand
from pahi.prompts.rows import Row
from pahi.prompts.sources import read_source, source_hash, source_name

__all__ = [
    "Ingested",
    "Row",
    "clean",
    "expand",
    "ingest_rows",
    "prompt_id",
    "read_source",
    "source_hash",
    "source_name",
    "source_statistics",
    "split_of",
]
