"""Per-GPU-architecture builds of vLLM."""

__version__ = "0.1.0"
