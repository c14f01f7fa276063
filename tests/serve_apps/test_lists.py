"""Explanations as response bodies: what was not measured is no member at all."""

from avrec_ray.catalogue import Catalogue
from avrec_ray.types import Because, Counterfactual, RankedItem
from serve_apps.lists import list_response
from serve_apps.served import Served


def test_list_response_tells_the_sentence_and_the_rank_without_the_reason(catalogue: Catalogue) -> None:
    because = (Because("i2", 0.5, "video", 0.0, 4.0),)
    why = RankedItem("i1", 1, 2.0, because, ("t0",), Counterfactual("i2", 14), 'Because you watched "Title 2".')
    bare = RankedItem("i3", 2, 1.0, because, ("t0",))
    served = Served(1000, "v", catalogue)
    served.items = [why, bare]
    told, plain = (item["explanation"] for item in list_response(served, True).model_dump(mode="json")["items"])
    assert told["sentence"] == 'Because you watched "Title 2".'
    assert told["counterfactual"] == {"item_id": "i2", "rank": 14}
    assert set(plain) == {"because", "tags"}
    assert list_response(served, False).items[0].explanation is None
