"""Names of users: keyed, stable, and movable to another key by whoever has both."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.errors import ConfigError, FeedbackError
from avrec_ray.feedback.pseudonyms import Pseudonyms, is_pseudonym

KEY_1, KEY_2 = b"1" * 32, b"2" * 32
OLD, BOTH, NEW = Pseudonyms([(1, KEY_1)]), Pseudonyms([(2, KEY_2), (1, KEY_1)]), Pseudonyms([(2, KEY_2)])
USER_IDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(lambda text: not is_pseudonym(text))


@given(USER_IDS, USER_IDS)
def test_of_is_a_function_of_key_and_id(one: str, other: str) -> None:
    assert OLD.of(one) == Pseudonyms([(1, KEY_1)]).of(one)
    assert (OLD.of(one) == OLD.of(other)) == (one == other)
    assert OLD.of(one)[3:] != NEW.of(one)[3:] != Pseudonyms([(2, KEY_1)]).of(one)[3:] == OLD.of(one)[3:]
    assert is_pseudonym(OLD.of(one))
    assert one.encode("utf-8", "surrogatepass") not in OLD.of(one).encode() or len(one) < 4


@given(USER_IDS)
def test_a_name_moves_to_another_key_without_the_id(user_id: str) -> None:
    assert BOTH.stored(OLD.of(user_id)) == BOTH.of(user_id) == NEW.of(user_id) == BOTH.stored(user_id)
    assert BOTH.aliases(OLD.of(user_id)) == (NEW.of(user_id), OLD.of(user_id)) == BOTH.names_of_id(user_id)
    assert BOTH.core(OLD.of(user_id)) == NEW.core(NEW.of(user_id)) == Pseudonyms().core(user_id)


@given(USER_IDS)
def test_digests_move_to_another_key_and_show_no_name(user_id: str) -> None:
    before, after = OLD.tombstones(OLD.of(user_id))[0], NEW.tombstones(NEW.of(user_id))[0]
    assert BOTH.tombstones(OLD.of(user_id)) == (after, before)
    assert BOTH.renewed_digest(before) == BOTH.renewed_digest(after) == after
    assert BOTH.renewed_digest(Pseudonyms().tombstones(user_id)[0]) == after
    event = OLD.event_digests([user_id])[0][0]
    assert BOTH.renewed_digest(event) == NEW.event_digests([user_id])[0][0]
    assert len({before[3:], after[3:], event[3:], OLD.of(user_id)[3:], NEW.of(user_id)[3:]}) == 5


def test_without_keys_ids_stay() -> None:
    plain = Pseudonyms()
    assert (plain.of("u1"), plain.stored("u1"), plain.aliases("u1")) == ("u1", "u1", ("u1",))
    assert not plain.is_keyed
    plain.check_name("u1")


def test_a_client_cannot_pass_a_pseudonym_for_an_id() -> None:
    assert OLD.of(OLD.of("u1")) != OLD.of("u1")


def test_table_and_column_rename_users_and_nothing_else() -> None:
    table = pa.table({"user_id": ["a", OLD.of("b"), None, "a"], "item_id": ["a", "b", "c", "d"]})
    named = BOTH.table(table)
    assert named["user_id"].to_pylist() == [NEW.of("a"), NEW.of("b"), None, NEW.of("a")]
    assert named["item_id"] == table["item_id"]
    assert BOTH.table(named) == named
    coded = pa.chunked_array([pa.array(["a", "b", "a"]).dictionary_encode()])
    assert NEW.column(coded).to_pylist() == [NEW.of("a"), NEW.of("b"), NEW.of("a")]
    assert NEW.column(pa.chunked_array([], pa.string())).to_pylist() == []


def test_names_of_a_key_that_is_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"key version 1, and AVREC_USER_KEYS has \[2\]; add it"):
        NEW.stored(OLD.of("u1"))
    with pytest.raises(ConfigError, match="key version 1, and AVREC_USER_KEYS is not set"):
        Pseudonyms().stored(OLD.of("u1"))


def test_check_name_keeps_ids_out() -> None:
    BOTH.check_name(BOTH.of("u1"))
    for name in ("u1", OLD.of("u1"), "v3:" + "0" * 32, "v2:xyz"):
        with pytest.raises(FeedbackError, match="expected a pseudonym"):
            BOTH.check_name(name)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1", "malformed"),
        ("x:00", "malformed"),
        ("1:zz", "key 1 is not hexadecimal"),
        ("1:0011", "key 1 has 2 bytes, expected at least 16"),
        (f"1:{'00' * 16},1:{'11' * 16}", "each once"),
        (f"0:{'00' * 16}", "got key version 0"),
    ],
)
def test_keys_that_are_wrong_are_refused(text: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVREC_USER_KEYS", text)
    with pytest.raises(ConfigError, match=problem):
        Pseudonyms.from_environment()


def test_keys_come_from_the_environment_or_a_private_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Pseudonyms.from_environment().is_keyed
    path = tmp_path / "keys"
    path.write_text(f"2:{KEY_2.hex()}\n1:{KEY_1.hex()}\n")
    path.chmod(0o640)
    monkeypatch.setenv("AVREC_USER_KEYS_FILE", str(path))
    with pytest.raises(ConfigError, match=r"may be read by others; run: chmod 600"):
        Pseudonyms.from_environment()
    path.chmod(0o600)
    assert Pseudonyms.from_environment().versions == (2, 1)
    assert Pseudonyms.from_environment().of("u1") == NEW.of("u1")
    monkeypatch.setenv("AVREC_USER_KEYS", f"1:{KEY_1.hex()}")
    with pytest.raises(ConfigError, match="both set"):
        Pseudonyms.from_environment()
    monkeypatch.delenv("AVREC_USER_KEYS_FILE")
    assert Pseudonyms.from_environment().of("u1") == OLD.of("u1")
    assert KEY_1.hex() not in repr(Pseudonyms.from_environment().__dict__)
