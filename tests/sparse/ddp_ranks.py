"""What each rank of test_ranks.py runs: `python ddp_ranks.py RANK WORLD_SIZE FOLDER`.

Reads the names of cases line by line, saves what it saw to FOLDER/CASE-RANK.pt, and prints "CASE done".
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from suptickets_ray.sparse import Sparsifier

STEPS, INTERVAL = 12, 4


def train(rank, world_size, *, compress, grow="gradient", seed=0, width=512, compute="masked"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, width), nn.ReLU(), nn.Linear(width, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = Sparsifier(
        model,
        optimizer,
        "rigl",
        density=0.05,
        total_steps=STEPS,
        update_interval_steps=INTERVAL,
        update_end_fraction=1.0,
        grow=grow,
        generator=torch.Generator().manual_seed(seed),
        compute=compute,
    )
    ddp = DistributedDataParallel(model)
    sparsifier.attach_ddp(ddp, compress=compress)
    sent, due = [], []
    plain_all_reduce = dist.all_reduce

    def counting_all_reduce(tensor, *arguments, **options):
        sent.append(tensor.numel() * tensor.element_size())
        return plain_all_reduce(tensor, *arguments, **options)

    dist.all_reduce = counting_all_reduce
    bytes_by_step = []
    for step in range(STEPS):
        sent.clear()
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(16, 256, generator=generator)[rank::world_size]
        labels = torch.randint(4, (16,), generator=generator)[rank::world_size]
        optimizer.zero_grad()
        nn.functional.cross_entropy(ddp(inputs), labels).backward()
        bytes_by_step.append(sum(sent))
        optimizer.step()
        due.append(sparsifier.step())
    dist.all_reduce = plain_all_reduce
    return {
        "model": model.state_dict(),
        "masks": sparsifier.masks,
        "bytes": bytes_by_step,
        "updated": due,
        "dense_bytes": sum(4 * p.numel() for p in model.parameters()),
    }


def main(rank, world_size, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    for line in sys.stdin:
        case = line.strip()
        torch.save(outcome_of(case, rank, world_size), Path(folder) / f"{case}-{rank}.pt")
        sys.stdout.write(f"{case} done\n")
        sys.stdout.flush()
    dist.barrier()  # a rank that leaves early closes its connections while the others still use them
    # gloo's threads sometimes abort the interpreter while it shuts down; all outcomes are saved by now.
    os._exit(0)


def outcome_of(case, rank, world_size):
    if case == "differing":
        torch.manual_seed(0)
        try:
            train(rank, world_size, compress=True, seed=rank)
        except RuntimeError as error:
            return str(error)
        return "no error"
    if case.startswith("channels_last"):
        return channels_last(rank, world_size, compress=case == "channels_last")
    if case == "drifting":
        return drifting(rank, world_size)
    if case.startswith("sparse"):
        return train(rank, world_size, compress=case == "sparse", compute="sparse")
    return train(rank, world_size, compress=case != "plain", grow="momentum" if case == "momentum" else "gradient")


def channels_last(rank, world_size, *, compress):
    """The averaged gradients of a network in channels_last, off the masks set to 0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Conv2d(9, 27, 3), nn.Flatten(), nn.Linear(27, 4))
    model = model.to(memory_format=torch.channels_last)
    settings = {"density": 0.3, "total_steps": 4, "generator": torch.Generator().manual_seed(0)}
    sparsifier = Sparsifier(model, torch.optim.SGD(model.parameters(), lr=0.1), "static", **settings)
    ddp = DistributedDataParallel(model)
    sparsifier.attach_ddp(ddp, compress=compress)
    gradients = {}
    for step in range(3):  # buckets are rebuilt after the first
        inputs = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(step))[rank::world_size]
        model.zero_grad()
        nn.functional.cross_entropy(
            ddp(inputs.contiguous(memory_format=torch.channels_last)), torch.arange(4)
        ).backward()
        sparsifier.mask_gradients()
        gradients[step] = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return gradients


def drifting(rank, world_size):
    """Ranks whose generators part ways after the initial masks: random growth differs at the first update."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ddp = DistributedDataParallel(model)
    settings = {"density": 0.5, "total_steps": 4, "update_interval_steps": 1, "dense_layers": ["last"]}
    sparsifier = Sparsifier(ddp, optimizer, "set", generator=generator, **settings)
    generator.manual_seed(rank)
    nn.functional.cross_entropy(ddp(torch.ones(2, 16)), torch.tensor([0, 1])).backward()
    optimizer.step()
    try:
        sparsifier.step()
    except RuntimeError as error:
        return str(error)
    return "no error"


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
