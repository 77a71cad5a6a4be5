"""Recipes as YAML files: find one by path or name, merge it over its bases, copy it without bases."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from suptickets_ray.config import Config
from suptickets_ray.lookup import suggestion
from suptickets_ray.recipes.yaml_text import MAX_CHARACTERS, dump_yaml, parse_yaml

DEFAULT_RECIPE = "digits"


def experiments_dir() -> Path:
    """Returns the folder of the shipped recipes, in the wheel or in the checkout of an editable install."""
    package = Path(str(files("suptickets_ray")))
    for folder in (package / "experiments", package.parent / "experiments"):
        if (folder / f"{DEFAULT_RECIPE}.yaml").is_file():
            return folder
    raise ValueError("the recipes must ship with the package; they are missing. Install suptickets_ray again.")


def shipped_recipes() -> dict[str, Path]:
    """Returns the shipped recipes, sorted by name: the path relative to experiments/, without .yaml.

    Bases (file names that begin with an underscore) and the cluster files in kuberay/ are excluded.
    """
    folder = experiments_dir()
    paths = (path for path in folder.rglob("*.yaml") if path.name[0] != "_" and path.parent.name != "kuberay")
    return dict(sorted((path.relative_to(folder).with_suffix("").as_posix(), path) for path in paths))


def find_recipe(recipe: str | Path | None, folder: Path | None = None) -> Path:
    """Returns the file of a recipe: an existing path, or else the shipped recipe of that name.

    Args:
        recipe: Path or name. None is the built-in digits recipe.
        folder: Folder of a relative path. None is the working directory.

    Raises:
        ValueError: If neither exists. The message suggests the most similar name.
    """
    name = DEFAULT_RECIPE if recipe is None else str(recipe)
    path = Path(name).expanduser() if folder is None else folder / name
    siblings: list[str] = []
    with suppress(OSError):  # a name that is too long
        if recipe is not None and path.exists() and not path.is_dir():
            return path
    shipped = shipped_recipes()
    if (known := shipped.get(name.removesuffix(".yaml"))) is not None:
        return known
    with suppress(OSError):
        siblings = [other.name for other in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    suggestions = [suggestion(path.name, siblings), suggestion(name, shipped)]
    raise ValueError(
        f"the recipe must be a YAML file, or a name that `suptickets recipes` lists; got {name!r}"
        f"{next((text for text in suggestions if text != '.'), '.')} Write overrides as key=value."
    )


def read_recipe(path: Path) -> dict[str, Any]:
    """Returns the settings of a recipe file, merged over the settings of its base.

    A recipe may name another one as `base`: a path relative to the recipe's folder, or the name of a shipped recipe.
    The recipe overrides its base. Sections are merged recursively.

    Raises:
        ValueError: If a file is missing or is not a recipe, or if the bases form a cycle.
    """
    return _read(path, ())


def read_stored_recipe(uri: str) -> dict[str, Any]:
    """Returns the settings of a recipe on an object store. It must not have a base; e.g. a search's best.yaml.

    Args:
        uri: For example s3://bucket/path/best.yaml?region=us-east-1.

    Raises:
        ValueError: If the file does not exist, is not a recipe, or has a base.
    """
    from suptickets_ray.tickets.store import RunStore, split_path  # imported here: a local recipe needs no pyarrow

    folder, name = split_path(uri)
    try:
        store = RunStore(folder)
        store.check(writes=False, path=name)
        settings = _parsed(store.read(name).decode(), uri)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the recipe {uri!r} must be readable; got: {' '.join(str(error).split())}.") from error
    if "base" in settings:
        raise ValueError(
            f"the recipe {uri!r} must have no base; got base: {settings['base']!r}. Copy both files to this machine."
        )
    return settings


def _read(path: Path, ancestors: tuple[Path, ...]) -> dict[str, Any]:
    settings = _read_file(path)
    if "base" not in settings:
        return settings
    base = settings.pop("base")
    if not isinstance(base, str):
        raise ValueError(f"base in {str(path)!r} must be the path or name of one recipe; got {base!r}.")
    try:
        base_path = find_recipe(base, path.parent)
    except ValueError:
        hint = suggestion(Path(base).name, (other.name for other in (path.parent / base).parent.glob("*.yaml")))
        raise ValueError(
            f"base in {str(path)!r} must be an existing recipe; got {base!r}{hint} "
            "Paths are relative to the recipe's folder."
        ) from None
    ancestors = (*ancestors, path.resolve())
    if base_path.resolve() in ancestors:
        raise ValueError(
            f"base in {str(path)!r} must not form a cycle of bases; got {base!r}. Remove one of the bases."
        )
    return merge(_read(base_path, ancestors), settings)


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the base updated with the overrides. Mappings are merged recursively; other values are replaced.

    If the override of a mapping is null, the mapping is removed: another model, for example, has other options.
    """
    merged = dict(base)
    for key, value in overrides.items():
        old = merged.get(key)
        if value is None and isinstance(old, Mapping):
            del merged[key]
            continue
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            return _parsed(file.read(4 * MAX_CHARACTERS), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"the recipe {str(path)!r} must be readable YAML; got: {' '.join(str(error).split())}."
        ) from error


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        settings = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the recipe {name!r} must be readable YAML; got: {' '.join(str(error).split())}.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"the recipe {name!r} must contain sections such as 'model:'; got {type(settings).__name__}.")
    return settings


def question_of(path: Path) -> str:
    """Returns the question in the first line of a recipe."""
    line, *_ = path.read_text(encoding="utf-8").splitlines() or [""]
    question, mark, _ = line.removeprefix("#").strip().partition("?")
    return question + mark


def standalone_text(path: Path) -> str:
    """Returns the text of a recipe's copy: unchanged, or with its bases merged in and its first comment kept."""
    text = path.read_text(encoding="utf-8")
    if "base" not in _read_file(path):
        return text
    comment = re.match(r"(#[^\n]*\n)*", text)
    return (comment.group() if comment else "") + dump_yaml(in_order(read_recipe(path)))


def copy_recipe(name: str, file: str | Path | None = None) -> Path:
    """Copies a recipe to a new file without a base, and returns that file.

    Args:
        name: A name of `shipped_recipes`, or a path.
        file: The new file. None is the last part of the name with .yaml, in the working directory.

    Raises:
        ValueError: If the recipe does not exist, or if the file already exists or cannot be written.
    """
    source = find_recipe(name)
    text = standalone_text(source)
    target = Path(source.name if file is None else file)
    try:
        with target.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError:
        raise ValueError(
            f"Cannot copy the recipe: the file {str(target)!r} already exists. Choose another name, or remove the file."
        ) from None
    except OSError as error:
        raise ValueError(f"Cannot copy the recipe: {error}.") from error
    return target


def in_order(settings: Mapping[str, Any], section: type = Config) -> dict[str, Any]:
    """Returns the settings in the order of config.py, without null values that are defaults."""
    kinds = get_type_hints(section)
    fields = {field.name: field for field in dataclasses.fields(section)}
    ordered = {}
    for key in sorted(settings, key=lambda key: list(fields).index(key) if key in fields else len(fields)):
        kind, value = kinds.get(key), settings[key]
        if value is None and key in fields and fields[key].default is None:
            continue
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
            value = in_order(value, kind)
        ordered[key] = value
    return ordered
