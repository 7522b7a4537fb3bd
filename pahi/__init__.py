"""PAHI: human preference inversion for one-step text-to-image models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pahi.predictors import NoisePredictor

__version__ = "0.1.0"
__all__ = ["NoisePredictor", "__version__"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `pahi --help` should not wait for it.
    if name == "NoisePredictor":
        from pahi.predictors import NoisePredictor

        return NoisePredictor
    raise AttributeError(f"module 'pahi' has no attribute {name!r}")
