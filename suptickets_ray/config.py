"""One experiment on one page: frozen dataclasses, standard library only. Reading and checking is config_io's work.

A field of None means that the method, data set or rule named beside it gives the default, or does not read it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

_STRICT: dict[str, Any] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


def _require(holds: bool, key: str, requirement: str, value: object, remedy: str = "") -> None:
    if not holds:
        raise ValueError(f"{key} must be {requirement}; got {value}.{' ' + remedy if remedy else ''}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    name: str
    """A built-in model, or your own as "package.module:function"."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function that builds the model."""
    initialization: str = "default"
    """Initial weights: "default" (the builder's), "kaiming_fan_in", "kaiming_fan_out", or "sparse_fan_in"."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data set and how it is cut."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    name: str
    """A built-in data set, or your own as "package.module:function"."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function that loads the data."""
    batch_size: int = 128
    """Examples of one optimizer step, over all ranks together."""
    num_train_examples: int | None = None
    """Number of training examples to use, drawn by split_seed; all when left out."""
    label_noise: float = 0.0
    """Share of the training labels that are redrawn uniformly from all classes, in [0, 1]."""
    split_seed: int = 0
    """Seed of the split and of the label noise, apart from the run's seed: all runs see the same data."""
    validation_share: float | None = None
    """Share of the training examples cut out for validation, where a data set has none of its own; 0.1 by default."""
    crop_padding: int | None = None
    """Pixels that training images are padded with before a random crop to their size; the data set's when left out."""
    crop_padding_mode: str | None = None
    """What the padding holds: "zero" or "reflect"; the data set's when left out."""
    flip: bool | None = None
    """Whether training images are flipped left to right at random; the data set's when left out."""
    root: str | None = None
    """Folder of the data files, for data sets that are read from disk; for Parquet any path that pyarrow.fs knows."""
    download: bool | None = None
    """Whether missing files may be fetched, for data sets that can be."""
    reader_threads: int = 2
    """Threads of each worker that read and decode ahead, for data sets too large for memory."""

    def __post_init__(self) -> None:
        """Raises ValueError on a value out of range."""
        _require(self.batch_size >= 1, "data.batch_size", "at least 1", self.batch_size)
        _require(
            self.num_train_examples is None or self.num_train_examples >= 1,
            "data.num_train_examples",
            "at least 1",
            self.num_train_examples,
        )
        _require(0 <= self.label_noise <= 1, "data.label_noise", "in [0, 1]", self.label_noise, "A fifth is 0.2.")
        share, padding, mode = self.validation_share, self.crop_padding, self.crop_padding_mode
        _require(share is None or 0 < share < 1, "data.validation_share", "in (0, 1)", share, "A tenth is 0.1.")
        _require(padding is None or padding >= 0, "data.crop_padding", "at least 0", padding)
        _require(mode in (None, "zero", "reflect"), "data.crop_padding_mode", "zero or reflect", repr(mode))
        _require(self.reader_threads >= 1, "data.reader_threads", "at least 1", self.reader_threads)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The optimizer and pretraining."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    epochs: int
    """Epochs of the whole run, pretraining and one chain of cycles together."""
    lr: float = 0.1
    """Learning rate that pretraining starts with."""
    lr_schedule: str = "multistep"
    """Learning rate of pretraining: "multistep" (x0.1 at 1/2 and 3/4 of it), "cosine" to 0, or "constant"."""
    lr_milestone_epochs: list[int] | None = None
    """Epochs of pretraining at which "multistep" lowers the learning rate; 1/2 and 3/4 of pretraining when left out."""
    lr_decay_factor: float | None = None
    """What "multistep" multiplies the learning rate with at each milestone, in (0, 1); 0.1 when left out."""
    warmup_epochs: int = 0
    """Epochs at the start of pretraining in which the learning rate rises in equal steps to what its schedule says."""
    label_smoothing: float = 0.0
    """Share of each label's weight that is spread evenly over all classes in training, in [0, 1)."""
    momentum: float = 0.9
    """Momentum of SGD, in [0, 1)."""
    weight_decay: float = 5e-4
    """Weight decay of SGD."""
    decay_norm_and_bias: bool = True
    """Whether weight decay also acts on biases and on the weights of normalisation layers."""
    accumulation_steps: int = 1
    """Parts that a rank's share of a batch is cut into to save memory; gradients add up, BatchNorm sees the parts."""
    clip_norm: float | None = None
    """Largest norm of the gradient of all active weights together; no clipping when left out."""
    precision: str = "float32"
    """Arithmetic of forward and backward: "float32", or autocast to "bfloat16" or "float16" (with loss scaling)."""
    channels_last: bool = False
    """Whether images and 4-dimensional weights lie in memory channel by channel, which GPUs prefer."""
    compile: bool = False
    """Whether torch.compile translates the network; it needs a C++ compiler, and minutes at the start."""
    deterministic: bool = False
    """Whether torch may use deterministic algorithms only, so that GPUs too give the same bits; slower there."""
    limit_batches: int | None = None
    """Most batches of one epoch, for trials; all when left out."""
    checkpoint_every_epochs: int = 10
    """A killed pretraining goes on from the last checkpoint, so at most this many epochs are lost."""

    def __post_init__(self) -> None:
        """Raises ValueError on a value out of range."""
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
    """The sparse training method."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    name: str
    """Sparse training method: dense, static, set, rigl, itop_set, itop_rigl, gmp(_uniform) or granet(_uniform)."""
    density: float
    """Share of active weights that the run ends with, in (0, 1]."""
    dense_layers: list[str] | None = None
    """Layers kept dense, which do not count: "first", "last", names, patterns ("layer1.*") or types ("Conv2d")."""
    mask_embeddings: bool | None = None
    """Whether embeddings are masked too; no when left out."""
    distribution: str | None = None
    """Initial masks: erk, er, uniform, or by weights and gradients, e.g. snip; `suptickets options` lists all."""
    regrow_fraction: float | None = None
    """Share of the pruned network that the prune_and_grow_* initial masks exchange by gradient, in [0, 1]."""
    initial_density: float | None = None
    """Share of active weights at the start of GraNet, in (0, 1]."""
    drop: str | None = None
    """Score of the connections to keep: magnitude, set, threshold, mest, or your own as "package.module:function"."""
    drop_gradient_weight: float | None = None
    """Lambda of MEST's drop score, |w| + lambda * |gradient|, above 0."""
    grow: str | None = None
    """Score of those to grow: gradient, random, random_unfired, momentum, momentum_neuron, mix, or your own."""
    grow_gradient_share: float | None = None
    """Share of mixed growth that goes by gradient, in [0, 1]."""
    momentum_decay: float | None = None
    """Decay per step of the average of dense gradients that momentum criteria read, in [0, 1)."""
    redistribution: str | None = None
    """How grown connections are shared between layers: none, magnitude, nonzeros, momentum, or your own."""
    drop_fraction: float | None = None
    """Share of a layer's connections exchanged at an update of pretraining, in [0, 1]."""
    drop_fraction_schedule: str | None = None
    """Drop fraction over pretraining: "constant", "cosine" or "linear"."""
    update_interval_steps: int | None = None
    """Optimizer steps between two updates of the topology."""
    update_end_fraction: float | None = None
    """Share of pretraining after which connections are no longer exchanged, in [0, 1]."""
    prune_scope: str | None = None
    """Whether gradual pruning ranks all weights together ("global") or brings each layer to one density ("layer")."""
    prune_start_epoch: int | None = None
    """Epoch of pretraining at which gradual pruning starts; 0 when left out."""
    prune_end_epoch: int | None = None
    """Epoch of pretraining at which the target density is reached; the middle of pretraining when left out."""

    def __post_init__(self) -> None:
        """Raises ValueError on a value out of range."""
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
    """The cheap tickets."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    num_chains: int = 1
    """Chains of cycles that fork from pretraining and run at once; 1 is the paper's sequence."""
    cycle_epochs: int = 8
    """Epochs of one cycle, which ends in a ticket."""
    cycle_rate: float = 0.1
    """Share of the epochs that one chain of cycles gets, in (0, 1)."""
    lr_low: float = 0.001
    """Learning rate at both ends of a cycle (the public flag lr_1)."""
    lr_high: float | None = None
    """Learning rate in the middle of a cycle (the public flag lr_2); 0.005 when left out."""
    cyclic_lr: bool = True
    """Whether a cycle's learning rate rises to lr_high and falls back; otherwise it stays at lr_low."""
    explore: bool | None = None
    """Whether a cycle opens with a large exchange of connections; yes for all methods that can grow."""
    exploration_fraction: float | None = None
    """Share of each layer's connections exchanged at the start of a cycle, in (0, 1]; 0.5 when left out."""
    update_masks: bool = False
    """Whether the method goes on updating the topology within cycles."""

    def __post_init__(self) -> None:
        """Raises ValueError on a value out of range."""
        _require(self.num_chains >= 1, "tickets.num_chains", "at least 1", self.num_chains)
        _require(self.cycle_epochs >= 1, "tickets.cycle_epochs", "at least 1", self.cycle_epochs)
        _require(0 < self.cycle_rate < 1, "tickets.cycle_rate", "in (0, 1)", self.cycle_rate, "A tenth is 0.1.")
        _require(self.lr_low > 0, "tickets.lr_low", "above 0", self.lr_low)
        high = self.lr_high
        _require(high is None or high >= self.lr_low, "tickets.lr_high", f"at least lr_low ({self.lr_low:g})", high)
        if not self.cyclic_lr and high not in (None, self.lr_low):
            raise ValueError("tickets.lr_high has no effect with tickets.cyclic_lr=false. Leave one of them out.")
        fraction = self.exploration_fraction
        remedy = "tickets.explore=false leaves the exploration out." if fraction == 0 else ""
        _require(fraction is None or 0 < fraction <= 1, "tickets.exploration_fraction", "in (0, 1]", fraction, remedy)
        if self.explore is False and fraction is not None:
            raise ValueError(
                "tickets.exploration_fraction has no effect with tickets.explore=false. Leave one of them out."
            )


@dataclass(frozen=True, kw_only=True)
class SuperpositionConfig:
    """How tickets become one network."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    method: str = "cia"
    """Average of tickets: "cia" (zeros counted), "caa" (active weights only), "cima" (moving), "greedy" or your own."""
    cima_factor: float | None = None
    """CIMA's weight of the newest ticket, in (0, 1]; 0.2 when left out."""
    prune_at: str = "every_ticket"
    """When to prune back to the density: after "every_ticket", or once at the "end"."""
    prune_scope: str = "global"
    """Whether all weights are ranked together ("global") or each layer keeps its count ("layer")."""
    include_pretrained: bool = True
    """Whether the pretrained network counts as the first ticket."""
    batchnorm: str = "recalibrate"
    """BatchNorm statistics: "recalibrate" on training data, or "average" those of the tickets."""
    recalibration_examples: int | None = None
    """Training examples that the recalibration reads for every merged network; all when left out."""
    gate_tolerance: float | None = 0.005
    """A ticket is left out when it costs more validation accuracy (a fraction) than this; none merges all."""

    def __post_init__(self) -> None:
        """Raises ValueError on a value out of range."""
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
    """Where it runs."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    address: str | None = None
    """Ray cluster to join; without it RAY_ADDRESS, and without that a local Ray is started and ended."""
    num_workers: int | list[int] = 1
    """DDP ranks of pretraining; [least, most] goes along with a cluster that changes, at the price of equal bits."""
    num_explorers: int | None = None
    """Most explorers at once; when left out, as many as there are chains and room in the cluster."""
    cpus_per_worker: int = 1
    """CPUs that each rank and each explorer asks Ray for."""
    gpus_per_worker: float = 0.0
    """GPUs that each rank and each explorer asks Ray for; 0.25 lets four explorers share one."""
    superposer_gpus: float = 0.0
    """GPUs that the superposer asks for, which recalibrates and judges every merge; on the CPU when 0."""
    num_merge_shards: int = 1
    """Processes that merge a part of the layers each, for many tickets a second; with prune_at end and no gate only."""
    memory_per_worker_gb: float | None = None
    """Memory in GB that each rank and each explorer asks Ray for; none is reserved when left out."""
    worker_resources: dict[str, float] | None = None
    """Resources of the cluster's own that each rank of pretraining asks for, e.g. {on_demand: 0.01}."""
    explorer_resources: dict[str, float] | None = None
    """Resources of the cluster's own that each explorer asks for, e.g. {spot: 0.01}."""
    resource_timeout_minutes: float = 0.0
    """How long to wait for machines that an autoscaler may start, before a request that does not fit is refused."""
    exclude_head_node: bool = False
    """Whether ranks and explorers keep off the cluster's head node, which then only coordinates."""
    threads_per_worker: int = 1
    """Threads of torch in each rank and explorer; part of what makes runs equal bit for bit."""

    def __post_init__(self) -> None:
        """Raises ValueError on a value out of range."""
        for key in ("num_explorers", "cpus_per_worker", "threads_per_worker", "num_merge_shards"):
            value = getattr(self, key)
            _require(value is None or value >= 1, f"cluster.{key}", "at least 1", value)
        most, threads = f"at most cluster.cpus_per_worker ({self.cpus_per_worker})", self.threads_per_worker
        remedy = "Ask Ray for as many CPUs."
        _require(threads <= self.cpus_per_worker, "cluster.threads_per_worker", most, threads, remedy)
        workers = [self.num_workers] if isinstance(self.num_workers, int) else self.num_workers
        fits = len(workers) in (1, 2) and workers[0] >= 1 and workers == sorted(workers)
        _require(fits, "cluster.num_workers", "at least 1, or [least, most]", self.num_workers)
        for key in ("gpus_per_worker", "superposer_gpus", "resource_timeout_minutes"):
            _require(getattr(self, key) >= 0, f"cluster.{key}", "at least 0", getattr(self, key))
        memory = self.memory_per_worker_gb
        _require(memory is None or memory > 0, "cluster.memory_per_worker_gb", "above 0", memory)
        for key in ("worker_resources", "explorer_resources"):
            for name, amount in (getattr(self, key) or {}).items():
                own = name not in ("CPU", "GPU", "memory") and amount > 0
                remedy = "CPU, GPU and memory have keys of their own."
                _require(own, f"cluster.{key}", "amounts above 0 of resources of your own", {name: amount}, remedy)

    @property
    def min_workers(self) -> int:
        """The fewest ranks that pretraining goes on with."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        """The most ranks of pretraining."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[-1]


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What `suptickets tune` searches; nothing else reads it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    space: dict[str, dict[str, list[Any]]] | None = None
    """Keys and Ray Tune's spaces for them; the paper's cycle lengths and CIMA factors when left out."""
    num_trials: int | None = None
    """Number of points to try; all of the grid when left out."""
    num_seeds: int = 1
    """Seeds that each point is repeated with, counted from the recipe's own."""
    max_concurrent_trials: int | None = None
    """Most trials at once; when left out, as many as there is room for."""
    metric: str = "validation_accuracy"
    """What points are compared by: validation_accuracy or validation_loss, the mean over seeds."""
    mode: str | None = None
    """Whether the metric's "max" or "min" is best; what the metric suggests when left out."""
    scheduler: str = "none"
    """Whether trials that lag behind are stopped after a cycle: "none" or "asha"."""
    searcher: str = "random"
    """Where points come from: "random" (with grid_search in turn), "grid", or "optuna", which must be installed."""

    def __post_init__(self) -> None:
        """Raises ValueError on a value out of range."""
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
    """A whole experiment."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    name: str
    """Name of the run; its files lie at <storage>/<name>/."""
    storage: str = "runs"
    """Folder of runs, shared by all machines of the cluster."""
    seed: int = 0
    """Seed of everything but the data split."""
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    method: MethodConfig
    tickets: TicketsConfig = field(default_factory=TicketsConfig)
    superposition: SuperpositionConfig = field(default_factory=SuperpositionConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        """Raises ValueError on a value out of range."""
        _check_largest(self)
        _require(self.seed >= 0, "seed", "at least 0", self.seed)
        plain = bool(self.name) and not set(self.name) & set("/\\\0") and not self.name.startswith(".")
        _require(plain, "name", "a plain folder name", repr(self.name), "storage= says where it lies.")


_LARGEST = {
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
"""Larger values are slips of the keyboard that would fill memory, overflow or never end."""
_LARGEST_NUMBER = 10**12


def _check_largest(config: Config) -> None:
    """Raises ValueError on a whole number, or one of `_LARGEST`, that no machine can satisfy."""
    for section, part in [("", config), *((f"{key}.", value) for key, value in vars(config).items())]:
        for key, value in vars(part).items() if hasattr(part, "__dict__") else ():
            most = _LARGEST.get(section + key, _LARGEST_NUMBER)
            for number in value if isinstance(value, list) else [value]:
                counts = isinstance(number, int) or section + key in _LARGEST
                if counts and isinstance(number, (int, float)) and number > most:
                    raise ValueError(f"{section}{key} must be at most {most:,}; got {number}.")


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
"""Settings that say where a run and its data lie and what it uses, and never change its result."""
