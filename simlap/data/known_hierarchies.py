"""Class hierarchies of well-known datasets, by their class names."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from simlap.data.hierarchy import Hierarchy

CIFAR10: Hierarchy = {
    "vehicle": {"road": ["automobile", "truck"], "air and water": ["airplane", "ship"]},
    "animal": {"pet": ["cat", "dog"], "hoofed": ["deer", "horse"], "other": ["bird", "frog"]},
}
"""Ours: vehicles and animals, as the dataset is commonly divided, with three kinds of animals and two of vehicles."""

CIFAR100: Hierarchy = {
    "aquatic_mammals": ["beaver", "dolphin", "otter", "seal", "whale"],
    "fish": ["aquarium_fish", "flatfish", "ray", "shark", "trout"],
    "flowers": ["orchid", "poppy", "rose", "sunflower", "tulip"],
    "food_containers": ["bottle", "bowl", "can", "cup", "plate"],
    "fruit_and_vegetables": ["apple", "mushroom", "orange", "pear", "sweet_pepper"],
    "household_electrical_devices": ["clock", "keyboard", "lamp", "telephone", "television"],
    "household_furniture": ["bed", "chair", "couch", "table", "wardrobe"],
    "insects": ["bee", "beetle", "butterfly", "caterpillar", "cockroach"],
    "large_carnivores": ["bear", "leopard", "lion", "tiger", "wolf"],
    "large_man-made_outdoor_things": ["bridge", "castle", "house", "road", "skyscraper"],
    "large_natural_outdoor_scenes": ["cloud", "forest", "mountain", "plain", "sea"],
    "large_omnivores_and_herbivores": ["camel", "cattle", "chimpanzee", "elephant", "kangaroo"],
    "medium_mammals": ["fox", "porcupine", "possum", "raccoon", "skunk"],
    "non-insect_invertebrates": ["crab", "lobster", "snail", "spider", "worm"],
    "people": ["baby", "boy", "girl", "man", "woman"],
    "reptiles": ["crocodile", "dinosaur", "lizard", "snake", "turtle"],
    "small_mammals": ["hamster", "mouse", "rabbit", "shrew", "squirrel"],
    "trees": ["maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"],
    "vehicles_1": ["bicycle", "bus", "motorcycle", "pickup_truck", "train"],
    "vehicles_2": ["lawn_mower", "rocket", "streetcar", "tank", "tractor"],
}
"""The dataset's own 20 superclasses (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009)."""

FASHION_MNIST: Hierarchy = {
    "clothes": {
        "tops": ["T-shirt/top", "Pullover", "Coat", "Shirt"],
        "bottoms": ["Trouser"],
        "dresses": ["Dress"],
    },
    "footwear": ["Sandal", "Sneaker", "Ankle boot"],
    "bags": ["Bag"],
}
"""Ours."""


def known_hierarchy(class_names: Sequence[str]) -> Hierarchy | None:
    """The hierarchy of a dataset with exactly these classes, in any order and from any source; None where there is none."""
    for hierarchy in (CIFAR10, CIFAR100, FASHION_MNIST):
        if sorted(_names(hierarchy)) == sorted(class_names):
            return copy.deepcopy(hierarchy)
    return None


def _names(members: list[str] | Hierarchy) -> list[str]:
    if isinstance(members, dict):
        return [name for inner in members.values() for name in _names(inner)]
    return members
