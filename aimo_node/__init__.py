"""A peer-to-peer routing mesh for AI models; this module holds the version and nothing else."""

__version__ = "0.1.0"
