"""A network as an ONNX file that onnxruntime has run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Module

TOLERANCE = 1e-5
"""Greatest difference of logits between torch and onnxruntime, as a share of the greatest logit, or of 1."""


@torch.no_grad()
def to_onnx_file(model: Module, inputs: Tensor, metadata: Mapping[str, str]) -> bytes:
    """Returns the network as ONNX, of any batch size: `input` (batch, ...) to `logits` (batch, num_classes).

    Args:
        model: The network, on the CPU, ready for inference.
        inputs: Some examples (n, ...), on which onnxruntime is compared with torch, also one by one.
        metadata: What the file says of itself.

    Raises:
        ValueError: If torch.onnx cannot export the network.
        RuntimeError: If onnxruntime gives other logits than torch.
    """
    # torch takes a batch of one for a fixed size.
    batch = torch.cat([inputs, inputs])
    try:
        program = torch.onnx.export(
            model,
            (batch,),
            dynamo=True,
            verbose=False,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    except Exception as error:  # whatever torch stumbles over in a network of the user's own
        # The first line of what it stumbled over; its own sentences are about the exporter.
        reason = str(error.__cause__ or error).strip().partition("\n")[0].rstrip(".")
        raise _refusal(reason or type(error).__name__) from error
    assert program is not None
    # Where batches of another size do not go through, torch quietly exports the one that it was shown.
    shape = program.model.graph.inputs[0].shape
    if shape is not None and isinstance(size := shape[0], int):
        raise _refusal(f"batches of {size} alone")
    program.model.metadata_props.update(metadata)
    content: bytes = program.model_proto.SerializeToString()
    check_logits(content, model, [batch, inputs[:1]])
    return content


@torch.no_grad()
def check_logits(content: bytes, model: Module, batches: list[Tensor]) -> None:
    """Raises RuntimeError unless onnxruntime gives the network's logits for every batch, to `TOLERANCE`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for batch in batches:
        expected = model(batch)
        found = torch.from_numpy(session.run(["logits"], {"input": batch.numpy()})[0])
        difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1))
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"the ONNX network must give the ticket's logits to {TOLERANCE:g}; they differ by {difference:.2g}. "
                "Nothing was written."
            )


def _refusal(reason: str) -> ValueError:
    return ValueError(
        f"the network must be one that torch.onnx can export, for batches of any size; got: {reason}. "
        "Choose another --format."
    )
