"""Whether what a study asks for can be placed: asked before anything starts. Needs neither torch nor Ray for CPUs alone."""

from __future__ import annotations

import os

from simlap.config.schema import Resources
from simlap.run.cluster import Node, check_placement, local_node
from simlap.study.spec import Study


def this_machine(study: Study) -> Node:
    """This machine as Ray will see it; its GPUs are counted (by torch) only where the study asks for some."""
    asked = (stage.resources.gpus for arm in study.arms for stage in arm.experiment.stages)
    return local_node() if any(asked) else Node(float(len(os.sched_getaffinity(0))), 0.0)


def check_resources(study: Study, nodes: list[Node]) -> int:
    """How many of the baseline's cells fit at a time. Raises ConfigError where some arm's cell, or an earlier stage of it, never
    does."""
    file, base = str(study.path), study.base.resources
    everywhere = study.spec.resources  # of all that no factor speaks of
    seen: set[tuple[int, Resources]] = set()
    for arm in study.arms:
        for depth, stage in enumerate(reversed(arm.experiment.stages)):
            if (depth, stage.resources) in seen:
                continue
            seen.add((depth, stage.resources))
            key = f"arm {arm.name}: {'pretrain.' * depth}resources"
            if stage.resources == everywhere:
                key = "resources"
            elif depth == 0 and stage.resources == base:
                key = "base: resources"
            check_placement(stage.resources, nodes, file=file, key=key)
    return check_placement(baseline_resources(study), nodes, file=file)


def baseline_resources(study: Study) -> Resources:
    """Of the baseline's cells."""
    return next(arm.experiment.resources for arm in study.arms if arm.baseline)
