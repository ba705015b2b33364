"""optbench: the CPU latency-optimization and quantization workbench for text-embedding encoders."""

__version__ = "0.1.0"
