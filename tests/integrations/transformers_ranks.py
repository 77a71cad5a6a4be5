"""A rank of the Trainer under DistributedDataParallel; `test_transformers.py` starts two of them with torchrun."""

import os
import sys
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))
from test_transformers import Net, data

from suptickets_ray.integrations.transformers import SparsifierCallback

torch.manual_seed(0)
callback = SparsifierCallback("rigl", density=0.3, update_interval_steps=4)
arguments = transformers.TrainingArguments(
    output_dir=sys.argv[1],
    per_device_train_batch_size=8,
    num_train_epochs=4,
    learning_rate=0.01,
    use_cpu=True,
    report_to=[],
    disable_tqdm=True,
    save_strategy="no",
)
trainer = transformers.Trainer(Net(), arguments, train_dataset=data(), callbacks=[callback])
callback.attach(trainer)
trainer.train()
kind = type(trainer.model_wrapped).__name__
text = f"{kind} {callback.sparsifier.num_updates} {callback.sparsifier.density:.3f}"
(Path(sys.argv[1]) / f"rank-{os.environ['RANK']}.txt").write_text(text)
