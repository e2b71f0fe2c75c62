"""SimLAP on Ray: contrastive learning from arbitrary pairs, and the ablation runner around it."""

__version__ = "0.1.0"
