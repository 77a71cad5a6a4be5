"""The callback of Hugging Face's Trainer, with the real library."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="the extra transformers is not installed")
pytest.importorskip("accelerate", reason="the extra transformers is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))

    def forward(self, inputs, labels=None):
        logits = self.net(inputs)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def data():
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    return [{"inputs": one, "labels": int(one[0] > 0)} for one in inputs]


def fit(tmp_path, *, resume=None, attach=True, **options):
    from suptickets_ray.integrations.transformers import SparsifierCallback

    torch.manual_seed(0)
    model = Net()
    callback = SparsifierCallback("rigl", density=0.3, update_interval_steps=4)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        num_train_epochs=4,
        learning_rate=0.01,
        use_cpu=True,
        save_steps=10,
        logging_steps=4,
        report_to=[],
        disable_tqdm=True,
        seed=3,
        **options,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=data(), callbacks=[callback])
    if attach:
        callback.attach(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return model, callback, trainer


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}, {"max_grad_norm": 0.0}])
def test_training_is_sparse_and_resumes_bit_for_bit_from_the_trainers_checkpoint(tmp_path, options):
    straight, callback, trainer = fit(tmp_path, **options)
    assert callback.sparsifier.density == pytest.approx(0.3, abs=0.01)
    assert callback.sparsifier.num_updates > 0
    assert any("sparsifier_density" in entry for entry in trainer.state.log_history)
    for name, mask in callback.sparsifier.masks.items():
        assert not dict(straight.named_parameters())[name][~mask].any()
    resumed, again, _ = fit(tmp_path, resume=str(tmp_path / "checkpoint-10"), **options)
    assert again.sparsifier.num_steps == callback.sparsifier.num_steps
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])


def test_clipping_without_attach_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="call attach"):
        fit(tmp_path, attach=False)


def test_a_checkpoint_without_the_state_is_refused(tmp_path):
    fit(tmp_path)
    (tmp_path / "checkpoint-10" / "sparsifier.pt").unlink()
    with pytest.raises(ValueError, match="the checkpoint must hold sparsifier.pt"):
        fit(tmp_path, resume=str(tmp_path / "checkpoint-10"))


def test_masks_stay_equal_over_the_ranks_of_ddp(tmp_path):
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = Path(__file__).with_name("transformers_ranks.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, *ranks, str(script), str(tmp_path)], check=True, env=environment, timeout=200)
    for rank in (0, 1):  # they are compared at every update
        assert (tmp_path / f"rank-{rank}.txt").read_text() == "DistributedDataParallel 3 0.296"
