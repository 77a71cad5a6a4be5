"""Exports a network as an ONNX file, and checks it with onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Module

from suptickets_ray.training.nested import logits_of

TOLERANCE = 1e-5
"""Maximum difference of logits between torch and onnxruntime, relative to the largest logit or to 1."""


@torch.no_grad()
def to_onnx_file(model: Module, inputs: Tensor, metadata: Mapping[str, str]) -> bytes:
    """Returns the network as ONNX for any batch size: `input` (batch, ...) to `logits` (batch, num_classes).

    Args:
        model: The network, on the CPU, in evaluation mode.
        inputs: Examples (n, ...) on which onnxruntime and torch are compared, in batches of 2n and 1.
        metadata: Metadata of the file.

    Raises:
        ValueError: If torch.onnx cannot export the network.
        RuntimeError: If onnxruntime computes other logits than torch.
    """
    # Doubled, because torch.export treats a batch of one as a fixed size.
    batch = torch.cat([inputs, inputs])
    try:
        program = torch.onnx.export(
            _Logits(model).eval(),
            (batch,),
            dynamo=True,
            verbose=False,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    except Exception as error:  # torch may fail with any exception on a user-defined network
        # The first line of the cause: the exporter's own message describes the exporter, not the network.
        reason = str(error.__cause__ or error).strip().partition("\n")[0].rstrip(".")
        raise _export_error(reason or type(error).__name__) from error
    assert program is not None
    # If the network takes only one batch size, torch exports this size without a warning.
    shape = program.model.graph.inputs[0].shape
    if shape is not None and isinstance(size := shape[0], int):
        raise _export_error(f"it takes only batches of {size}")
    program.model.metadata_props.update(metadata)
    content: bytes = program.model_proto.SerializeToString()
    check_logits(content, model, [batch, inputs[:1]])
    return content


@torch.no_grad()
def check_logits(content: bytes, model: Module, batches: list[Tensor]) -> None:
    """Raises RuntimeError unless onnxruntime computes the network's logits for every batch, up to `TOLERANCE`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for batch in batches:
        expected = logits_of(model(batch))
        found = torch.from_numpy(session.run(["logits"], {"input": batch.numpy()})[0])
        difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1))
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"Cannot export to ONNX: onnxruntime's logits differ from torch's by {difference:.2g}, more than "
                f"{TOLERANCE:g}. Choose another --format."
            )


class _Logits(Module):
    """A network that returns its logits as one tensor."""

    def __init__(self, model: Module) -> None:
        super().__init__()
        self._model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return logits_of(self._model(inputs))


def _export_error(reason: str) -> ValueError:
    return ValueError(f"Cannot export the network to ONNX for any batch size: {reason}. Choose another --format.")
