"""From the `method` section to the module, and to what it wants from the batches."""

from __future__ import annotations

from simlap.config import schema
from simlap.config.schema.plugins import implementation_of
from simlap.data.pairs import PairKind
from simlap.methods.base import Method
from simlap.methods.fuse import Fuse
from simlap.methods.simclr import SimCLR
from simlap.methods.simlap import SimLAP
from simlap.methods.supcon import SupCon
from simlap.methods.supervised import Supervised
from simlap.train.world import World

_METHODS: dict[str, type[Method]] = {
    "simlap": SimLAP,
    "supcon": SupCon,
    "simclr": SimCLR,
    "supervised": Supervised,
    "fuse": Fuse,
}


def build_method(experiment: schema.Experiment, *, num_classes: int, channels: int, world: World) -> Method:
    """The module of `experiment.method.kind`."""
    return method_class(experiment)(experiment, num_classes=num_classes, channels=channels, world=world)


def method_class(experiment: schema.Experiment) -> type[Method]:
    """The class of `experiment.method.kind`. Raises ConfigError for a plug-in that cannot be used."""
    if isinstance(experiment.method, schema.MethodPlugin):
        found: type[Method] = implementation_of(experiment.method, Method)
        return found
    return _METHODS[experiment.method.kind]


def pair_kind(experiment: schema.Experiment) -> PairKind:
    """How the batches' pair labels are drawn: `identical` for methods that do not look at them."""
    method = experiment.method
    if isinstance(method, schema.MethodPlugin):
        return method.pair_kind
    return method.pairs if isinstance(method, schema.SimLAP | schema.SupCon | schema.Fuse) else "identical"
