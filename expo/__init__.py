"""expo: an experiment framework for Self-Explanation Policy Optimization (arXiv 2507.02834)."""

__version__ = "0.1.0"
