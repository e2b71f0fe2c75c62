"""The experiment file as a frozen, strict tree of pydantic models.

Every field has its meaning below it. A field's default is part of the format: fields at their default are left out of the
canonical form (see `simlap.config.identity`), so changing a default means bumping `SCHEMA_VERSION`.
"""

from simlap.config.schema.base import Count, Fraction, NonNegative, Positive, Strict
from simlap.config.schema.data import (
    Augment,
    Data,
    DigitsData,
    FolderData,
    ParquetData,
    PKSampling,
    Sampling,
    Streaming,
    TorchvisionData,
    UniformSampling,
    Validation,
)
from simlap.config.schema.evaluation import (
    KNN,
    Collapse,
    Evaluation,
    FineTune,
    Gates,
    Linear,
    Probe,
    Transfer,
)
from simlap.config.schema.experiment import Experiment
from simlap.config.schema.model import (
    Backbone,
    Fuse,
    Gate,
    GumbelGate,
    Method,
    OpenGate,
    Pairs,
    ProductGate,
    SigmoidGate,
    SignGate,
    SimCLR,
    SimLAP,
    StochasticGate,
    SupCon,
    Supervised,
)
from simlap.config.schema.plugins import GatePlugin, MethodPlugin, Plugin
from simlap.config.schema.training import Checkpointing, Optim, Resources, Train

SCHEMA_VERSION = 1

__all__ = [
    "KNN",
    "SCHEMA_VERSION",
    "Augment",
    "Backbone",
    "Checkpointing",
    "Collapse",
    "Count",
    "Data",
    "DigitsData",
    "Evaluation",
    "Experiment",
    "FineTune",
    "FolderData",
    "Fraction",
    "Fuse",
    "Gate",
    "GatePlugin",
    "Gates",
    "GumbelGate",
    "Linear",
    "Method",
    "MethodPlugin",
    "NonNegative",
    "OpenGate",
    "Optim",
    "PKSampling",
    "Pairs",
    "ParquetData",
    "Plugin",
    "Positive",
    "Probe",
    "ProductGate",
    "Resources",
    "Sampling",
    "SigmoidGate",
    "SignGate",
    "SimCLR",
    "SimLAP",
    "StochasticGate",
    "Streaming",
    "Strict",
    "SupCon",
    "Supervised",
    "TorchvisionData",
    "Train",
    "Transfer",
    "UniformSampling",
    "Validation",
]
