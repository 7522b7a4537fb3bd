"""Prompts in: sources of any format, cleaning, duplicates and splits."""

from pahi.prompts.cleaning import clean, prompt_id
from pahi.prompts.ingest import ingest_rows, split_of
from pahi.prompts.rows import Row
from pahi.prompts.sources import read_source, source_hash, source_name

__all__ = ["Row", "clean", "ingest_rows", "prompt_id", "read_source", "source_hash", "source_name", "split_of"]
