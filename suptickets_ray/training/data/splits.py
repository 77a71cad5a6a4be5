"""Makes three disjoint splits of a data function's result: size, label noise, validation, scaling, augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from suptickets_ray.config import DataConfig
from suptickets_ray.lookup import suggestion
from suptickets_ray.seeding import derive_seed
from suptickets_ray.training.data.augmentation import Augmentation, Scaling
from suptickets_ray.training.data.examples import Examples, LabelledDataset
from suptickets_ray.training.data.streaming import BlockSource, StreamedExamples
from suptickets_ray.training.nested import shape_of, tensors_of

SPLITS = ("train", "validation", "test")
_KEYS = (*SPLITS, "num_classes", "mean", "std", "augmentation")
_DEFAULT_VALIDATION_FRACTION = 0.1


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets. Every choice is made on validation; test is read once, for the final numbers."""

    train: Examples
    validation: Examples
    test: Examples
    num_classes: int
    """Number of classes, or of the network's outputs in another task."""
    sample_shape: Any
    """Shape of one input, without the batch; a tuple or dict of shapes if there are several."""

    def __post_init__(self) -> None:
        """Raises ValueError if a set is empty."""
        for name in SPLITS:
            if not len(getattr(self, name)):
                raise ValueError(f"the {name} set must hold at least one example; it is empty.")


def with_labels(loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a data function's result with map-style Datasets wrapped in LabelledDataset. Raises as `check_loaded`."""
    check_loaded(loaded)
    return {
        name: part
        if name not in SPLITS or isinstance(part, (tuple, list, BlockSource, LabelledDataset))
        else LabelledDataset(part)
        for name, part in loaded.items()
    }


def make_splits(loaded: Mapping[str, Any], config: DataConfig) -> Splits:
    """Returns the splits of a data function's result, with `num_train_examples`, a validation set and label noise.

    Args:
        loaded: "train" and "test", each a pair of inputs and labels, a Dataset or a BlockSource; optionally
            "validation", "num_classes" (or number of outputs), the "mean" and "std" of each channel, and an
            "augmentation" (crop_padding, crop_padding_mode, flip), which the recipe's settings override.
        config: Size, noise, augmentation and seed.

    Raises:
        ValueError: If a set is missing, of the wrong form, or too small, or a setting does not fit.
    """
    loaded = with_labels(loaded)
    scaling = Scaling(loaded.get("mean"), loaded.get("std"))
    train, validation_indices = _cut(loaded, config)
    num_classes = loaded.get("num_classes")
    if num_classes is None:
        num_classes = count_outputs(_examples(loaded["train"]).all_labels())
    _check_labels(loaded, num_classes)
    labels = None
    if config.label_noise:
        clean = _examples(loaded["train"], train).all_labels()
        labels = redraw_labels(clean, config.label_noise, num_classes, config.split_seed)
    augmentation = _augmentation(loaded, config)
    train_examples = _examples(loaded["train"], train, labels, scaling, augmentation)
    if validation_indices is not None:
        validation = _examples(loaded["train"], validation_indices, None, scaling)
    else:
        validation = _examples(loaded["validation"], None, None, scaling)
    sample = train_examples.batch(torch.arange(1))[0]
    shape = shape_of(sample)
    _check_augmentation(augmentation, shape)
    test = _examples(loaded["test"], None, None, scaling)
    for examples in (train_examples, validation, test):
        if isinstance(examples, StreamedExamples):
            examples.num_readers = config.reader_threads
    return Splits(train_examples, validation, test, num_classes, shape)


def _examples(
    source: Any,
    indices: Tensor | None = None,
    labels: Tensor | None = None,
    scaling: Scaling | None = None,
    augmentation: Augmentation | None = None,
) -> Examples:
    kind = StreamedExamples if isinstance(source, BlockSource) else Examples
    return kind(source, indices, labels, scaling, augmentation)


def _cut(loaded: Mapping[str, Any], config: DataConfig) -> tuple[Tensor | None, Tensor | None]:
    """Returns the indices of the training examples (None for all) and of those moved to validation (None for none)."""
    available = len(_examples(loaded["train"]))
    validation = None
    order: Tensor | None = None
    if "validation" in loaded:
        if config.validation_share is not None:
            raise ValueError(
                f"data.validation_share has no effect with data set {config.name!r}, which has its own validation set. "
                "Leave it out."
            )
    else:
        fraction = config.validation_share or _DEFAULT_VALIDATION_FRACTION
        count = max(round(fraction * available), 1)
        generator = Generator().manual_seed(derive_seed(config.split_seed, "validation"))
        shuffled = torch.randperm(available, generator=generator)
        # Both in the order of the source, because neighbours are read together.
        validation, order = shuffled[:count].sort().values, shuffled[count:].sort().values
        available -= count
    size = config.num_train_examples or available
    if size > available:
        raise ValueError(f"data.num_train_examples must be at most {available}, the available ones; got {size}.")
    if config.batch_size > size:
        raise ValueError(f"data.batch_size must be at most the {size} training examples; got {config.batch_size}.")
    if size < available:
        # Chosen at random, because the first examples of a folder are those of its first classes.
        generator = Generator().manual_seed(derive_seed(config.split_seed, "num_train_examples"))
        chosen = torch.randperm(available, generator=generator)[:size].sort().values
        order = chosen if order is None else order[chosen]
    return order, validation


def _augmentation(loaded: Mapping[str, Any], config: DataConfig) -> Augmentation:
    settings = dict(loaded.get("augmentation") or {})
    keys = ("crop_padding", "crop_padding_mode", "flip")
    if unknown := set(settings) - set(keys):
        raise ValueError(f"the data set's augmentation must hold {', '.join(keys)}; got {sorted(unknown)[0]!r}.")
    settings |= {key: value for key in keys if (value := getattr(config, key)) is not None}
    if config.crop_padding_mode is not None and not settings.get("crop_padding"):
        raise ValueError("data.crop_padding_mode has no effect without data.crop_padding. Leave it out.")
    return Augmentation(**settings)


def _check_augmentation(augmentation: Augmentation, sample_shape: Any) -> None:
    is_image = isinstance(sample_shape, tuple) and len(sample_shape) == 3 and isinstance(sample_shape[0], int)
    if augmentation.does_something and not is_image:
        raise ValueError(
            f"data.crop_padding and data.flip must have images of shape (c, h, w); got inputs of shape {sample_shape}. "
            "Leave them out."
        )
    padding, reflects = augmentation.crop_padding, augmentation.crop_padding_mode == "reflect"
    if padding and reflects and padding >= min(sample_shape[1:]):
        raise ValueError(
            f"data.crop_padding must be below {min(sample_shape[1:])}, the images' size, to reflect; got {padding}."
        )


def check_loaded(loaded: Mapping[str, Any]) -> None:
    """Raises ValueError if a data function's result is not valid."""
    if not isinstance(loaded, Mapping):
        raise ValueError(f"data.name must return a dict of train, validation and test; got {type(loaded).__name__}.")
    for name in ("train", "test"):
        if name not in loaded:
            raise ValueError(f"data.name must return a {name!r} set{suggestion(name, loaded)}")
    if unknown := [key for key in loaded if key not in _KEYS]:
        raise ValueError(f"data.name must return known keys; got {unknown[0]!r}{suggestion(unknown[0], _KEYS)}")
    for name in SPLITS:
        if name not in loaded:
            continue  # the validation set is then taken from the training set
        source = loaded[name]
        if isinstance(source, (tuple, list)):
            tensors: list[Any] = [*tensors_of(source[0]), source[1]] if len(source) == 2 else [None]
            if not all(isinstance(part, Tensor) for part in tensors) or len({len(part) for part in tensors}) > 1:
                raise ValueError(
                    f"the {name} set must be a pair of tensors (inputs, labels) of equal length; inputs may also be a "
                    "tuple or dict of tensors."
                )
        elif not isinstance(source, (BlockSource, LabelledDataset)) and not (
            hasattr(source, "__getitem__") and hasattr(source, "__len__")
        ):
            raise ValueError(
                f"the {name} set must be a pair of tensors or a map-style Dataset; got {type(source).__name__}."
            )


def _check_labels(loaded: Mapping[str, Any], num_classes: int) -> None:
    """Checks the labels of streamed sets, which are in memory. The preflight checks the others."""
    for name in SPLITS:
        if not isinstance(source := loaded.get(name), BlockSource):
            continue
        lowest, highest = int(source.labels.min()), int(source.labels.max())
        if lowest < 0 or highest >= num_classes:
            raise ValueError(
                f"the {name} labels must be classes 0 to {num_classes - 1}; got values from {lowest} to {highest}."
            )


def count_outputs(labels: Tensor) -> int:
    """Returns the number of outputs that a network needs for these labels (n, ...), if the data set does not say it.

    Whole numbers are classes or tokens, counted from 0. Floats and bools are values, one output for each column.
    """
    if labels.is_floating_point():
        return labels.shape[1] if labels.ndim > 1 else 1
    return max(int(labels.max()) + 1, 1) if labels.numel() else 1


def redraw_labels(labels: Tensor, fraction: float, num_classes: int, seed: int) -> Tensor:
    """Returns labels (n,) of which round(fraction * n), at random, are redrawn uniformly from all classes.

    A redrawn label is correct by chance with probability 1 / `num_classes`.
    """
    generator = Generator().manual_seed(derive_seed(seed, "label_noise"))
    count = round(fraction * len(labels))
    chosen = torch.randperm(len(labels), generator=generator)[:count]
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(f"data.label_noise must be 0 unless a label is one class; got {fraction}. Leave it out.")
    noisy = labels.clone()
    noisy[chosen] = torch.randint(num_classes, (count,), generator=generator, dtype=labels.dtype)
    return noisy
