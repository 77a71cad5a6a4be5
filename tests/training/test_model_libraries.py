"""Networks of timm and transformers, with the real libraries."""

import re
import sys

import pytest
import torch

from suptickets_ray import load_config
from suptickets_ray.config import ModelConfig
from suptickets_ray.training.data import load_data
from suptickets_ray.training.loop import build_learner, train_epoch
from suptickets_ray.training.models import build_model
from suptickets_ray.training.preflight import preflight

SMALL = ["train.epochs=100", "method.update_interval_steps=2", "train.optimizer=adamw", "train.lr=0.001"]
RECIPE = {"name": "library", "train": {"epochs": 10}, "method": {"name": "rigl", "density": 0.3}}


def trained(recipe, *overrides):
    config = load_config({**RECIPE, **recipe}, [*SMALL, *overrides])
    preflight(config)
    splits = load_data(config.data)
    learner = build_learner(config, splits, torch.device("cpu"))
    loss = train_epoch(learner, learner.model, config, splits, 0, lambda step: config.train.lr)
    assert 0 < loss < 100
    assert learner.sparsifier.num_updates > 0
    return learner


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "options"), [("vit_tiny_patch16_224", {"img_size": 16, "depth": 2}), ("resnet10t", {})]
)
def test_networks_of_timm_train(name, options):
    pytest.importorskip("timm", reason="the extra timm is not installed")
    data = {"name": "synthetic", "options": {"shape": [2, 16, 16], "num_classes": 3, "num_train": 40}, "batch_size": 8}
    trained({"model": {"name": f"timm:{name}", "options": options}, "data": data})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_unknown_networks_and_options_of_timm_are_refused():
    pytest.importorskip("timm", reason="the extra timm is not installed")
    with pytest.raises(ValueError, match="unknown model of timm 'resnet_10t'; did you mean"):
        build_model(ModelConfig(name="timm:resnet_10t"), (3, 16, 16), 3)
    with pytest.raises(ValueError, match="model.options.pretrained must not be set; got True. Use model.weights."):
        build_model(ModelConfig(name="timm:resnet10t", options={"pretrained": True}), (3, 16, 16), 3)


@pytest.fixture
def folder(tmp_path):
    """A folder with the configuration of a small BERT."""
    transformers = pytest.importorskip("transformers", reason="the extra transformers is not installed")
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        architectures=["BertForSequenceClassification"],
    )
    config.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


SENTENCES = """
import torch
def load(split_seed):
    ids = torch.randint(30, (96, 8), generator=torch.Generator().manual_seed(split_seed))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = (ids[:, 0] > 15).long()
    cut = lambda rows: ({key: tensor[rows] for key, tensor in inputs.items()}, labels[rows])
    return {"train": cut(slice(0, 64)), "validation": cut(slice(64, 80)), "test": cut(slice(80, 96))}
def tokens(split_seed):
    ids = torch.randint(30, (96, 9), generator=torch.Generator().manual_seed(split_seed))
    cut = lambda rows: (ids[rows, :-1], ids[rows, 1:])
    return {"train": cut(slice(0, 64)), "validation": cut(slice(64, 80)), "test": cut(slice(80, 96)), "num_classes": 30}
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_network_of_hugging_face_trains_from_a_folder_and_from_its_weights(folder, tmp_path, monkeypatch):
    (tmp_path / "hf_sentences.py").write_text(SENTENCES)
    monkeypatch.syspath_prepend(tmp_path)
    data = {"name": "hf_sentences:load", "batch_size": 8}
    recipe = {"model": {"name": f"hf:{folder}"}, "data": data}
    learner = trained(recipe)
    assert learner.model.config.num_labels == 2
    torch.save(learner.model.state_dict(), tmp_path / "bert.pt")
    again = trained(recipe, f"model.weights={tmp_path}/bert.pt", "model.freeze=[bert.embeddings]")
    name = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(again.model.state_dict()[name], learner.model.state_dict()[name])
    language = {**recipe, "data": {"name": "hf_sentences:tokens", "batch_size": 8}, "task": {"name": "language_model"}}
    trained(language, "model.options={architecture: BertLMHeadModel, is_decoder: true}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_faults_of_a_configuration_are_refused(folder, tmp_path):
    for name, options, message in [
        (f"hf:{tmp_path}/none", {}, "must name a folder with config.json"),
        (f"hf:{folder}", {"hiden_size": 3}, "model.options.hiden_size has no effect: the configuration"),
        (f"hf:{folder}", {"architecture": "Bert"}, "model.options.architecture must be a class of transformers"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            build_model(ModelConfig(name=name, options=options), (8,), 2)


@pytest.mark.parametrize(("name", "package"), [("timm:resnet10t", "timm"), ("hf:folder", "transformers")])
def test_a_missing_library_is_named_with_its_extra(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"must have the package {package}; .*'suptickets-ray\[{package}\]'"):
        build_model(ModelConfig(name=name), (3, 16, 16), 3)
