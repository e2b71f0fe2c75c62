"""Whether what a study asks for can be placed: asked before anything starts. Needs neither torch nor Ray for CPUs alone."""

from __future__ import annotations

import os

from simlap.run.cluster import Node, check_placement, local_node
from simlap.study.spec import Study


def this_machine(study: Study) -> Node:
    """This machine as Ray will see it; its GPUs are counted (by torch) only where the study asks for some."""
    asked = (stage.resources.gpus for arm in study.arms for stage in arm.experiment.stages)
    return local_node() if any(asked) else Node(float(len(os.sched_getaffinity(0))), 0.0)


def check_resources(study: Study, nodes: list[Node]) -> int:
    """How many of the base's cells fit at a time. Raises ConfigError where some cell, or an earlier stage of it, never does."""
    file = str(study.path)
    own = study.spec.resources is not None
    for arm in study.arms:
        for stage in arm.experiment.stages[:-1]:
            key = "resources" if own else f"arm {arm.name}: pretrain.resources"
            check_placement(stage.resources, nodes, file=file, key=key)
    return check_placement(study.base.resources, nodes, file=file, key="resources" if own else "base: resources")
