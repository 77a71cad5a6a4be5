"""A stored ticket in forms that other programs read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from suptickets_ray.lookup import choose
from suptickets_ray.offline.csr import to_csr_file
from suptickets_ray.offline.onnx import to_onnx_file
from suptickets_ray.offline.stored_ticket import StoredTicket, build_network, check_output, read_ticket, recipe_of
from suptickets_ray.tickets.store import RunStore, child, split_path
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.data import load_data


@dataclass(frozen=True)
class Exported:
    """A file that was written."""

    path: str
    """Absolute local path, or a URI."""
    num_bytes: int
    to_load: str
    """How to load it, in one line of Python."""


@dataclass(frozen=True)
class Order:
    """A ticket to export, and where its network is found by the formats that need one."""

    stored: StoredTicket
    recipe: str | None = None
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Form:
    """A format: what makes its file."""

    make: Callable[[Order], bytes]
    suffix: str
    to_load: str
    """One line of Python; {name} is the file's name."""
    packages: tuple[str, ...] = ()
    """What must be installed besides suptickets_ray itself."""
    reads_recipe: bool = False
    """Whether the network itself is exported, not its tensors alone."""


def metadata_of(ticket: Ticket) -> dict[str, str]:
    """Returns what an exported file says of its ticket: digest, density and provenance (JSON), all as text."""
    return {
        "digest": ticket.digest,
        "density": repr(ticket.density),
        "provenance": json.dumps(ticket.provenance, sort_keys=True),
    }


def to_safetensors(order: Order) -> bytes:
    """Returns a safetensors file: every tensor dense, 0 off its mask; digest, density, provenance in the metadata."""
    from safetensors.torch import save

    ticket = order.stored.ticket
    # "format" is what other readers of such files look for.
    content: bytes = save(ticket.state_dict(), {"format": "pt", **metadata_of(ticket)})
    return content


def to_state_dict(order: Order) -> bytes:
    """Returns torch's file of a state dict, every tensor dense, 0 off its mask; `weights_only=True` reads it."""
    buffer = io.BytesIO()
    torch.save(order.stored.ticket.state_dict(), buffer)
    return buffer.getvalue()


def to_onnx(order: Order) -> bytes:
    """Returns the recipe's network with the ticket's weights as ONNX, which onnxruntime has run; see `to_onnx_file`.

    Raises:
        ValueError: If there is no recipe, or the ticket or torch.onnx does not suit its network.
        RuntimeError: If the file gives other logits than the ticket.
    """
    stored = order.stored
    config = recipe_of(stored.path, order.recipe, order.overrides)
    splits = load_data(config.data)
    model = build_network(config, splits, stored.ticket)
    inputs, _ = splits.validation.batch(torch.arange(min(len(splits.validation), 4)))
    return to_onnx_file(model, inputs, metadata_of(stored.ticket))


def to_csr(order: Order) -> bytes:
    """Returns torch's file of the ticket with its masked weights as CSR tensors; see `to_csr_file`."""
    return to_csr_file(order.stored.ticket, metadata_of(order.stored.ticket))


def to_arrow(order: Order) -> bytes:
    """Returns the ticket's own file: active weights and masks."""
    return order.stored.content


EXPORTS: dict[str, Form] = {
    "safetensors": Form(
        to_safetensors,
        ".safetensors",
        "model.load_state_dict(safetensors.torch.load_file({name!r}))",
        packages=("safetensors",),
    ),
    "state_dict": Form(to_state_dict, ".pt", "model.load_state_dict(torch.load({name!r}, weights_only=True))"),
    "onnx": Form(
        to_onnx,
        ".onnx",
        "onnxruntime.InferenceSession({name!r})",
        packages=("onnx", "onnxscript", "onnxruntime"),
        reads_recipe=True,
    ),
    "csr": Form(to_csr, ".csr.pt", "suptickets_ray.load_csr({name!r}, model)"),
    "arrow": Form(to_arrow, ".arrow", "suptickets_ray.Ticket.load({name!r})"),
}


def export_stored(
    path: str,
    form: str,
    output: str | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
) -> Exported:
    """Writes a stored ticket in another form; the file is there whole or not at all.

    Args:
        path: The ticket's file, local or on any file system that pyarrow.fs knows.
        form: A row of `EXPORTS`.
        output: The new file, likewise; when left out, the ticket's name with the format's suffix in the working
            directory. A file that is there is replaced.
        recipe: For a form that holds the network: a recipe's file or name; that of the run in whose folder the ticket
            lies when left out.
        overrides: For such a form: settings of the data, e.g. "data.root=/data"; "data.name=synthetic" stands in for
            data that are not there.

    Raises:
        ValueError: If a setting is wrong or has no effect, a package or the ticket is missing, or the output cannot be
            written there.
        RuntimeError: If an exported network gives other logits than the ticket.
    """
    chosen = choose(EXPORTS, form, "export format")
    if missing := [name for name in chosen.packages if find_spec(name) is None]:
        raise ValueError(
            f"the export format {form!r} must have the package {missing[0]}; it is missing. "
            "Run: pip install 'suptickets-ray[export]'"
        )
    unread = [] if chosen.reads_recipe else [*(["--recipe"] if recipe is not None else []), *overrides]
    if unread:
        raise ValueError(f"{unread[0]} has no effect with --format {form}, which reads no recipe. Leave it out.")
    if output is not None:
        check_output(output)
    stored = read_ticket(path)
    output = output or f"{stored.stem}{chosen.suffix}"
    check_output(output)
    folder, name = split_path(output)
    whole = child(folder, name)
    if whole == stored.path and form != "arrow":
        raise ValueError(f"--output must be another file than the ticket itself; got {output!r}.")
    content = chosen.make(Order(stored, recipe, overrides))
    RunStore(folder).write(name, content)
    return Exported(whole, len(content), chosen.to_load.format(name=name))
