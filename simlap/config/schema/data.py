"""The `data` section: where the images come from, how a batch is drawn, how it is augmented."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from simlap.config.schema.base import Count, Fraction, Interval, NonNegative, Positive, Strict, wrong


class Augment(Strict):
    """Augmentation of the training images, in batches on the device. Each copy of each image is drawn anew, every epoch.

    The order is that of timm's training transform: crop, flip, rotation and translation, RandAugment or three-augment,
    colour, grey, blur, solarise, normalisation, erasing, mixup and cutmix.
    """

    pipeline: Literal["batched", "timm"] = "batched"
    """`batched`: on tensors, on the device. `timm`: timm's own per-image transform on PIL images, the reference."""
    views: Count = 1
    """How many augmented views of each image a batch holds, side by side. A batch then has `train.batch_size` x `views` rows."""
    crop_scale: tuple[Fraction, Fraction] = (0.7, 1.0)
    """Area of the random resized crop, as a share of the image: lowest, highest."""
    crop_ratio: tuple[Positive, Positive] = (0.75, 1.3333333333333333)
    """Aspect ratio of the crop: lowest, highest (drawn log-uniformly)."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Of the crop."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    rotate: NonNegative = 0.0
    """Largest rotation in degrees, either way."""
    translate: Fraction = 0.0
    """Largest shift, as a share of the image's side, either way."""
    rand_augment: str | None = None
    """RandAugment in timm's notation, such as `rand-m9-mstd0.5-inc1`."""
    three_augment: bool = False
    """One of grey, solarise and blur, chosen at random for each image (DeiT III)."""
    brightness: Fraction = 0.0
    """Largest relative change of brightness."""
    contrast: Fraction = 0.0
    """Largest relative change of contrast."""
    saturation: Fraction = 0.0
    """Largest relative change of saturation."""
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """Largest change of hue, as a share of the colour circle."""
    jitter: Fraction = 1.0
    """Probability of the change of brightness, contrast, saturation and hue."""
    grey: Fraction = 0.0
    """Probability of the image in grey."""
    blur: Fraction = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: Interval = (0.1, 2.0)
    """Standard deviation of the blur in pixels: lowest, highest."""
    solarise: Fraction = 0.0
    """Probability of inverting all values of 128 and more."""
    erase: Fraction = 0.0
    """Probability of random erasing (one rectangle of 2 to 33 % of the area, filled with normal noise)."""
    mixup: NonNegative = 0.0
    """Alpha of mixup; 0 switches it off. Mixed labels are for `method.kind: supervised` only."""
    cutmix: NonNegative = 0.0
    """Alpha of cutmix; 0 switches it off. With both, each batch has one or the other, half and half."""
    mix_probability: Fraction = 1.0
    """Share of the batches that are mixed, where `mixup` or `cutmix` is on."""

    @property
    def mixes(self) -> bool:
        return self.mix_probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    @model_validator(mode="after")
    def _ordered(self) -> Augment:
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise wrong(name, [low, high], "must be 0 < lowest <= highest")
        return self

    @model_validator(mode="after")
    def _one_policy(self) -> Augment:
        if self.rand_augment is not None and self.three_augment:
            raise wrong("three_augment", True, "is an alternative to rand_augment; use one of them")
        return self


class Validation(Strict):
    """A stratified part of the training set, the same for all seeds, on which all decisions are made."""

    fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of every class that is held out."""
    split_seed: int = 0
    """Seed of the split. Independent of the experiment's seed."""


class UniformSampling(Strict):
    """An epoch is a permutation of the images, each `repeated_augmentation` times in a row."""

    kind: Literal["uniform"]


class PKSampling(Strict):
    """Every batch holds `classes` classes with `images` different images each, in this order."""

    kind: Literal["pk"]
    classes: Annotated[int, Field(ge=2)]
    """P, classes in a batch."""
    images: Annotated[int, Field(ge=1)]
    """K, images of each class."""


Sampling = Annotated[UniformSampling | PKSampling, Field(discriminator="kind")]


class Streaming(Strict):
    """Images are decoded while training goes on, for datasets that do not fit into memory.

    Shuffling keeps to the shards: an epoch's order is one of blocks of neighbouring images, and the images of `window` blocks
    are shuffled together.
    """

    workers: Count = 4
    """Threads that decode, for each worker. Not part of a run's identity."""
    prefetch: Count = 4
    """Batches that are decoded ahead. Not part of a run's identity."""
    block: Count = 1024
    """Neighbouring images that are read together, at least: a shard's row groups are not cut. Image files have no neighbours and
    are shuffled as in memory."""
    window: Count = 16
    """Blocks whose images are shuffled together, and whose encoded images are held in memory."""


class _Data(Strict):
    image_size: Count
    """Side of the network's input."""
    augment: Augment = Augment()
    """Augmentation of the training images."""
    repeated_augmentation: Count = 1
    """How often each drawn image appears in a batch, freshly augmented each time (`ra`)."""
    sampling: Sampling = UniformSampling(kind="uniform")
    """How the images of a batch are drawn."""
    validation: Validation | Literal["none"] = Validation()
    """The validation split, or `none` (then decisions would be made on the test set, and tables say so)."""
    classes: Annotated[tuple[str | int, ...], Field(min_length=2)] | None = None
    """Only these classes, by name or by label, in this order: they become the labels 0, 1, ... (default: all)."""
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of every class's training images that is used, before the validation split; the same for all seeds, and a
    smaller share is part of a larger one. The test set stays whole."""
    stored_size: Count | None = None
    """Side of the square that images are decoded to, and that crops are taken from (default: `image_size`)."""
    eval_size: Count | None = None
    """At evaluation, images are resized to this side, then centre-cropped to `image_size` (default: `image_size`)."""
    mean: tuple[float, ...] | None = None
    """Mean per channel, of pixels in [0, 1] (default: of the training part)."""
    std: tuple[Positive, ...] | None = None
    """Standard deviation per channel (default: of the training part)."""
    streaming: Streaming | None = None
    """Decode images while training goes on, instead of all of them before (default: all before; they are kept in memory)."""
    max_bad_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    """Share of a set's images that may be such that they cannot be decoded (empty, cut off, damaged, gigantic): the next image of
    its class stands in for each, they are listed in the run directory, and more of them are an error. Not part of a run's
    identity."""
    fingerprint: str | None = None
    """Of the data; given, data that differ are an error. In records, simlap fills in those of the datasets of `transfer`."""

    def _settle_size(self) -> None:
        """Set an `image_size` that was not given, where it depends on other fields."""

    @model_validator(mode="after")
    def _sizes_and_statistics(self) -> _Data:
        self._settle_size()
        for name in ("stored_size", "eval_size"):
            value = getattr(self, name)
            if value is not None and value < self.image_size:
                raise wrong(name, value, "must not be less than image_size ({size})", size=self.image_size)
        if (self.mean is None) != (self.std is None):
            given, missing = ("mean", "std") if self.std is None else ("std", "mean")
            raise wrong(missing, None, "must be given together with {given}", given=given)
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise wrong("std", list(self.std), "must have as many values as mean ({count})", count=len(self.mean))
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise wrong("classes", list(self.classes), "names a class twice")
        return self

    @model_validator(mode="after")
    def _samples_with_repetition(self) -> _Data:
        if isinstance(self.sampling, PKSampling) and self.repeated_augmentation > 1:
            raise wrong("repeated_augmentation", self.repeated_augmentation, "must be 1 with sampling.kind: pk")
        return self


class DigitsData(_Data):
    """The 8x8 digits that ship with scikit-learn: the first 1,400 images train, the last 397 test."""

    source: Literal["digits"]
    image_size: Count = 8
    """Side of the square training image."""


class ParquetData(_Data):
    """Parquet in the Hugging Face image layout: a struct{bytes, path} or binary image column and an integer label column.

    Local paths are relative to the folder the program is started in, `~` is the home folder; loading makes them absolute,
    since workers have working folders of their own.
    """

    source: Literal["parquet"]
    train: str
    """Training file, folder of shards, or any pyarrow.fs URI (`s3://...`)."""
    test: str
    """Test file, folder of shards, or URI."""
    image_size: Count = 32
    """Images are resized so that the shorter side has this length, then centre-cropped."""
    image_column: str | None = None
    """Name of the image column (default: `image` or `img`, whichever is there)."""
    label_column: str = "label"
    """Name of the label column."""


class FolderData(_Data):
    """Image folders as ImageNet has them: one folder per class, named by it, with its images inside at any depth.

    Paths as in `parquet`.
    """

    source: Literal["folder"]
    train: str
    """Folder of the training classes."""
    test: str
    """Folder of the test classes, with the same names."""
    image_size: Count = 224
    """Images are resized so that the shorter side has this length, then centre-cropped."""


TorchvisionName = Literal[
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "svhn",
    "stl10",
    "flowers102",
    "oxford_pets",
    "stanford_cars",
    "fgvc_aircraft",
    "food101",
    "dtd",
]


class TorchvisionData(_Data):
    """A dataset that torchvision knows, with its own training and test part.

    Where a dataset has a validation part as well (`flowers102`, `fgvc_aircraft`, `dtd`), training and validation part are
    joined, and `validation` splits them anew. `root` as paths in `parquet`.
    """

    source: TorchvisionName
    root: str = "~/data"
    """The folder that torchvision keeps the dataset in. `fashion_mnist` also takes a folder with the four IDX files in it, such
    as Debian's /usr/share/datasets/fashion-mnist."""
    download: bool = False
    """Let torchvision download what is missing."""
    image_size: Count = 32
    """Side of the square training image. Without it: 28 for `fashion_mnist`, 96 for `stl10`, 32 for the other small images,
    224 for photographs."""

    def _settle_size(self) -> None:
        if "image_size" not in self.model_fields_set:
            self.__dict__["image_size"] = _IMAGE_SIZES.get(self.source, 224)  # the model is frozen to everybody else


_IMAGE_SIZES = {"cifar10": 32, "cifar100": 32, "svhn": 32, "fashion_mnist": 28, "stl10": 96}

Data = Annotated[DigitsData | ParquetData | FolderData | TorchvisionData, Field(discriminator="source")]
