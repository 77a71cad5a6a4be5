"""Renders the templates of the pages. Values are escaped, except the markup that a template has rendered."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render(template: str, **values: Any) -> Markup:
    """Returns a template of `report/templates` with its values.

    Raises:
        jinja2.UndefinedError: If the template reads a value that is not given.
    """
    return Markup(_environment().get_template(template).render(values))  # noqa: S704 - the template escapes values


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("suptickets_ray", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
