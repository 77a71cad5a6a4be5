"""The settings of one experiment as frozen dataclasses, whose annotations `recipes/validation.py` checks.

An annotation has a number's bounds and unit, and a remedy for refused values. `__post_init__` checks what an annotation
cannot express. A field of None means that the chosen method, data set or rule gives the default, or does not read it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Interval, Le, Unit

_STRICT: dict[str, Any] = {
    "extra": "forbid",
    "strict": True,
    "allow_inf_nan": False,
    "use_attribute_docstrings": True,
}
_LARGEST, _LARGEST_SEED = Le(10**12), Le(2**63 - 1)
"""Larger values, as of other upper bounds, are typing errors that would exhaust memory, overflow or run endlessly."""


@dataclass(frozen=True)
class Remedy:
    """Metadata of a setting: the sentence that ends the refusal of a value out of range."""

    text: str


def _require(is_valid: bool, key: str, requirement: str, value: object, remedy: str = "") -> None:
    if not is_valid:
        raise ValueError(f"{key} must be {requirement}; got {value}.{' ' + remedy if remedy else ''}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network architecture and its initial weights."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    name: str
    """A built-in model, a model of torchvision, timm:NAME, hf:FOLDER, or user-defined as "package.module:function"."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function that builds the model."""
    initialization: str = "default"
    """Initial weights: "default" (the model's own), "kaiming_fan_in", "kaiming_fan_out" or "sparse_fan_in"."""
    weights: str | None = None
    """Trained weights to start from: a safetensors or state_dict file, or a URI, or the name of torchvision weights."""
    freeze: list[str] | None = None
    """Layers that are not trained, by name or pattern ("layer1.*"); they stay dense, and their BatchNorm is fixed."""


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What the network is trained for: loss, metrics, and the metric that networks are compared by."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    name: str = "classification"
    """classification, multilabel, regression, segmentation, language_model, or user-defined as "module:function"."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function that returns the task."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data set, its splits and its augmentation."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    name: str
    """A built-in data set, or a user-defined one as "package.module:function"."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function that loads the data."""
    batch_size: Annotated[int, Ge(1), Le(10**7), Unit("examples")] = 128
    """Examples per optimizer step, summed over all ranks."""
    num_train_examples: Annotated[int | None, Ge(1), _LARGEST, Unit("examples")] = None
    """Number of training examples to use, drawn with split_seed; all if unset."""
    label_noise: Annotated[float, Interval(ge=0, le=1), Unit("fraction")] = 0.0
    """Fraction of the training labels that are redrawn uniformly from all classes, in [0, 1]."""
    split_seed: Annotated[int, Ge(0), _LARGEST_SEED] = 0
    """Seed of the split and of the label noise, independent of the run's seed, so that all runs use the same data."""
    validation_share: Annotated[float | None, Interval(gt=0, lt=1), Unit("fraction")] = None
    """Fraction of the training examples held out if the data set has no validation split, in (0, 1); 0.1 if unset."""
    crop_padding: Annotated[int | None, Ge(0), Le(4096), Unit("pixels")] = None
    """Pixels of padding around training images before a random crop to their size; the data set's value if unset."""
    crop_padding_mode: Literal["zero", "reflect"] | None = None
    """Padding content: "zero" or "reflect"; the data set's value if unset."""
    flip: bool | None = None
    """Whether training images are randomly flipped left to right; the data set's value if unset."""
    root: str | None = None
    """Folder of the data files, for data sets on disk; for Parquet any path that pyarrow.fs supports."""
    download: bool | None = None
    """Whether missing files may be downloaded, for data sets that support it."""
    reader_threads: Annotated[int, Ge(1), Le(1024), Unit("threads")] = 2
    """Threads per worker that prefetch and decode data sets too large for memory."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The optimizer and pretraining."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    epochs: Annotated[int, Ge(1), Le(10**6), Unit("epochs")]
    """Epochs of the whole run: pretraining plus one chain of cycles."""
    lr: Annotated[float, Gt(0), Le(10**6)] = 0.1
    """Initial learning rate of pretraining."""
    lr_schedule: str = "multistep"
    """Learning rate schedule of pretraining: multistep, cosine, warmup_cosine, one_cycle, constant, or user-defined."""
    lr_milestone_epochs: Annotated[list[Annotated[int, _LARGEST]] | None, Unit("epochs")] = None
    """Epochs of pretraining at which "multistep" lowers the learning rate; 1/2 and 3/4 of pretraining if unset."""
    lr_decay_factor: Annotated[float | None, Interval(gt=0, lt=1), Remedy("0.1 is usual.")] = None
    """Factor applied to the learning rate at each milestone of "multistep", in (0, 1); 0.1 if unset."""
    warmup_epochs: Annotated[int, Ge(0), _LARGEST, Unit("epochs")] = 0
    """Epochs of linear warmup at the start of pretraining, up to the scheduled learning rate."""
    label_smoothing: Annotated[float, Interval(ge=0, lt=1), Unit("fraction")] = 0.0
    """Fraction of each label's weight that is spread evenly over all classes in training, in [0, 1)."""
    optimizer: str = "sgd"
    """Optimizer of pretraining and cycles: sgd, adam, adamw, rmsprop, another class of torch.optim, or user-defined."""
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the optimizer, e.g. {betas: [0.9, 0.95]}."""
    momentum: Annotated[float | None, Interval(ge=0, lt=1), Remedy("0.9 is usual.")] = None
    """Momentum of SGD or RMSprop, in [0, 1); 0.9 for SGD if unset."""
    weight_decay: Annotated[float, Ge(0), Le(10**3)] = 5e-4
    """Weight decay of the optimizer."""
    decay_norm_and_bias: bool = True
    """Whether weight decay also applies to biases, normalization layers, embeddings and position parameters."""
    accumulation_steps: Annotated[int, Ge(1), Le(10**5), Unit("parts")] = 1
    """Parts of each rank's batch, to save memory; gradients accumulate, BatchNorm uses the statistics of each part."""
    clip_norm: Annotated[float | None, Gt(0), Le(10**30), Remedy("Leave it out for no clipping.")] = None
    """Maximum gradient norm over all active weights; no clipping if unset."""
    precision: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Precision of forward and backward: "float32", autocast to "bfloat16" or "float16", or "auto", the fastest."""
    channels_last: bool = False
    """Whether images and 4-dimensional weights use the channels-last memory format, which is faster on GPUs."""
    compile: bool = False
    """Whether the network is compiled with torch.compile, which needs a C++ compiler and takes minutes at the start."""
    deterministic: bool = False
    """Whether torch uses only deterministic algorithms, for bit-for-bit equal results on GPUs; slower there."""
    float32_precision: Literal["ieee", "tf32"] | None = None
    """Arithmetic of float32 on GPUs: "ieee", or the faster, coarser "tf32"; ieee if unset. On CPUs always ieee."""
    cudnn_benchmark: bool | None = None
    """Whether cuDNN tries its algorithms at the first step and keeps the fastest; if unset, unless deterministic."""
    limit_batches: Annotated[int | None, Ge(1), _LARGEST, Unit("batches")] = None
    """Maximum number of batches per epoch, for quick trials; all if unset."""
    checkpoint_every_epochs: Annotated[int, Ge(1), _LARGEST, Unit("epochs")] = 10
    """Epochs between two checkpoints of pretraining, and so the most that a killed pretraining loses."""

    def __post_init__(self) -> None:
        """Raises ValueError if the milestones are not ascending."""
        epochs = self.lr_milestone_epochs
        is_ascending = epochs is None or (sorted(set(epochs)) == epochs and min(epochs, default=1) >= 1)
        _require(is_ascending, "train.lr_milestone_epochs", "ascending epochs from 1 on", epochs)


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The sparse training method of pretraining, and of cycles that update their masks."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    name: str
    """Sparse training method: dense, static, set, rigl, itop_set, itop_rigl, gmp(_uniform) or granet(_uniform)."""
    density: Annotated[float, Interval(gt=0, le=1), Unit("fraction")]
    """Fraction of active weights at the end of the run, in (0, 1]."""
    dense_layers: list[str] | None = None
    """Dense layers, excluded from the density: "first", "last", names, patterns ("layer1.*") or types ("Conv2d")."""
    mask_embeddings: bool | None = None
    """Whether embeddings are masked too; false if unset."""
    compute: Literal["masked", "sparse"] = "masked"
    """Products of dense, masked weights, or ("sparse") of active weights alone in large, sparse layers, on CPUs."""
    distribution: str | None = None
    """Initial masks: erk, er, uniform, or from weights and gradients, e.g. snip; see `suptickets options`."""
    regrow_fraction: Annotated[float | None, Interval(ge=0, le=1), Unit("fraction")] = None
    """Fraction of active weights that the prune_and_grow_* initial masks exchange by gradient, in [0, 1]."""
    initial_density: Annotated[float | None, Interval(ge=0, le=1), Unit("fraction")] = None
    """Fraction of active weights at the start of GraNet, in (0, 1]."""
    drop: str | None = None
    """Score of kept connections: magnitude, set, threshold, mest, or user-defined as "package.module:function"."""
    drop_gradient_weight: float | None = None
    """Lambda of MEST's drop score, |w| + lambda * |gradient|, above 0."""
    grow: str | None = None
    """Score of grown connections: gradient, random, random_unfired, momentum, momentum_neuron, mix, or user-defined."""
    grow_gradient_share: Annotated[float | None, Interval(ge=0, le=1), Unit("fraction")] = None
    """Fraction of mixed growth that follows the gradient, in [0, 1]."""
    momentum_decay: float | None = None
    """Decay per step of the moving average of dense gradients that momentum scores read, in [0, 1)."""
    redistribution: str | None = None
    """How grown connections are distributed over layers: none, magnitude, nonzeros, momentum, or user-defined."""
    drop_fraction: Annotated[float | None, Interval(ge=0, le=1), Unit("fraction")] = None
    """Fraction of a layer's connections exchanged at each topology update of pretraining, in [0, 1]."""
    drop_fraction_schedule: str | None = None
    """Schedule of the drop fraction over pretraining: "constant", "cosine" or "linear"."""
    update_interval_steps: Annotated[int | None, Ge(1), _LARGEST, Unit("steps")] = None
    """Optimizer steps between two topology updates."""
    update_end_fraction: Annotated[float | None, Interval(ge=0, le=1), Unit("fraction")] = None
    """Fraction of pretraining after which connections are no longer exchanged, in [0, 1]."""
    prune_scope: str | None = None
    """Whether gradual pruning ranks all weights together ("global") or prunes each layer to one density ("layer")."""
    prune_start_epoch: Annotated[int | None, Ge(0), _LARGEST, Unit("epochs")] = None
    """Epoch of pretraining at which gradual pruning starts; 0 if unset."""
    prune_end_epoch: Annotated[int | None, Ge(1), _LARGEST, Unit("epochs")] = None
    """Epoch of pretraining at which gradual pruning reaches the target density; the middle of pretraining if unset."""


@dataclass(frozen=True, kw_only=True)
class TicketsConfig:
    """The cycles after pretraining, each of which ends in a ticket."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    num_chains: Annotated[int, Ge(1), Le(10**5), Unit("chains")] = 1
    """Chains of cycles that start from the pretrained network and run in parallel; 1 is the paper's sequence."""
    cycle_epochs: Annotated[int, Ge(1), Le(10**6), Unit("epochs")] = 8
    """Epochs of one cycle; each cycle ends in a ticket."""
    cycle_rate: Annotated[float, Interval(gt=0, lt=1), Unit("fraction")] = 0.1
    """Fraction of train.epochs that one chain of cycles gets, in (0, 1)."""
    lr_low: Annotated[float, Gt(0), Le(10**6)] = 0.001
    """Learning rate at the start and end of a cycle (the public flag lr_1)."""
    lr_high: Annotated[float | None, Le(10**6)] = None
    """Learning rate in the middle of a cycle (the public flag lr_2); 0.005 if unset."""
    cyclic_lr: bool = True
    """Whether the learning rate of a cycle rises to lr_high and falls back; otherwise it stays at lr_low."""
    explore: bool | None = None
    """Whether a cycle starts with a large exchange of connections; if unset, true for all methods that can grow."""
    exploration_fraction: Annotated[
        float | None,
        Interval(gt=0, le=1),
        Unit("fraction"),
        Remedy("To disable exploration, set tickets.explore=false."),
    ] = None
    """Fraction of each layer's connections exchanged at the start of a cycle, in (0, 1]; 0.5 if unset."""
    update_masks: bool = False
    """Whether the method continues to update the topology within cycles."""

    def __post_init__(self) -> None:
        """Raises ValueError if settings contradict each other."""
        high = self.lr_high
        _require(high is None or high >= self.lr_low, "tickets.lr_high", f"at least lr_low ({self.lr_low:g})", high)
        if not self.cyclic_lr and high not in (None, self.lr_low):
            raise ValueError("tickets.lr_high has no effect with tickets.cyclic_lr=false. Leave one of them out.")
        if self.explore is False and self.exploration_fraction is not None:
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
    batchnorm: Literal["recalibrate", "average"] = "recalibrate"
    """BatchNorm statistics: "recalibrate" on training data, or "average" the tickets' statistics."""
    recalibration_examples: Annotated[int | Literal["all"] | None, Unit("examples")] = None
    """Training examples that the recalibration of each merged network reads at most, or "all"; 1,024 if unset."""
    gate_tolerance: Annotated[float | None, Interval(ge=0, le=1), Unit("fraction")] = 0.005
    """Loss of validation accuracy up to which the gate accepts a ticket; relative for other metrics; none: all."""

    def __post_init__(self) -> None:
        """Raises ValueError if the recalibration reads fewer than two examples."""
        key, examples = "superposition.recalibration_examples", self.recalibration_examples
        remedy = "BatchNorm needs two examples to have a variance."
        is_valid = examples in (None, "all") or (isinstance(examples, int) and 2 <= examples <= 10**12)
        _require(is_valid, key, "all or at least 2", examples, remedy)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """The Ray cluster and the resources of each process."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    address: str | None = None
    """Ray cluster to join; if unset, RAY_ADDRESS, or else a local Ray that runs only as long as the command."""
    num_workers: Annotated[int | list[int], Unit("ranks")] = 1
    """DDP ranks of pretraining; [min, max] follows the cluster's size, but results are then not bit-for-bit equal."""
    num_explorers: Annotated[int | None, Ge(1), Le(10**5), Unit("explorers")] = None
    """Maximum number of concurrent explorers; if unset, limited by the number of chains and the cluster's capacity."""
    cpus_per_worker: Annotated[int, Ge(1), Le(1024), Unit("CPUs")] = 1
    """CPUs that each rank and each explorer requests from Ray."""
    gpus_per_worker: Annotated[float, Ge(0), Le(1024), Unit("GPUs")] = 0.0
    """GPUs that each rank requests from Ray; several ranks need whole GPUs."""
    gpus_per_explorer: Annotated[float | None, Ge(0), Le(1024), Unit("GPUs")] = None
    """GPUs that each explorer requests from Ray; with 0.25, four explorers share one. gpus_per_worker if unset."""
    superposer_gpus: Annotated[float, Ge(0), Le(1024), Unit("GPUs")] = 0.0
    """GPUs that the superposer requests to recalibrate and evaluate every merge; 0 uses the CPU."""
    num_merge_shards: Annotated[int, Ge(1), Le(1024), Unit("processes")] = 1
    """Processes that each merge a part of the layers, for many tickets per second; needs prune_at=end and no gate."""
    memory_per_worker_gb: Annotated[float | None, Ge(1e-3), Le(10**5), Unit("GB")] = None
    """Memory in GB that each rank and each explorer requests from Ray; not reserved if unset."""
    worker_resources: dict[str, float] | None = None
    """Custom Ray resources that each rank of pretraining requests, e.g. {on_demand: 0.01}."""
    explorer_resources: dict[str, float] | None = None
    """Custom Ray resources that each explorer requests, e.g. {spot: 0.01}."""
    resource_timeout_minutes: Annotated[float, Ge(0), Le(60 * 24 * 365), Unit("minutes")] = 0.0
    """Maximum wait for an autoscaler's machines before a request that does not fit is refused."""
    exclude_head_node: bool = False
    """Whether ranks and explorers avoid the cluster's head node, which then only coordinates."""
    threads_per_worker: Annotated[int | Literal["auto"], Unit("threads")] = "auto"
    """Threads of torch in each rank; "auto" divides the cores of a local Ray, and is cpus_per_worker on a cluster."""
    threads_per_explorer: Annotated[int | Literal["auto"], Unit("threads")] = "auto"
    """Threads of torch in each explorer and the superposer; "auto" as for ranks. Equal bits need equal threads."""

    def __post_init__(self) -> None:
        """Raises ValueError if the ranks are not ascending, threads are out of range, or a resource is Ray's."""
        for key in ("threads_per_worker", "threads_per_explorer"):
            threads = getattr(self, key)
            _require(threads == "auto" or 1 <= threads <= 1024, f"cluster.{key}", "auto or in [1, 1024]", threads)
        workers = [self.num_workers] if isinstance(self.num_workers, int) else self.num_workers
        is_valid = len(workers) in (1, 2) and workers[0] >= 1 and workers == sorted(workers)
        _require(is_valid, "cluster.num_workers", "at least 1, or [min, max]", self.num_workers)
        _require(workers[-1] <= 10**4, "cluster.num_workers", "at most 10,000", self.num_workers)
        for key in ("gpus_per_worker", "gpus_per_explorer", "superposer_gpus"):  # Ray counts in ten-thousandths
            value = getattr(self, key)
            _require(not value or value >= 1e-4, f"cluster.{key}", "0 or at least 0.0001", value)
        gpus, explorer_gpus = self.gpus_per_worker, self.gpus_per_explorer
        if workers[-1] > 1 and gpus % 1:
            raise ValueError(
                f"cluster.gpus_per_worker must be a whole number with {workers[-1]} ranks, because NCCL cannot run two "
                f"ranks on one GPU; got {gpus:g}. Explorers share GPUs with cluster.gpus_per_explorer={gpus:g}."
            )
        if explorer_gpus is not None and (explorer_gpus > 0) != (gpus > 0):
            raise ValueError(
                "cluster.gpus_per_explorer must be above 0 if and only if cluster.gpus_per_worker is, because a cycle "
                f"continues the training of the ranks; got {explorer_gpus:g} and {gpus:g}. Leave it out."
            )
        for key in ("worker_resources", "explorer_resources"):
            for name, amount in (getattr(self, key) or {}).items():
                is_custom = name not in ("CPU", "GPU", "memory") and amount > 0
                remedy = "For CPU, GPU and memory use the keys cluster.*_per_worker."
                _require(is_custom, f"cluster.{key}", "amounts above 0 of custom resources", {name: amount}, remedy)

    @property
    def explorer_gpus(self) -> float:
        """GPUs that each explorer requests."""
        return self.gpus_per_worker if self.gpus_per_explorer is None else self.gpus_per_explorer

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
    num_trials: Annotated[int | None, Ge(1), Le(10**6), Unit("trials")] = None
    """Number of points to try; the whole grid if unset."""
    num_seeds: Annotated[int, Ge(1), Le(10**4), Unit("seeds")] = 1
    """Seeds per point, counted up from the recipe's seed."""
    max_concurrent_trials: Annotated[int | None, Ge(1), Le(10**5), Unit("trials")] = None
    """Maximum number of concurrent trials; if unset, limited by the cluster's capacity."""
    metric: str | None = None
    """Metric that points are compared by, as the mean over seeds, e.g. validation_loss; the task's metric if unset."""
    mode: Literal["max", "min"] | None = None
    """Whether the "max" or the "min" of the metric is best; if unset, as the task says, e.g. max for accuracy."""
    scheduler: Literal["none", "asha"] = "none"
    """Early stopping of poor trials after a cycle: "none" or "asha"."""
    searcher: Literal["random", "grid", "optuna"] = "random"
    """How points are chosen: "random" (grid_search lists all values), "grid", or "optuna", which must be installed."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a run reports besides its result, which these settings never change."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    report: Literal["full", "short", "none"] = "full"
    """Report at the end of a run: "full", "short" without the lines between networks, or "none"."""
    callbacks: list[str] = field(default_factory=list)
    """Receivers of every event: jsonlines, wandb, mlflow, or a user-defined class as "package.module:Class"."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of one experiment."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    name: str
    """Name of the run; its files are stored in <storage>/<name>/."""
    storage: str = "runs"
    """Folder of all runs, which every machine of the cluster must share."""
    seed: Annotated[int, Ge(0), _LARGEST_SEED] = 0
    """Seed of all randomness except the data split."""
    model: ModelConfig
    data: DataConfig
    task: TaskConfig = field(default_factory=TaskConfig)
    train: TrainConfig
    method: MethodConfig
    tickets: TicketsConfig = field(default_factory=TicketsConfig)
    superposition: SuperpositionConfig = field(default_factory=SuperpositionConfig)
    run: RunConfig = field(default_factory=RunConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        """Raises ValueError if the name is not a plain folder name."""
        is_plain = bool(self.name) and not set(self.name) & set("/\\\0") and not self.name.startswith(".")
        _require(is_plain, "name", "a plain folder name", repr(self.name), "Set its parent folder with storage=.")


PLACEMENT_KEYS = frozenset(
    {
        "name",
        "storage",
        "data.root",
        "data.download",
        "data.reader_threads",
        "train.checkpoint_every_epochs",
        "run.callbacks",
        "cluster.address",
        "cluster.num_explorers",
        "cluster.cpus_per_worker",
        "cluster.gpus_per_explorer",
        "cluster.num_merge_shards",
        "cluster.exclude_head_node",
        "cluster.memory_per_worker_gb",
        "cluster.worker_resources",
        "cluster.explorer_resources",
        "cluster.resource_timeout_minutes",
        "run.report",
    }
)
"""Settings of storage, data location and resources, which never change a run's result."""
