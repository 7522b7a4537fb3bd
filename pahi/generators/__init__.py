"""One frozen one-step generator family a file, and the reproducible noise."""

from pahi.generators.base import Conditioning, Generator
from pahi.generators.load import from_pipeline, load_generator
from pahi.generators.noise import standard_noise

__all__ = ["Conditioning", "Generator", "from_pipeline", "load_generator", "standard_noise"]
