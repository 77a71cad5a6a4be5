"""The callback of Lightning's Trainer, with the real library."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pl = pytest.importorskip("lightning.pytorch", reason="the extra lightning is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Net(pl.LightningModule):
    def __init__(self, optimizer="AdamW"):
        super().__init__()
        self.net, self.optimizer = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3)), optimizer

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return getattr(torch.optim, self.optimizer)(self.parameters(), lr=0.01)


def data():
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=8)


def fit(tmp_path, epochs, *, resume=None, method="rigl", stop=None, **options):
    from suptickets_ray.integrations.lightning import SparsifierCallback

    torch.manual_seed(0)
    model = Net()
    callback = SparsifierCallback(method, density=0.3, update_interval_steps=4)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[callback],
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_train_batches=8,
        **options,
    )
    if stop is not None:

        class Stop(pl.Callback):
            def on_train_epoch_end(self, trainer, module):
                if trainer.current_epoch == stop:
                    trainer.save_checkpoint(tmp_path / "half.ckpt")
                    trainer.should_stop = True

        trainer.callbacks.append(Stop())
    trainer.fit(model, data(), ckpt_path=resume)
    return model, callback, trainer


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_clip_val": 0.5}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}, {"strategy": "ddp"}],
)
def test_training_is_sparse_and_resumes_bit_for_bit_from_the_trainers_checkpoint(tmp_path, options):
    straight, callback, trainer = fit(tmp_path, 4, **options)
    assert callback.sparsifier.density == pytest.approx(0.3, abs=0.01)
    assert callback.sparsifier.num_updates > 0
    assert trainer.callback_metrics["sparsifier/updates"] == callback.sparsifier.num_updates
    for name, mask in callback.sparsifier.masks.items():
        assert not dict(straight.named_parameters())[name][~mask].any()
    fit(tmp_path, 4, stop=1, **options)
    resumed, again, _ = fit(tmp_path, 4, resume=tmp_path / "half.ckpt", **options)
    assert again.sparsifier.num_steps == callback.sparsifier.num_steps
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])


def test_clipping_sees_the_active_gradients_only(tmp_path):
    from suptickets_ray.integrations.lightning import SparsifierCallback

    norms = []

    class Seen(Net):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
            masks = callback.sparsifier.masks
            norms.append(max(float(p.grad[~masks[n]].abs().max()) for n, p in self.named_parameters() if n in masks))
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    callback = SparsifierCallback("set", density=0.3, update_interval_steps=4)
    pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[callback],
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        gradient_clip_val=0.5,
    ).fit(Seen(), data())
    assert norms and max(norms) == 0


def test_a_training_without_an_end_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the training must have an end"):
        fit(tmp_path, -1)
