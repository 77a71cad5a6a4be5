"""Networks of Hugging Face's transformers: model.name=hf:FOLDER. The library is an extra, imported when it is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.nn import Module

from suptickets_ray.lookup import suggestion

PREFIX = "hf:"
_LANGUAGE_MODELS = ("LMHeadModel", "ForCausalLM", "ForMaskedLM")


def huggingface_builder(path: str) -> Callable[..., Module]:
    """Returns the function that builds the network of a local configuration, with random weights. No download.

    The network is the first entry of `architectures`, or the option `architecture`. It has as many labels or tokens as
    the data, returns an object with `.logits`, and takes the names of the inputs' dict as arguments. Input and output
    embeddings are not tied, because a ticket stores each tensor once. Other options change the configuration, e.g.
    num_hidden_layers. Its trained weights are loaded with model.weights=FOLDER/model.safetensors.

    Args:
        path: A folder with config.json, or such a file.

    Raises:
        ValueError: If transformers is missing, or there is no configuration.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            f"model.name 'hf:{path}' must have the package transformers; it is missing. Run: pip install "
            "'suptickets-ray[transformers]'."
        ) from error
    where = Path(path).expanduser()
    if not (where.is_file() or (where / "config.json").is_file()):
        raise ValueError(f"model.name 'hf:...' must name a folder with config.json, or such a file; got {path!r}.")

    def build(num_outputs: int, architecture: str | None = None, **options: Any) -> Module:
        config = transformers.AutoConfig.from_pretrained(str(where), local_files_only=True)
        for key, value in options.items():
            if not hasattr(config, key):
                known = [name for name in vars(config) if not name.startswith("_")]
                raise ValueError(
                    f"model.options.{key} has no effect: the configuration {path!r} has no such key"
                    f"{suggestion(key, known)}"
                )
            setattr(config, key, value)
        name = architecture or next(iter(config.architectures or ()), None)
        found = getattr(transformers, name or "", None)
        if found is None:
            raise ValueError(
                f"model.options.architecture must be a class of transformers such as 'BertForSequenceClassification'; "
                f"got {name!r}, and {path!r} names none of them."
            )
        if name is not None and name.endswith(_LANGUAGE_MODELS):
            config.vocab_size, config.use_cache = num_outputs, False
        else:
            config.num_labels = num_outputs
        config.tie_word_embeddings = False
        model: Module = found(config)
        return model

    return build
