"""The settings of one experiment as frozen dataclasses. Standard library only; `recipes/load.py` reads and checks them.

A field of None means that the chosen method, data set or rule gives the default, or does not read the field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

_STRICT: dict[str, Any] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


def _require(is_valid: bool, key: str, requirement: str, value: object, remedy: str = "") -> None:
    if not is_valid:
        raise ValueError(f"{key} must be {requirement}; got {value}.{' ' + remedy if remedy else ''}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network architecture and its initial weights."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    name: str
    """A built-in model, or a user-defined one as "package.module:function"."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function that builds the model."""
    initialization: str = "default"
    """Initial weights: "default" (the model's own), "kaiming_fan_in", "kaiming_fan_out" or "sparse_fan_in"."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data set, its splits and its augmentation."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    name: str
    """A built-in data set, or a user-defined one as "package.module:function"."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function that loads the data."""
    batch_size: int = 128
    """Examples per optimizer step, summed over all ranks."""
    num_train_examples: int | None = None
    """Number of training examples to use, drawn with split_seed; all if unset."""
    label_noise: float = 0.0
    """Fraction of the training labels that are redrawn uniformly from all classes, in [0, 1]."""
    split_seed: int = 0
    """Seed of the split and of the label noise, independent of the run's seed, so that all runs use the same data."""
    validation_share: float | None = None
    """Fraction of the training examples held out if the data set has no validation split, in (0, 1); 0.1 if unset."""
    crop_padding: int | None = None
    """Pixels of padding around training images before a random crop to their size; the data set's value if unset."""
    crop_padding_mode: str | None = None
    """Padding content: "zero" or "reflect"; the data set's value if unset."""
    flip: bool | None = None
    """Whether training images are randomly flipped left to right; the data set's value if unset."""
    root: str | None = None
    """Folder of the data files, for data sets on disk; for Parquet any path that pyarrow.fs supports."""
    download: bool | None = None
    """Whether missing files may be downloaded, for data sets that support it."""
    reader_threads: int = 2
    """Threads per worker that prefetch and decode data sets too large for memory."""

    def __post_init__(self) -> None:
        """Raises ValueError if a value is out of range."""
        _require(self.batch_size >= 1, "data.batch_size", "at least 1", self.batch_size)
        _require(
            self.num_train_examples is None or self.num_train_examples >= 1,
            "data.num_train_examples",
            "at least 1",
            self.num_train_examples,
        )
        _require(0 <= self.label_noise <= 1, "data.label_noise", "in [0, 1]", self.label_noise, "A fifth is 0.2.")
        fraction, padding, mode = self.validation_share, self.crop_padding, self.crop_padding_mode
        valid_fraction = fraction is None or 0 < fraction < 1
        _require(valid_fraction, "data.validation_share", "in (0, 1)", fraction, "A tenth is 0.1.")
        _require(padding is None or padding >= 0, "data.crop_padding", "at least 0", padding)
        _require(mode in (None, "zero", "reflect"), "data.crop_padding_mode", "zero or reflect", repr(mode))
        _require(self.reader_threads >= 1, "data.reader_threads", "at least 1", self.reader_threads)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The optimizer and pretraining."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    epochs: int
    """Epochs of the whole run: pretraining plus one chain of cycles."""
    lr: float = 0.1
    """Initial learning rate of pretraining."""
    lr_schedule: str = "multistep"
    """Learning rate schedule of pretraining: "multistep" (x0.1 at 1/2 and 3/4 of it), "cosine" to 0, or "constant"."""
    lr_milestone_epochs: list[int] | None = None
    """Epochs of pretraining at which "multistep" lowers the learning rate; 1/2 and 3/4 of pretraining if unset."""
    lr_decay_factor: float | None = None
    """Factor applied to the learning rate at each milestone of "multistep", in (0, 1); 0.1 if unset."""
    warmup_epochs: int = 0
    """Epochs of linear warmup at the start of pretraining, up to the scheduled learning rate."""
    label_smoothing: float = 0.0
    """Fraction of each label's weight that is spread evenly over all classes in training, in [0, 1)."""
    momentum: float = 0.9
    """Momentum of SGD, in [0, 1)."""
    weight_decay: float = 5e-4
    """Weight decay of SGD."""
    decay_norm_and_bias: bool = True
    """Whether weight decay also applies to biases and to the weights of normalization layers."""
    accumulation_steps: int = 1
    """Parts of each rank's batch, to save memory; gradients accumulate, BatchNorm uses the statistics of each part."""
    clip_norm: float | None = None
    """Maximum gradient norm over all active weights; no clipping if unset."""
    precision: str = "float32"
    """Precision of forward and backward: "float32", or autocast to "bfloat16" or "float16" (with loss scaling)."""
    channels_last: bool = False
    """Whether images and 4-dimensional weights use the channels-last memory format, which is faster on GPUs."""
    compile: bool = False
    """Whether the network is compiled with torch.compile, which needs a C++ compiler and takes minutes at the start."""
    deterministic: bool = False
    """Whether torch uses only deterministic algorithms, for bit-for-bit equal results on GPUs; slower there."""
    limit_batches: int | None = None
    """Maximum number of batches per epoch, for quick trials; all if unset."""
    checkpoint_every_epochs: int = 10
    """Epochs between two checkpoints of pretraining, and so the most that a killed pretraining loses."""

    def __post_init__(self) -> None:
        """Raises ValueError if a value is out of range."""
        _require(self.epochs >= 1, "train.epochs", "at least 1", self.epochs)
        _require(self.lr > 0, "train.lr", "above 0", self.lr)
        _require(0 <= self.momentum < 1, "train.momentum", "in [0, 1)", self.momentum, "0.9 is usual.")
        _require(self.weight_decay >= 0, "train.weight_decay", "at least 0", self.weight_decay)
        milestones, factor, clip = self.lr_milestone_epochs, self.lr_decay_factor, self.clip_norm
        ascending = milestones is None or (sorted(set(milestones)) == milestones and min(milestones, default=1) >= 1)
        _require(ascending, "train.lr_milestone_epochs", "ascending epochs from 1 on", milestones)
        _require(factor is None or 0 < factor < 1, "train.lr_decay_factor", "in (0, 1)", factor, "0.1 is usual.")
        _require(self.warmup_epochs >= 0, "train.warmup_epochs", "at least 0", self.warmup_epochs)
        _require(0 <= self.label_smoothing < 1, "train.label_smoothing", "in [0, 1)", self.label_smoothing)
        _require(self.accumulation_steps >= 1, "train.accumulation_steps", "at least 1", self.accumulation_steps)
        _require(clip is None or clip > 0, "train.clip_norm", "above 0", clip, "Leave it out for no clipping.")
        precisions, limit = ("float32", "bfloat16", "float16"), self.limit_batches
        _require(self.precision in precisions, "train.precision", " or ".join(precisions), repr(self.precision))
        _require(limit is None or limit >= 1, "train.limit_batches", "at least 1", limit)
        _require(
            self.checkpoint_every_epochs >= 1,
            "train.checkpoint_every_epochs",
            "at least 1",
            self.checkpoint_every_epochs,
        )


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The sparse training method of pretraining, and of cycles that update their masks."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    name: str
    """Sparse training method: dense, static, set, rigl, itop_set, itop_rigl, gmp(_uniform) or granet(_uniform)."""
    density: float
    """Fraction of active weights at the end of the run, in (0, 1]."""
    dense_layers: list[str] | None = None
    """Dense layers, excluded from the density: "first", "last", names, patterns ("layer1.*") or types ("Conv2d")."""
    mask_embeddings: bool | None = None
    """Whether embeddings are masked too; false if unset."""
    distribution: str | None = None
    """Initial masks: erk, er, uniform, or from weights and gradients, e.g. snip; see `suptickets options`."""
    regrow_fraction: float | None = None
    """Fraction of active weights that the prune_and_grow_* initial masks exchange by gradient, in [0, 1]."""
    initial_density: float | None = None
    """Fraction of active weights at the start of GraNet, in (0, 1]."""
    drop: str | None = None
    """Score of kept connections: magnitude, set, threshold, mest, or user-defined as "package.module:function"."""
    drop_gradient_weight: float | None = None
    """Lambda of MEST's drop score, |w| + lambda * |gradient|, above 0."""
    grow: str | None = None
    """Score of grown connections: gradient, random, random_unfired, momentum, momentum_neuron, mix, or user-defined."""
    grow_gradient_share: float | None = None
    """Fraction of mixed growth that follows the gradient, in [0, 1]."""
    momentum_decay: float | None = None
    """Decay per step of the moving average of dense gradients that momentum scores read, in [0, 1)."""
    redistribution: str | None = None
    """How grown connections are distributed over layers: none, magnitude, nonzeros, momentum, or user-defined."""
    drop_fraction: float | None = None
    """Fraction of a layer's connections exchanged at each topology update of pretraining, in [0, 1]."""
    drop_fraction_schedule: str | None = None
    """Schedule of the drop fraction over pretraining: "constant", "cosine" or "linear"."""
    update_interval_steps: int | None = None
    """Optimizer steps between two topology updates."""
    update_end_fraction: float | None = None
    """Fraction of pretraining after which connections are no longer exchanged, in [0, 1]."""
    prune_scope: str | None = None
    """Whether gradual pruning ranks all weights together ("global") or prunes each layer to one density ("layer")."""
    prune_start_epoch: int | None = None
    """Epoch of pretraining at which gradual pruning starts; 0 if unset."""
    prune_end_epoch: int | None = None
    """Epoch of pretraining at which gradual pruning reaches the target density; the middle of pretraining if unset."""

    def __post_init__(self) -> None:
        """Raises ValueError if a value is out of range."""
        remedy = f"Did you mean {self.density / 100:g}?" if 1 < self.density < 100 else ""
        _require(0 < self.density <= 1, "method.density", "in (0, 1]", f"{self.density:g}", remedy)
        for key in (
            "initial_density",
            "drop_fraction",
            "update_end_fraction",
            "regrow_fraction",
            "grow_gradient_share",
        ):
            value = getattr(self, key)
            _require(value is None or 0 <= value <= 1, f"method.{key}", "in [0, 1]", value)
        interval, start, end = self.update_interval_steps, self.prune_start_epoch, self.prune_end_epoch
        _require(interval is None or interval >= 1, "method.update_interval_steps", "at least 1", interval)
        _require(start is None or start >= 0, "method.prune_start_epoch", "at least 0", start)
        _require(end is None or end >= 1, "method.prune_end_epoch", "at least 1", end)


@dataclass(frozen=True, kw_only=True)
class TicketsConfig:
    """The cycles after pretraining, each of which ends in a ticket."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    num_chains: int = 1
    """Chains of cycles that start from the pretrained network and run in parallel; 1 is the paper's sequence."""
    cycle_epochs: int = 8
    """Epochs of one cycle; each cycle ends in a ticket."""
    cycle_rate: float = 0.1
    """Fraction of train.epochs that one chain of cycles gets, in (0, 1)."""
    lr_low: float = 0.001
    """Learning rate at the start and end of a cycle (the public flag lr_1)."""
    lr_high: float | None = None
    """Learning rate in the middle of a cycle (the public flag lr_2); 0.005 if unset."""
    cyclic_lr: bool = True
    """Whether the learning rate of a cycle rises to lr_high and falls back; otherwise it stays at lr_low."""
    explore: bool | None = None
    """Whether a cycle starts with a large exchange of connections; if unset, true for all methods that can grow."""
    exploration_fraction: float | None = None
    """Fraction of each layer's connections exchanged at the start of a cycle, in (0, 1]; 0.5 if unset."""
    update_masks: bool = False
    """Whether the method continues to update the topology within cycles."""

    def __post_init__(self) -> None:
        """Raises ValueError if a value is out of range."""
        _require(self.num_chains >= 1, "tickets.num_chains", "at least 1", self.num_chains)
        _require(self.cycle_epochs >= 1, "tickets.cycle_epochs", "at least 1", self.cycle_epochs)
        _require(0 < self.cycle_rate < 1, "tickets.cycle_rate", "in (0, 1)", self.cycle_rate, "A tenth is 0.1.")
        _require(self.lr_low > 0, "tickets.lr_low", "above 0", self.lr_low)
        high = self.lr_high
        _require(high is None or high >= self.lr_low, "tickets.lr_high", f"at least lr_low ({self.lr_low:g})", high)
        if not self.cyclic_lr and high not in (None, self.lr_low):
            raise ValueError("tickets.lr_high has no effect with tickets.cyclic_lr=false. Leave one of them out.")
        fraction = self.exploration_fraction
        remedy = "To disable exploration, set tickets.explore=false." if fraction == 0 else ""
        _require(fraction is None or 0 < fraction <= 1, "tickets.exploration_fraction", "in (0, 1]", fraction, remedy)
        if self.explore is False and fraction is not None:
            raise ValueError(
                "tickets.exploration_fraction has no effect with tickets.explore=false. Leave one of them out."
            )


@dataclass(frozen=True, kw_only=True)
class SuperpositionConfig:
    """How tickets are superposed into one network."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    method: str = "cia"
    """Average of tickets: "cia" (counts zeros), "caa" (active weights), "cima" (moving), "greedy" or user-defined."""
    cima_factor: float | None = None
    """CIMA's weight of the newest ticket, in (0, 1]; 0.2 if unset."""
    prune_at: str = "every_ticket"
    """When to prune to the target density: after "every_ticket", or once at the "end"."""
    prune_scope: str = "global"
    """Whether pruning ranks all weights together ("global") or keeps each layer's count of active weights ("layer")."""
    include_pretrained: bool = True
    """Whether the pretrained network counts as the first ticket."""
    batchnorm: str = "recalibrate"
    """BatchNorm statistics: "recalibrate" on training data, or "average" the tickets' statistics."""
    recalibration_examples: int | None = None
    """Training examples that the recalibration of each merged network reads; all if unset."""
    gate_tolerance: float | None = 0.005
    """Maximum loss of validation accuracy (a fraction) up to which the gate accepts a ticket; none accepts all."""

    def __post_init__(self) -> None:
        """Raises ValueError if a value is out of range."""
        gate, choices = self.gate_tolerance, ("recalibrate", "average")
        _require(gate is None or 0 <= gate <= 1, "superposition.gate_tolerance", "none or in [0, 1]", gate)
        examples = self.recalibration_examples
        remedy = "BatchNorm needs two examples to have a variance."
        _require(
            examples is None or examples >= 2, "superposition.recalibration_examples", "at least 2", examples, remedy
        )
        _require(self.batchnorm in choices, "superposition.batchnorm", " or ".join(choices), repr(self.batchnorm))


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """The Ray cluster and the resources of each process."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    address: str | None = None
    """Ray cluster to join; if unset, RAY_ADDRESS, or else a local Ray that runs only as long as the command."""
    num_workers: int | list[int] = 1
    """DDP ranks of pretraining; [min, max] follows the cluster's size, but results are then not bit-for-bit equal."""
    num_explorers: int | None = None
    """Maximum number of concurrent explorers; if unset, limited by the number of chains and the cluster's capacity."""
    cpus_per_worker: int = 1
    """CPUs that each rank and each explorer requests from Ray."""
    gpus_per_worker: float = 0.0
    """GPUs that each rank and each explorer requests from Ray; with 0.25, four explorers share one."""
    superposer_gpus: float = 0.0
    """GPUs that the superposer requests to recalibrate and evaluate every merge; 0 uses the CPU."""
    num_merge_shards: int = 1
    """Processes that each merge a part of the layers, for many tickets per second; needs prune_at=end and no gate."""
    memory_per_worker_gb: float | None = None
    """Memory in GB that each rank and each explorer requests from Ray; not reserved if unset."""
    worker_resources: dict[str, float] | None = None
    """Custom Ray resources that each rank of pretraining requests, e.g. {on_demand: 0.01}."""
    explorer_resources: dict[str, float] | None = None
    """Custom Ray resources that each explorer requests, e.g. {spot: 0.01}."""
    resource_timeout_minutes: float = 0.0
    """Maximum wait for an autoscaler's machines before a request that does not fit is refused."""
    exclude_head_node: bool = False
    """Whether ranks and explorers avoid the cluster's head node, which then only coordinates."""
    threads_per_worker: int = 1
    """Threads of torch in each rank and explorer; runs are bit-for-bit equal only with equal thread counts."""

    def __post_init__(self) -> None:
        """Raises ValueError if a value is out of range."""
        for key in ("num_explorers", "cpus_per_worker", "threads_per_worker", "num_merge_shards"):
            value = getattr(self, key)
            _require(value is None or value >= 1, f"cluster.{key}", "at least 1", value)
        limit, threads = f"at most cluster.cpus_per_worker ({self.cpus_per_worker})", self.threads_per_worker
        remedy = "Request at least one CPU per thread."
        _require(threads <= self.cpus_per_worker, "cluster.threads_per_worker", limit, threads, remedy)
        workers = [self.num_workers] if isinstance(self.num_workers, int) else self.num_workers
        is_valid = len(workers) in (1, 2) and workers[0] >= 1 and workers == sorted(workers)
        _require(is_valid, "cluster.num_workers", "at least 1, or [min, max]", self.num_workers)
        for key in ("gpus_per_worker", "superposer_gpus", "resource_timeout_minutes"):
            _require(getattr(self, key) >= 0, f"cluster.{key}", "at least 0", getattr(self, key))
        memory = self.memory_per_worker_gb
        _require(memory is None or memory > 0, "cluster.memory_per_worker_gb", "above 0", memory)
        for key in ("worker_resources", "explorer_resources"):
            for name, amount in (getattr(self, key) or {}).items():
                is_custom = name not in ("CPU", "GPU", "memory") and amount > 0
                remedy = "For CPU, GPU and memory use the keys cluster.*_per_worker."
                _require(is_custom, f"cluster.{key}", "amounts above 0 of custom resources", {name: amount}, remedy)

    @property
    def min_workers(self) -> int:
        """Minimum number of DDP ranks of pretraining."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        """Maximum number of DDP ranks of pretraining."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[-1]


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """The search of `suptickets tune`; `suptickets train` does not read it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    space: dict[str, dict[str, list[Any]]] | None = None
    """Ray Tune's search space of each key; the paper's cycle lengths and CIMA factors if unset."""
    num_trials: int | None = None
    """Number of points to try; the whole grid if unset."""
    num_seeds: int = 1
    """Seeds per point, counted up from the recipe's seed."""
    max_concurrent_trials: int | None = None
    """Maximum number of concurrent trials; if unset, limited by the cluster's capacity."""
    metric: str = "validation_accuracy"
    """Metric that points are compared by, as the mean over seeds: validation_accuracy or validation_loss."""
    mode: str | None = None
    """Whether the "max" or the "min" of the metric is best; if unset, max for accuracy and min for loss."""
    scheduler: str = "none"
    """Early stopping of poor trials after a cycle: "none" or "asha"."""
    searcher: str = "random"
    """How points are chosen: "random" (grid_search lists all values), "grid", or "optuna", which must be installed."""

    def __post_init__(self) -> None:
        """Raises ValueError if a value is out of range."""
        for key in ("num_trials", "num_seeds", "max_concurrent_trials"):
            value = getattr(self, key)
            _require(value is None or value >= 1, f"search.{key}", "at least 1", value)
        _require(self.mode in (None, "max", "min"), "search.mode", "max or min", repr(self.mode))
        for key, choices in (
            ("metric", ("validation_accuracy", "validation_loss")),
            ("scheduler", ("none", "asha")),
            ("searcher", ("random", "grid", "optuna")),
        ):
            _require(getattr(self, key) in choices, f"search.{key}", " or ".join(choices), repr(getattr(self, key)))


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of one experiment."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    name: str
    """Name of the run; its files are stored in <storage>/<name>/."""
    storage: str = "runs"
    """Folder of all runs, which every machine of the cluster must share."""
    seed: int = 0
    """Seed of all randomness except the data split."""
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    method: MethodConfig
    tickets: TicketsConfig = field(default_factory=TicketsConfig)
    superposition: SuperpositionConfig = field(default_factory=SuperpositionConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        """Raises ValueError if a value is out of range."""
        _check_max(self)
        _require(self.seed >= 0, "seed", "at least 0", self.seed)
        is_plain = bool(self.name) and not set(self.name) & set("/\\\0") and not self.name.startswith(".")
        _require(is_plain, "name", "a plain folder name", repr(self.name), "Set its parent folder with storage=.")


_MAX_VALUES = {
    "seed": 2**63 - 1,
    "data.split_seed": 2**63 - 1,
    "data.batch_size": 10**7,
    "data.crop_padding": 4096,
    "data.reader_threads": 1024,
    "train.epochs": 10**6,
    "train.lr": 10**6,
    "train.weight_decay": 10**3,
    "train.clip_norm": 10**30,
    "train.accumulation_steps": 10**5,
    "tickets.num_chains": 10**5,
    "tickets.cycle_epochs": 10**6,
    "cluster.num_workers": 10**4,
    "cluster.num_explorers": 10**5,
    "cluster.cpus_per_worker": 1024,
    "cluster.threads_per_worker": 1024,
    "cluster.gpus_per_worker": 1024,
    "cluster.superposer_gpus": 1024,
    "cluster.num_merge_shards": 1024,
    "cluster.memory_per_worker_gb": 10**5,
    "cluster.resource_timeout_minutes": 60 * 24 * 365,
    "search.num_trials": 10**6,
    "search.num_seeds": 10**4,
    "search.max_concurrent_trials": 10**5,
}
"""Larger values are typing errors that would exhaust memory, overflow or run endlessly."""
_MAX_INTEGER = 10**12


def _check_max(config: Config) -> None:
    """Raises ValueError if an integer or a key of `_MAX_VALUES` is larger than any machine can process."""
    for section, part in [("", config), *((f"{key}.", value) for key, value in vars(config).items())]:
        for key, value in vars(part).items() if hasattr(part, "__dict__") else ():
            limit = _MAX_VALUES.get(section + key, _MAX_INTEGER)
            for number in value if isinstance(value, list) else [value]:
                has_limit = isinstance(number, int) or section + key in _MAX_VALUES
                if has_limit and isinstance(number, (int, float)) and number > limit:
                    raise ValueError(f"{section}{key} must be at most {limit:,}; got {number}.")


PLACEMENT_KEYS = frozenset(
    {
        "name",
        "storage",
        "data.root",
        "data.download",
        "data.reader_threads",
        "train.checkpoint_every_epochs",
        "cluster.address",
        "cluster.num_explorers",
        "cluster.cpus_per_worker",
        "cluster.num_merge_shards",
        "cluster.exclude_head_node",
        "cluster.memory_per_worker_gb",
        "cluster.worker_resources",
        "cluster.explorer_resources",
        "cluster.resource_timeout_minutes",
    }
)
"""Settings of storage, data location and resources, which never change a run's result."""
