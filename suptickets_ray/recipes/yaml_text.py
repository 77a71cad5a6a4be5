"""YAML of recipes: reading bounds its size and refuses doubled keys; writing keeps the order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

MAX_CHARACTERS = 2**18
_MAX_VALUES = 50_000
"""Maximum number of values in one text. A value counts again for every alias that repeats it."""


class _Loader(yaml.SafeLoader):
    """Safe YAML loader that reads 1e-3 as a number, rejects duplicate keys, and limits the expansion of aliases."""

    def get_single_node(self) -> yaml.Node | None:
        """Returns the root node. Raises yaml.YAMLError if it contains itself or expands to too many values."""
        root = super().get_single_node()
        if root is not None and _expanded_size(root, {}) > _MAX_VALUES:
            raise yaml.YAMLError(f"its aliases expand to more than {_MAX_VALUES:,} values")
        return root

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Returns the mapping. Raises yaml.YAMLError on a duplicate key, because its first value would be lost."""
        seen: dict[Any, yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused below
            # By value, because yes is true, and by text, because settings have text as keys. A merge, <<, has no value.
            is_merge = key.tag == "tag:yaml.org,2002:merge"
            name = key.value if is_merge or key.value in seen else self.construct_object(key)
            if name in seen:
                raise yaml.YAMLError(
                    f"the key {key.value!r} is written twice, in lines {seen[name].start_mark.line + 1} and "
                    f"{key.start_mark.line + 1}; merge the two"
                )
            seen[name] = seen[key.value] = key
        return super().construct_mapping(node, deep=deep)


def _expanded_size(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Returns the number of values in a node. Values count again for every alias."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise yaml.YAMLError("an alias refers to a collection that contains it")
        return size
    known[id(node)] = None
    parts = (part for item in node.value for part in (item if isinstance(item, tuple) else (item,)))
    size = known[id(node)] = min(1 + sum(_expanded_size(part, known) for part in parts), _MAX_VALUES + 1)
    return size


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)$"),
    list("-+.0123456789"),
)


class _Dumper(yaml.SafeDumper):
    """Safe YAML dumper that writes each list on one line."""


_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


def parse_yaml(text: str) -> Any:
    """Returns the value of a YAML text. Time and memory are proportional to its length.

    Raises:
        yaml.YAMLError: If the text is not YAML, is longer than 262,144 characters, contains a duplicate key, has
            aliases that expand to more than 50,000 values, or nests collections too deeply.
    """
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"it has {len(text):,} characters, more than {MAX_CHARACTERS:,}")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise yaml.YAMLError("its collections are nested too deeply") from None
    except (ValueError, TypeError) as error:  # PyYAML raises these for a date such as 2026-99-99, or a list as a key
        raise yaml.YAMLError(str(error)) from error


def dump_yaml(settings: Mapping[str, Any]) -> str:
    """Returns the settings as YAML, in the order of the mapping."""
    return yaml.dump(dict(settings), Dumper=_Dumper, sort_keys=False)
