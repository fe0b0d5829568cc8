"""What is wrong with a pipeline, key by key, in words that say what to write instead."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from airflow_etl_provider.core.suggest import nearest

Key = str | int
KeyPath = tuple[Key, ...]

_WORDS = {bool: "true or false", int: "a number", float: "a number", str: "a text"}
_LIMITS = {
    "greater_than": "more than",
    "greater_than_equal": "at least",
    "less_than_equal": "at most",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: at which key, what, and what to write instead."""

    path: KeyPath
    what: str
    remedy: str

    def __str__(self) -> str:
        where = dotted(self.path)
        return f"{where}: {self.what}; {self.remedy}" if where else f"{self.what}; {self.remedy}"


class ContradictionError(ValueError):
    """Values that are right alone and wrong together; paths start at the model that found them."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        super().__init__("; ".join(map(str, findings)))
        self.findings = tuple(findings)


def dotted(path: KeyPath) -> str:
    """``streams[1].source.cursor``: a path as a person would say it."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def findings_of(error: ValidationError, model: type[BaseModel], written: object) -> list[Finding]:
    """Every error of a validation, in the order of the file's keys, as findings.

    :param written: the data as the user wrote it, to name paths that the user can find in it.
    """
    found: list[Finding] = []
    details = error.errors(include_url=False)
    unknown = {detail["loc"] for detail in details if detail["type"] == "extra_forbidden"}
    for detail in details:
        path = tuple(key for key in detail["loc"] if not _is_inner(key))
        if detail["type"] == "missing" and _misspelt(detail["loc"], unknown):
            continue
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, ContradictionError):
            found.extend(
                Finding(as_written(path + inner.path, written), inner.what, inner.remedy)
                for inner in cause.findings
            )
        else:
            what, remedy = _explained(detail, model, path)
            found.append(Finding(as_written(path, written), what, remedy))
    return list(dict.fromkeys(found))


def as_written(path: KeyPath, written: object) -> KeyPath:
    """*path* without the levels that only the model has: one stream at the top, a bare list."""
    if path[:1] == ("streams",) and isinstance(written, Mapping) and "streams" not in written:
        path = path[2:]
    for depth in range(len(path) - 1):
        if path[depth : depth + 2] == ("quality", "expectations"):
            quality = value_at(written, path[: depth + 1])
            if quality is None:  # a default for every stream, written at the top level
                quality = value_at(written, ("quality",))
            if not isinstance(quality, Mapping):
                return path[: depth + 1] + path[depth + 2 :]
    return path


def value_at(data: object, path: KeyPath) -> object:
    """The value at *path*, or ``None``."""
    for key in path:
        if isinstance(data, Mapping):
            data = data.get(key)
        elif isinstance(key, int) and isinstance(data, Sequence) and key < len(data):
            data = data[key]
        else:
            return None
    return data


def _misspelt(missing: KeyPath, unknown: Collection[KeyPath]) -> bool:
    """Whether a key that is missing is there under a name like it, which is reported instead."""
    return any(
        key[:-1] == missing[:-1] and nearest(str(key[-1]), [str(missing[-1])]) for key in unknown
    )


def _is_inner(key: Key) -> bool:
    """pydantic names its own wrappers in a location; no key of a file looks like that."""
    return isinstance(key, str) and "[" in key and key.endswith("]")


def _explained(detail: ErrorDetails, model: type[BaseModel], path: KeyPath) -> tuple[str, str]:
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    match kind:
        case "extra_forbidden":
            known = _keys_at(model, path[:-1])
            return f"unknown key{nearest(str(path[-1]), known)}", f"known here: {', '.join(known)}"
        case "missing":
            return "is missing", _hint(model, path)
        case "literal_error" | "enum":
            allowed = [
                part.strip("' ") for part in context["expected"].replace(" or ", ", ").split(",")
            ]
            return (
                f"{given!r} is not known{nearest(str(given), allowed)}",
                f"write one of {', '.join(allowed)}",
            )
        case "string_type":
            return _not_text(given)
        case "tuple_type" | "list_type":
            return f"a list is expected, not {named(given)}", f"write [{given}]" if isinstance(
                given, str
            ) else "write a list, one entry per line with a leading '- '"
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"a mapping is expected, not {named(given)}", _hint(model, path)
        case "bool_type":
            return f"{given!r} is neither true nor false", "write true or false without quotes"
        case "int_type" | "float_type":
            return f"a number is expected, not {named(given)}", "write the number without quotes"
        case "greater_than" | "greater_than_equal" | "less_than_equal":
            (limit,) = context.values()  # of a duration, pydantic gives the source text
            if not isinstance(limit, int | float):
                return f"{named(given)} is out of range", _hint(model, path)
            return f"{named(given)} is not {_LIMITS[kind]} {limit:g}", _hint(model, path)
        case _:
            what = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            return f"{named(given)}: {what}", _hint(model, path)


def _not_text(given: object) -> tuple[str, str]:
    if isinstance(given, bool):
        return (
            f"a text is expected, and YAML reads this as {str(given).lower()}",
            "put it in quotes (YAML takes bare yes, no, on and off for true and false)",
        )
    if given is None:
        return "a text is expected, and nothing is there", "write a value or leave the key out"
    if isinstance(given, Mapping | list | tuple):
        return (
            f"a text is expected, not {named(given)}",
            "write one value; put it in quotes if it has {, [ or :",
        )
    return f"a text is expected, not {named(given)}", "put it in quotes"


def named(value: object) -> str:
    """The kind of *value* in the words of YAML."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return f"{_WORDS.get(type(value), type(value).__name__)} ({value!r})"


def _hint(model: type[BaseModel], path: KeyPath) -> str:
    while path and isinstance(path[-1], int):
        path = path[:-1]
    field = _field_at(model, path)
    if field is None or not field.description:
        return "see the documentation of this key"
    example = f", for example {field.examples[0]}" if field.examples else ""
    return f"write {field.description}{example}"


def _field_at(model: type[BaseModel], path: KeyPath) -> Any:
    parent = _model_at(model, path[:-1])
    return parent.model_fields.get(str(path[-1])) if parent is not None and path else None


def _keys_at(model: type[BaseModel], path: KeyPath) -> list[str]:
    parent = _model_at(model, path)
    if parent is None:
        return []
    keys = list(parent.model_fields)
    if not path:  # one stream may stand at the top level, and defaults for many
        (stream,) = _models_in(parent.model_fields["streams"].annotation)
        keys += list(stream.model_fields)
    return keys


def _model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    for key in path:
        if isinstance(key, int):
            continue
        field = model.model_fields.get(key)
        inner = _models_in(field.annotation) if field is not None else []
        if not inner:
            return None
        model = inner[0]
    return model


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models_in(part)]
