"""JSON schemas in words: what a field is, in one table cell."""

from __future__ import annotations

from typing import Any

from handbook.text import cell, code

# Definitions that have a place of their own, as seen from the pages of operations.
LINKS = {"Plan": "../plan.md#plan", "EmbeddingSpace": "../plan.md#embedding-space"}
Schema = dict[str, Any]
_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
}


def resolved(schema: Schema, definitions: Schema) -> Schema:
    """The schema that a reference stands for; others as they are."""
    name = reference(schema)
    return definitions[name] if name else schema


def reference(schema: Schema) -> str:
    """The name of the definition that is referred to, or an empty string."""
    return str(schema.get("$ref", "")).rpartition("/")[2]


def kind(schema: Schema) -> str:
    """The type in words, without the bounds."""
    if name := reference(schema):
        return f"[{name}]({LINKS[name]})" if name in LINKS else name
    if "const" in schema:
        return code(schema["const"])
    if "enum" in schema:
        return ", ".join(code(value) for value in schema["enum"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            parts = [part for part in schema[key] if part.get("type") != "null"]
            return " or ".join(dict.fromkeys(kind(part) for part in parts))
    if schema.get("type") == "array":
        inner = schema.get("items", {})
        return f"list of {kind(inner)}" if inner else "list"
    values = schema.get("additionalProperties")
    if schema.get("type") == "object" and isinstance(values, dict):
        return f"name → {kind(values)}"
    name = str(schema.get("type", "any"))
    return f"{name}, {schema['format']}" if "format" in schema else name


def bounds(schema: Schema) -> str:
    """``> 0, ≤ 100``."""
    parts = [schema, *(p for p in schema.get("anyOf", []) if p.get("type") != "null")]
    found = [
        words.format(f"{part[key]:,}" if isinstance(part[key], int) else part[key])
        for part in parts
        for key, words in _BOUNDS.items()
        if key in part
    ]
    return ", ".join(dict.fromkeys(found))


def described(schema: Schema) -> str:
    """The whole cell on the type: kind and bounds."""
    limits = bounds(schema)
    return cell(f"{kind(schema)} ({limits})" if limits else kind(schema))


def default(schema: Schema, *, required: bool) -> str:
    """What is taken where the field is left out."""
    if required:
        return "**required**"
    if schema.get("default") is None:
        return ""
    return code(
        str(schema["default"]).lower() if isinstance(schema["default"], bool) else schema["default"]
    )


def fields(schema: Schema) -> list[tuple[str, str, str, str]]:
    """(name, type, default, description) of an object's fields."""
    needed = set(schema.get("required", []))
    return [
        (
            code(name),
            described(part),
            default(part, required=name in needed),
            cell(part.get("description", "")),
        )
        for name, part in schema.get("properties", {}).items()
    ]
