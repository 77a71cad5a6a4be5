"""Exports a stored ticket to formats of other programs."""

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
    """A written file."""

    path: str
    """Absolute local path, or a URI."""
    num_bytes: int
    load_code: str
    """One line of Python that loads the file."""


@dataclass(frozen=True)
class ExportRequest:
    """A ticket to export, and the recipe for formats that need the network."""

    stored: StoredTicket
    recipe: str | None = None
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class ExportFormat:
    """An export format."""

    encode: Callable[[ExportRequest], bytes]
    """Called with a request; returns the content of the file."""
    suffix: str
    load_code: str
    """One line of Python that loads the file; {name} is the file's name."""
    packages: tuple[str, ...] = ()
    """Packages that must be installed in addition to suptickets_ray."""
    reads_recipe: bool = False
    """Whether the file contains the network, not only its tensors."""


def metadata_of(ticket: Ticket) -> dict[str, str]:
    """Returns the metadata of an exported file: the ticket's digest, density and provenance (JSON), all as text."""
    return {
        "digest": ticket.digest,
        "density": repr(ticket.density),
        "provenance": json.dumps(ticket.provenance, sort_keys=True),
    }


def to_safetensors(request: ExportRequest) -> bytes:
    """Returns a safetensors file of dense tensors, 0 off their masks. Metadata: digest, density and provenance."""
    from safetensors.torch import save

    ticket = request.stored.ticket
    # Other readers of safetensors files expect the key "format".
    content: bytes = save(ticket.state_dict(), {"format": "pt", **metadata_of(ticket)})
    return content


def to_state_dict(request: ExportRequest) -> bytes:
    """Returns a state dict of dense tensors, 0 off their masks, for `torch.load(..., weights_only=True)`."""
    buffer = io.BytesIO()
    torch.save(request.stored.ticket.state_dict(), buffer)
    return buffer.getvalue()


def to_onnx(request: ExportRequest) -> bytes:
    """Returns the recipe's network with the ticket's weights as ONNX, checked with onnxruntime; see `to_onnx_file`.

    Raises:
        ValueError: If the recipe is missing or does not match the ticket, or if torch.onnx cannot export its network.
        RuntimeError: If the file computes other logits than the ticket.
    """
    stored = request.stored
    config = recipe_of(stored.path, request.recipe, request.overrides)
    splits = load_data(config.data)
    model = build_network(config, splits, stored.ticket)
    inputs, _ = splits.validation.batch(torch.arange(min(len(splits.validation), 4)))
    if not isinstance(inputs, torch.Tensor):
        raise ValueError(
            "Cannot export to ONNX: the network takes several tensors, and only one is supported. Choose another "
            "--format."
        )
    return to_onnx_file(model, inputs, metadata_of(stored.ticket))


def to_csr(request: ExportRequest) -> bytes:
    """Returns a torch file of the ticket with its masked weights as CSR tensors; see `to_csr_file`."""
    return to_csr_file(request.stored.ticket, metadata_of(request.stored.ticket))


def to_arrow(request: ExportRequest) -> bytes:
    """Returns the ticket's Arrow file unchanged: active weights and masks."""
    return request.stored.content


EXPORTS: dict[str, ExportFormat] = {
    "safetensors": ExportFormat(
        to_safetensors,
        ".safetensors",
        "model.load_state_dict(safetensors.torch.load_file({name!r}))",
        packages=("safetensors",),
    ),
    "state_dict": ExportFormat(to_state_dict, ".pt", "model.load_state_dict(torch.load({name!r}, weights_only=True))"),
    "onnx": ExportFormat(
        to_onnx,
        ".onnx",
        "onnxruntime.InferenceSession({name!r})",
        packages=("onnx", "onnxscript", "onnxruntime"),
        reads_recipe=True,
    ),
    "csr": ExportFormat(to_csr, ".csr.pt", "suptickets_ray.load_csr({name!r}, model)"),
    "arrow": ExportFormat(to_arrow, ".arrow", "suptickets_ray.Ticket.load({name!r})"),
}


def export_stored(
    path: str,
    export_format: str,
    output: str | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
) -> Exported:
    """Exports a stored ticket to another format. The file is written atomically.

    Args:
        path: The ticket's file, local or on any file system that pyarrow.fs supports.
        export_format: A key of `EXPORTS`.
        output: The new file, local or on any file system that pyarrow.fs supports. None is the ticket's name with the
            format's suffix, in the working directory. An existing file is replaced.
        recipe: File or name of a recipe, for a format that contains the network. None is the recipe of the run whose
            folder contains the ticket.
        overrides: Settings of the data, for a format that contains the network, e.g. "data.root=/data". With
            "data.name=synthetic" no data files are needed.

    Raises:
        ValueError: If a setting is wrong or has no effect, a package or the ticket is missing, or the output cannot be
            written.
        RuntimeError: If an exported network computes other logits than the ticket.
    """
    chosen = choose(EXPORTS, export_format, "export format")
    if missing := [name for name in chosen.packages if find_spec(name) is None]:
        raise ValueError(
            f"the export format {export_format!r} must have the package {missing[0]}; it is missing. "
            "Run: pip install 'suptickets-ray[export]'"
        )
    unread = [] if chosen.reads_recipe else [*(["--recipe"] if recipe is not None else []), *overrides]
    if unread:
        raise ValueError(f"{unread[0]} has no effect with --format {export_format}: it reads no recipe. Leave it out.")
    if output is not None:
        check_output(output)
    stored = read_ticket(path)
    output = output or f"{stored.stem}{chosen.suffix}"
    check_output(output)
    folder, name = split_path(output)
    full_path = child(folder, name)
    if full_path == stored.path and export_format != "arrow":
        raise ValueError(f"--output must be another file than the ticket itself; got {output!r}.")
    content = chosen.encode(ExportRequest(stored, recipe, overrides))
    RunStore(folder).write(name, content)
    return Exported(full_path, len(content), chosen.load_code.format(name=name))
