"""OpenAPI 3.1 of all routes, from the types the handlers use; nothing is written twice."""

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from fourplane.edge.routes import Access, Route

ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "fields"],
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "fields": {"type": "object", "additionalProperties": True},
            },
        }
    },
}
_PARAMETER = re.compile(r"\{(\w+)(:path)?\}")


def document(routes: Iterable[Route], *, title: str, version: str) -> dict[str, Any]:
    """The whole description, ready to be encoded."""
    known = list(routes)
    types = _types(known)
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    by_type = dict(zip([_key(kind) for kind in types], schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in known:
        path = _PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, by_type)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": ERROR_SCHEMA},
            "securitySchemes": {
                "session": {"type": "apiKey", "in": "cookie", "name": "fourplane_session"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _types(routes: list[Route]) -> list[Any]:
    found: dict[str, Any] = {}
    for route in routes:
        for kind in (route.body, route.answer):
            if kind is not None and kind is not bytes:
                found.setdefault(_key(kind), kind)
    return list(found.values())


def _key(kind: object) -> str:
    return repr(kind)


def _operation(route: Route, by_type: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": _operation_id(route),
        "tags": [route.path.strip("/").split("/")[0] or "console"],
        "responses": _responses(route, by_type),
    }
    names = [name for name, _ in _PARAMETER.findall(route.path)]
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": _content(route.body, by_type)}
    if route.access != "public":
        operation["security"] = [{"session": []}, {"bearer": []}]
    return operation


def _responses(route: Route, by_type: dict[str, Any]) -> dict[str, Any]:
    error = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    if route.answer is None:
        good: dict[str, Any] = {"2XX": {"description": "done"}}
    else:
        good = {"200": {"description": "the answer", "content": _content(route.answer, by_type)}}
    refusals: tuple[Access, ...] = ("user", "operator")
    if route.access in refusals:
        good["401"] = {"description": "not logged in", **error}
        good["403"] = {"description": "not allowed", **error}
    return {**good, "default": {"description": "what went wrong", **error}}


def _content(kind: Any, by_type: dict[str, Any]) -> dict[str, Any]:
    if kind is bytes:
        return {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return {"application/json": {"schema": by_type[_key(kind)]}}


def _operation_id(route: Route) -> str:
    words = re.sub(r"[^A-Za-z0-9]+", "_", route.path).strip("_")
    return f"{route.method.lower()}_{words or 'root'}"
