"""Labels: each rule by hand, and what must hold for any log."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.errors import ConfigError
from avrec_ray.feedback.labels import LABELS, LabelConfig, label_examples, target_weights_of
from avrec_ray.feedback.shown import impression_rows, shown_items
from avrec_ray.training.watch_quantiles import watch_quantiles
from avrec_ray.types import EVENTS, POSITIVE_EVENTS, check_interactions
from tests.feedback.event_rows import NOTHING_SHOWN, acted, catalogue, listed

PLAIN = LabelConfig(watch_weight=0.0, max_user_share=1.0, max_creator_share=1.0)
ITEMS = catalogue("a", "b", "c", "d", "e")


def labels(*rows: Any, shown: pa.Table = NOTHING_SHOWN, cfg: LabelConfig = PLAIN, **more: Any) -> pa.Table:
    return label_examples(acted(*rows), shown, ITEMS, cfg, **more)


def found(table: pa.Table, *names: str) -> dict[tuple[str, str], Any]:
    """(user, item) to the named columns."""
    rows = table.to_pylist()
    return {(r["user_id"], r["item_id"]): tuple(r[n] for n in names) if names[1:] else r[names[0]] for r in rows}


def test_strongest_positive_event_of_a_pair_decides() -> None:
    table = labels(("u", "a", "view", 0), ("u", "a", "share", 1), ("u", "a", "like", 2))
    assert found(table, "label", "event", "weight") == {("u", "a"): (1, "share", 2.0)}
    assert table["at"][0] == acted(("u", "a", "view", 0))["at"][0]
    assert table.schema.equals(LABELS)


def test_dislike_and_report_override_what_was_chosen_and_a_skip_does_not() -> None:
    table = labels(
        ("u", "a", "like", 0), ("u", "a", "dislike", 1), ("u", "b", "report", 0), ("u", "b", "view", 1),
        ("u", "c", "skip", 0), ("u", "c", "view", 1), ("u", "d", "skip", 0),
    )  # fmt: skip
    assert found(table, "label", "event") == {
        ("u", "a"): (0, "dislike"), ("u", "b"): (0, "report"), ("u", "c"): (1, "view"), ("u", "d"): (0, "skip")
    }  # fmt: skip


def test_strength_of_zero_leaves_an_event_out() -> None:
    cfg = LabelConfig(strengths={**PLAIN.strengths, "skip": 0.0}, watch_weight=0.0)
    assert labels(("u", "a", "skip", 0), ("u", "b", "view", 0), cfg=cfg)["item_id"].to_pylist() == ["b"]


def test_watch_time_counts_by_its_quantile_among_items_as_long() -> None:
    rows = [(f"u{n}", "a", "view", n, {"watch_seconds": 6.0 * n}) for n in range(10)]
    cfg = LabelConfig(watch_weight=0.5, max_user_share=1.0, max_creator_share=1.0)
    table = labels(*rows, cfg=cfg).sort_by("user_id")
    expected = watch_quantiles(np.arange(10, dtype=np.float32) / 10, np.full(10, 60.0, np.float32))
    np.testing.assert_allclose(table["watch_quantile"].to_numpy(), expected)
    np.testing.assert_allclose(table["weight"].to_numpy(), 1 + 0.5 * (2 * expected - 1), rtol=1e-6)


def test_unknown_watch_time_counts_as_it_is() -> None:
    cfg = LabelConfig(max_user_share=1.0, max_creator_share=1.0)
    assert found(labels(("u", "a", "view", 0), cfg=cfg), "weight", "watch_quantile") == {("u", "a"): (1.0, None)}


def test_small_propensity_counts_more_clipped_and_on_average_one() -> None:
    shown = pa.concat_tables([listed("r1", "u", ["a"], 0.5), listed("r2", "u", ["b"], 0.01), listed("r3", "u", ["c"])])
    rows = [("u", i, "view", n, {"request_id": f"r{n}", "position": 1}) for n, i in enumerate("abcd", 1)]
    weight = found(labels(*rows, shown=shown), "weight")
    assert weight["u", "b"] / weight["u", "a"] == pytest.approx(10 / 2)  # 1 / 0.01 is clipped at 10
    assert (weight["u", "a"] + weight["u", "b"]) / 2 == pytest.approx(1.0)
    assert weight["u", "c"] == weight["u", "d"] == 1.0


def test_list_of_another_user_gives_no_propensity() -> None:
    row = ("thief", "a", "view", 0, {"request_id": "r1"})
    table = labels(row, shown=listed("r1", "u", ["a"], 0.01))
    assert found(table, "weight", "request_id", "position", "propensity") == {("thief", "a"): (1.0, None, None, None)}


def test_unclicked_above_the_last_choice_is_a_weak_negative() -> None:
    shown = listed("r1", "u", ["a", "b", "c", "d", "e"])
    rows = [("u", "b", "view", 0, {"request_id": "r1"}), ("u", "d", "view", 1, {"request_id": "r1"})]
    wanted = {"above_last_choice": ["a", "c"], "chosen_lists": ["a", "c", "e"], "none": []}
    for choice, items in wanted.items():
        cfg = LabelConfig(unclicked=choice, max_user_share=1.0, max_creator_share=1.0)
        table = labels(*rows, shown=shown, cfg=cfg)
        weak = table.filter(pc.equal(table["event"], "unclicked"))
        assert sorted(weak["item_id"].to_pylist()) == items
        assert set(weak["label"].to_pylist()) <= {0}
        assert weak["weight"].to_pylist() == pytest.approx([0.1] * len(items))


def test_list_from_which_nothing_was_chosen_says_nothing() -> None:
    shown = listed("r1", "u", ["a", "b"])
    cfg = LabelConfig(unclicked="chosen_lists")
    assert labels(("u", "c", "view", 0), ("u", "a", "skip", 0, {"request_id": "r1"}), shown=shown, cfg=cfg)[
        "event"
    ].to_pylist() == ["skip", "view"]


def test_unclicked_item_that_was_acted_on_elsewhere_is_none() -> None:
    shown = pa.concat_tables([listed("r1", "u", ["a", "b"]), listed("r2", "u", ["a", "c"])])
    rows = [("u", i, "view", 0, {"request_id": r}) for i, r in (("b", "r1"), ("c", "r2"))]
    assert len(labels(*rows, shown=shown)) == 3  # a once
    assert len(labels(*rows, ("u", "a", "skip", 9), shown=shown)) == 3
    assert "unclicked" not in labels(*rows, ("u", "a", "skip", 9), shown=shown)["event"].to_pylist()


def test_impressions_that_clients_posted_count_where_the_service_recorded_none() -> None:
    place = {"request_id": "r1", "position": 1}
    posted = acted(("u", "a", "impression", 0, place), ("u", "b", "impression", 0, {**place, "position": 2}))
    shown = shown_items(posted, listed("r1", "u", ["b"], 0.5))
    assert found(shown, "position", "propensity") == {("u", "b"): (1, 0.5), ("u", "a"): (1, None)}


def test_recorded_impressions_become_rows_of_the_interactions_table() -> None:
    rows = impression_rows(listed("r1", "u", ["a", "b"], 0.5))
    assert check_interactions(rows).equals(rows)
    assert rows["event"].to_pylist() == ["impression"] * 2
    assert rows["position"].to_pylist() == [1, 2]


def test_trust_scales_a_users_weights() -> None:
    rows = [(user, "a", "view", 0) for user in ("new", "old")]
    assert found(labels(*rows, trust={"new": 0.25}), "weight") == {("new", "a"): 0.25, ("old", "a"): 1.0}


def test_heavy_user_and_creator_are_held_to_their_share() -> None:
    rows = [(f"u{n % 400}", f"i{n % 97}", "view", n) for n in range(3000)]
    rows += [("heavy", f"i{n}", "share", n) for n in range(97)]
    made = ["by-one" if n < 60 else f"by-{n}" for n in range(97)]
    items = catalogue(*[f"i{n}" for n in range(97)], creators=made)
    cfg = LabelConfig(watch_weight=0.0, max_user_share=0.01, max_creator_share=0.3)
    table = label_examples(acted(*rows), NOTHING_SHOWN, items, cfg)
    weight, total = table["weight"].to_numpy().astype(float), pc.sum(table["weight"]).as_py()
    heavy = np.array([user == "heavy" for user in table["user_id"].to_pylist()])
    creator = dict(zip(items["item_id"].to_pylist(), made, strict=True))
    by_one = np.array([creator[item] == "by-one" for item in table["item_id"].to_pylist()])
    assert weight[heavy].sum() / total == pytest.approx(0.01, rel=1e-3)
    assert weight[by_one].sum() / total == pytest.approx(0.3, rel=1e-3)


def test_target_weights_follow_the_pair() -> None:
    rows = [("u", "a", "view", 0), ("u", "a", "share", 1), ("u", "b", "like", 2), ("u", "b", "report", 3)]
    table = acted(*rows, ("u", "c", "impression", 4))
    weights = target_weights_of(table, label_examples(table, NOTHING_SHOWN, ITEMS, PLAIN))
    assert weights.tolist() == [2.0, 2.0, 0.0, 0.0, 0.0]
    assert weights.dtype == np.float32


def test_empty_log_gives_no_examples() -> None:
    assert labels().equals(LABELS.empty_table())
    assert len(target_weights_of(acted(), LABELS.empty_table())) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strengths": {"skip": 1.0}}, "strengths.skip=1.0; expected at most 0"),
        ({"strengths": {"like": -1.0}}, "strengths.like=-1.0; expected at least 0"),
        ({"strengths": {"impression": 1.0}}, "strengths='impression' is not one of"),
        ({"unclicked": "all"}, "unclicked='all' is not one of"),
        ({"max_user_share": 0.0}, "max_user_share=0.0 is outside"),
    ],
)
def test_config_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LabelConfig(**change)


NAMES = st.sampled_from(["u", "v", "w"])
PLACES = st.sampled_from(["a", "b", "c", "d", "e", "unknown"])
MORE = st.fixed_dictionaries(
    {},
    optional={
        "watch_seconds": st.floats(0, 500, width=32),
        "request_id": st.sampled_from(["r1", "r2"]),
        "position": st.integers(1, 5),
    },
)
LOGS = st.lists(st.tuples(NAMES, PLACES, st.sampled_from(EVENTS), st.integers(0, 50), MORE), max_size=40)
SHOWN = st.tuples(st.permutations("abcde"), st.permutations("abcde"), st.floats(0.001, 1.0)).map(
    lambda drawn: pa.concat_tables([listed("r1", "u", drawn[0], drawn[2]), listed("r2", "v", drawn[1][:3])])
)


@settings(max_examples=60)
@given(LOGS, SHOWN, st.sampled_from(["above_last_choice", "chosen_lists", "none"]), st.randoms())
def test_any_log(rows: list[Any], shown: pa.Table, unclicked: str, random: Any) -> None:
    cfg = LabelConfig(unclicked=unclicked)
    log = acted(*rows)
    table = label_examples(log, shown, ITEMS, cfg)
    pairs = list(zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    weight = table["weight"].to_numpy()
    assert np.isfinite(weight).all()
    assert (weight > 0).all()
    events = {
        pair: {r[2] for r in rows if (r[0], r[1]) == pair} - {"impression"} for pair in {(r[0], r[1]) for r in rows}
    }
    told = found(table, "label", "event") if len(table) else {}
    for pair, names in events.items():
        if names:
            is_positive = bool(names & set(POSITIVE_EVENTS)) and not names & {"dislike", "report"}
            assert told[pair][0] == is_positive
            assert told[pair][1] in names
    for pair, (label, event) in told.items():
        assert event != "unclicked" or (label == 0 and not events.get(pair))
    weights = target_weights_of(log, table)
    positives = {pair for pair, (label, _) in told.items() if label}
    assert [(r[0], r[1]) in positives for r in rows] == (weights > 0).tolist()
    shuffled = list(rows)
    random.shuffle(shuffled)
    again = label_examples(acted(*shuffled), shown, ITEMS, cfg)
    assert found(again, "label") == found(table, "label")
