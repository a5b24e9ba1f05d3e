"""The description is structurally valid OpenAPI 3.1 and says what the routes say."""

import re

import msgspec

from fourplane.control import exporters
from fourplane.edge import openapi
from fourplane.edge.routes import Route
from fourplane.foundation.telemetry import Registry


class Price(msgspec.Struct):
    amount: int
    currency: str


class Product(msgspec.Struct):
    name: str
    price: Price
    tags: list[str] = []


async def handler(_call):
    return None


ROUTES = [
    Route("GET", "/shop/api/products/{product_id}", handler, "One product", answer=Product),
    Route("POST", "/shop/api/products", handler, "New", body=Product, answer=list[Product], access="operator"),
    Route("PUT", "/shop/api/media/{rest:path}", handler, "Upload", body=bytes, access="user"),
]


def document():
    return msgspec.json.decode(msgspec.json.encode(openapi.document(ROUTES, title="T", version="1")))


def references(node):
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "$ref":
                yield value
            yield from references(value)
    elif isinstance(node, list):
        for one in node:
            yield from references(one)


def test_every_reference_leads_somewhere():
    whole = document()
    for reference in references(whole):
        node = whole
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


def test_the_structure_is_that_of_openapi():
    whole = document()
    assert whole["openapi"] == "3.1.0"
    assert set(whole["info"]) == {"title", "version"}
    seen = set()
    for path, operations in whole["paths"].items():
        assert path.startswith("/")
        for method, operation in operations.items():
            assert method in {"get", "put", "post", "delete", "patch"}
            assert operation["operationId"] not in seen
            seen.add(operation["operationId"])
            names = set(re.findall(r"\{(\w+)\}", path))
            assert names == {one["name"] for one in operation.get("parameters", [])}
            assert all(
                one["in"] == "path" and one["required"] and "schema" in one for one in operation.get("parameters", [])
            )
            for status, answer in operation["responses"].items():
                assert re.fullmatch(r"[1-5]\d\d|[1-5]XX|default", status)
                assert answer["description"]
            for content in operation.get("requestBody", {"content": {}})["content"].values():
                assert "schema" in content


def test_types_and_access_are_told():
    whole = document()
    assert set(whole["components"]["schemas"]) >= {"Price", "Product", "Error"}
    new = whole["paths"]["/shop/api/products"]["post"]
    assert new["security"] == [{"session": []}, {"bearer": []}]
    assert new["responses"]["200"]["content"]["application/json"]["schema"]["type"] == "array"
    assert set(new["responses"]) == {"200", "401", "403", "default"}
    assert "application/octet-stream" in whole["paths"]["/shop/api/media/{rest}"]["put"]["requestBody"]["content"]


def test_prometheus_text_has_one_type_per_name_and_falling_histograms_never():
    registry = Registry()
    registry.counter("a_total", 'help "quoted"\nlines', path='x"y\\z').add(3)
    registry.counter("a_total", path="other").add(1)
    registry.gauge("b_ratio", read=lambda: 0.25)
    histogram = registry.histogram("c_seconds", route="r")
    for amount in (0.000_001, 0.002, 0.5, 3.0, 3.0):
        histogram.record(amount)
    text = exporters.prometheus_text(registry)
    assert text.count("# TYPE a_total counter") == 1
    assert 'a_total{path="x\\"y\\\\z"} 3' in text
    assert "b_ratio 0.25" in text
    counts = [int(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("c_seconds_bucket")]
    assert counts == sorted(counts)
    assert counts[-1] == 5
    edges = [float(one) for one in re.findall(r'c_seconds_bucket\{route="r",le="([\d.e+-]+)"\}', text)]
    assert edges == sorted(edges)
    assert "c_seconds_count" in text
