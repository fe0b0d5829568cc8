"""OpenLineage's own classes as the judge of facets: their JSON schemas are not installed."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import attrs
from openlineage.client import generated

_BASE = {"_producer", "_schemaURL", "_deleted"}


@cache
def classes() -> dict[str, type]:
    """The client's facet classes by the URL of their schema."""
    found = {}
    for module in pkgutil.iter_modules(generated.__path__):
        loaded = importlib.import_module(f"{generated.__name__}.{module.name}")
        for value in vars(loaded).values():
            if isinstance(value, type) and attrs.has(value) and hasattr(value, "_get_schema"):
                found[value._get_schema()] = value
    return found


def check_facet(name: str, facet: dict[str, Any]) -> str:
    """Hold *facet*, as it stands in an event, against the class of its schema; answers the class's name.

    :raises AssertionError: no such schema, a field that the schema has not, one that is missing or of
        another type.
    """
    url = facet["_schemaURL"]
    assert url in classes(), f"facet {name} has an unknown schema {url}"
    assert facet["_producer"], f"facet {name} has no producer"
    _check(classes()[url], facet, name)
    return classes()[url].__name__


def _check(kind: type, value: Any, where: str) -> None:
    assert isinstance(value, dict), f"{where} is {value!r}"
    hints = get_type_hints(kind)
    fields = {field.name: field for field in attrs.fields(kind)}
    extra = set(value) - set(fields) - _BASE
    assert not extra, f"{where} has fields {extra} that {kind.__name__} has not"
    for name, field in fields.items():
        if name in _BASE:
            continue
        if value.get(name) is None:
            assert field.default is not attrs.NOTHING, f"{where} lacks {name}"
            continue
        _check_value(hints[name], value[name], f"{where}.{name}")


def _check_value(hint: Any, value: Any, where: str) -> None:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        failures = []
        for argument in arguments:
            try:
                return _check_value(argument, value, where)
            except AssertionError as error:
                failures.append(str(error))
        raise AssertionError(f"{where} fits none of {arguments}: {failures}")
    if hint is Any:
        return None
    if origin is list:
        assert isinstance(value, list), f"{where} is {value!r}"
        for number, item in enumerate(value):
            _check_value(arguments[0], item, f"{where}[{number}]")
    elif origin is dict:
        assert isinstance(value, dict), f"{where} is {value!r}"
        for key, item in value.items():
            _check_value(arguments[1], item, f"{where}.{key}")
    elif attrs.has(hint):
        _check(_kind_of(hint, value), value, where)
    elif hasattr(hint, "__members__"):
        assert value in [member.value for member in hint], f"{where} is {value!r}"
    elif hint is type(None):
        assert value is None, f"{where} is {value!r}"
    elif hint is float:
        assert isinstance(value, int | float), f"{where} is {value!r}"
    else:
        assert isinstance(value, hint), f"{where} is {value!r}, not {hint}"
    return None


def _kind_of(hint: type, value: Any) -> type:
    """The subclass that a discriminating ``type`` names, where there is one."""
    for kind in hint.__subclasses__():
        default = {f.name: f.default for f in attrs.fields(kind)}.get("type")
        if isinstance(value, dict) and default == value.get("type"):
            return kind
    return hint
