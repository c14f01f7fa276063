"""/docs: the API on one page that loads nothing from elsewhere, since a service often has no way out."""

from collections.abc import Iterator, Mapping
from typing import Any

from avrec_ray.evaluation.page import Page, Section, Table, render

Spec = Mapping[str, Any]


def docs_html(openapi: Spec) -> str:
    """The page for an OpenAPI document: a section a route, with its parameters and the fields of its body."""
    sections = [
        Section(f"{method.upper()} {path}", str(route.get("description", "")), _tables(route, openapi))
        for path, methods in openapi["paths"].items()
        for method, route in methods.items()
    ]
    return render(Page(openapi["info"]["title"], "The same for machines: /openapi.json", (), sections))


def _tables(route: Spec, openapi: Spec) -> list[Table]:
    rows = [
        [
            parameter["name"],
            f"{_type(parameter['schema'])} ({parameter['in']})",
            _need(parameter),
            _notes(parameter["schema"]),
        ]
        for parameter in route.get("parameters", [])
    ]
    for content in route.get("requestBody", {}).get("content", {}).values():
        rows += list(_fields(content["schema"], openapi))
    return [Table(["field", "type", "", ""], rows)] if rows else []


def _fields(schema: Spec, openapi: Spec, prefix: str = "") -> Iterator[list[str]]:
    """Rows of a body's fields; those of nested objects follow under dotted names."""
    schema = _resolved(schema, openapi)
    if "items" in schema:  # a body that is a list
        schema, prefix = _resolved(schema["items"], openapi), f"{prefix}[]."
    required = set(schema.get("required", []))
    for name, field in schema.get("properties", {}).items():
        yield [prefix + name, _type(field), "required" if name in required else "", _notes(field)]
        inner = _resolved(field.get("items", field), openapi)
        if "properties" in inner:
            yield from _fields(inner, openapi, f"{prefix}{name}{'[]' if 'items' in field else ''}.")


def _resolved(schema: Spec, openapi: Spec) -> Spec:
    """What a $ref points at; of alternatives the first that is not null."""
    for choice in schema.get("anyOf", []):
        if choice.get("type") != "null":
            return _resolved(choice, openapi)
    if "$ref" in schema:
        found: Spec = openapi["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
        return found
    return schema


def _type(schema: Spec) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(choice) for choice in schema["anyOf"])
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[1])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _notes(schema: Spec) -> str:
    """Bounds, default and description."""
    bounds = {"minimum": "from", "maximum": "to", "maxItems": "at most", "maxLength": "at most"}
    parts = [f"{word} {schema[key]}" for key, word in bounds.items() if key in schema]
    parts += [f"default {schema['default']}"] if schema.get("default") is not None else []
    return ", ".join([*parts, *([schema["description"]] if "description" in schema else [])])


def _need(parameter: Spec) -> str:
    return "required" if parameter.get("required") else ""
