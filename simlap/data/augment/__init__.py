"""Augmentation of training images in batches, or with timm's per-image transform; mixup and cutmix."""

from simlap.data.augment.batched import Augmenter
from simlap.data.augment.build import Augmentation, build_augmenter
from simlap.data.augment.mix import MixPlan, apply_mix, draw_mix
from simlap.data.augment.normalise import to_input
from simlap.data.augment.steps import Drawn, augment_steps

__all__ = [
    "Augmentation",
    "Augmenter",
    "Drawn",
    "MixPlan",
    "apply_mix",
    "augment_steps",
    "build_augmenter",
    "draw_mix",
    "to_input",
]
