"""The page of the API: every route and field, nothing loaded from elsewhere."""

import re
from html import unescape

import httpx


def test_docs_name_every_route_and_load_nothing(client: httpx.Client) -> None:
    answer = client.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    page = unescape(answer.text)
    spec = client.get("/openapi.json").json()
    routes = [f"<h2>{method.upper()} {path}</h2>" for path, methods in spec["paths"].items() for method in methods]
    assert len(routes) > 6
    assert [route for route in routes if route not in page] == []
    assert not re.findall(r"(?:src|href)=", page)
    assert "<script" not in page


def test_docs_show_fields_with_bounds_and_those_of_nested_objects(client: httpx.Client) -> None:
    page = unescape(client.get("/docs").text)
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    fields = {row[0]: row[1:] for row in rows if row}
    assert "events[].event_id" in fields
    assert fields["events[].event_id"][1] == "required"
    assert "filters.categories" in fields
    assert "from 1" in fields["k"][2]
