"""Outputs, configurations, inputs and exceptions as they are stored."""

import dataclasses
import datetime as dt
import enum
import hashlib
import json
import math
import tracemalloc
import uuid
from collections import OrderedDict, deque, namedtuple
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from django.utils.functional import lazystr
from hypothesis import given, strategies as st

from autorun.exceptions import ConfigurationError, InputError, OutputError
from autorun.planning.fingerprints import fingerprint_of
from autorun.state import exception_text
from autorun.state.encoding import (
    MAX_DEPTH,
    digest,
    encode_configuration,
    encode_outputs,
)
from autorun.state.exception_text import clean_text, describe_exception


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Word(str):
    __slots__ = ()


@dataclasses.dataclass
class Peak:
    at: Path
    height: float


Pair = namedtuple("Pair", "left right")


def outputs(value, max_bytes=None):
    return json.loads(encode_outputs(value, max_bytes=max_bytes))


def refusal(value, max_bytes=None):
    with pytest.raises(OutputError) as caught:
        encode_outputs(value, max_bytes=max_bytes)
    return str(caught.value)


def nested(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


class TestOutputs:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (None, None),
            (True, True),
            (7, 7),
            (10**30, 10**30),
            (0.5, 0.5),
            ("é🚀", "é🚀"),
            (Word("w"), "w"),
            (lazystr("later"), "later"),
            ((1, [2]), [1, [2]]),
            (Pair(1, 2), [1, 2]),
            (range(3), [0, 1, 2]),
            (deque([1, 2]), [1, 2]),
            ({"b", "a"}, ["a", "b"]),
            (frozenset([3, 1]), [1, 3]),
            ({1: "x"}.values(), ["x"]),
            (OrderedDict(a=1), {"a": 1}),
            (MappingProxyType({"a": 1}), {"a": 1}),
            (dt.date(2024, 2, 29), "2024-02-29"),
            (dt.datetime(2024, 2, 29, 1, 2, 3, 4, dt.UTC), "2024-02-29T01:02:03.000004+00:00"),
            (dt.time(1, 2), "01:02:00"),
            (dt.timedelta(days=1, seconds=2), "P1DT00H00M02S"),
            (Decimal("1.10"), "1.10"),
            (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
            (Path("/a/b"), "/a/b"),
            (Colour.RED, "red"),
            (Level.HIGH, 3),
            (Peak(Path("x"), 1.5), {"at": "x", "height": 1.5}),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_values_become_json(self, value, expected):
        assert outputs(value) == expected
        assert outputs({"a": [value]}) == {"a": [expected]}

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (np.int64(3), 3),
            (np.float32(0.5), 0.5),
            (np.float64(0.5), 0.5),
            (np.longdouble(0.5), 0.5),
            (np.bool_(True), True),
            (np.str_("x"), "x"),
            (np.array(4), 4),
            (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
            (np.array([None, Path("a")], dtype=object), [None, "a"]),
            (np.ma.masked_array([1, 2], mask=[False, True]), [1, None]),
            (np.datetime64("2024-01-01"), "2024-01-01T00:00:00"),
            (np.array(["2024-01-01"], dtype="datetime64[ns]"), ["2024-01-01T00:00:00"]),
            (np.timedelta64(90, "s"), "P0DT00H01M30S"),
        ],
        ids=repr,
    )
    def test_numpy_values_become_json(self, value, expected):
        assert outputs(value) == expected

    def test_sets_of_mixed_types_have_one_order(self):
        assert encode_outputs({1, "a", None}, max_bytes=None) == '["a",1,null]'

    @pytest.mark.parametrize(
        ("key", "name"),
        [
            (1, "1"),
            (1.5, "1.5"),
            (True, "true"),
            (None, "null"),
            (uuid.UUID(int=1), str(uuid.UUID(int=1))),
            (dt.date(2024, 1, 1), "2024-01-01"),
            (Colour.RED, "red"),
            (np.int64(3), "3"),
        ],
    )
    def test_keys_become_strings(self, key, name):
        assert outputs({key: 0}) == {name: 0}

    def test_keys_that_collide_are_refused(self):
        assert refusal({"a": {1: 0, "1": 0}}).startswith('outputs["a"]["1"] occurs twice')

    def test_keys_that_are_no_names_are_refused(self):
        assert "outputs[(1, 2)] is a key of type tuple" in refusal({(1, 2): 0})

    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, np.float32("nan")])
    def test_numbers_that_json_lacks_are_refused(self, number):
        message = refusal({"a": [0, {"b": number}]})

        assert message.startswith(f'outputs["a"][1]["b"] is {float(number)}, which JSON cannot')
        assert "Replace it by None" in message

    def test_nan_in_an_array_is_found(self):
        assert refusal({"a": np.array([0.0, np.nan])}).startswith('outputs["a"][1] is nan')

    @pytest.mark.parametrize("number", ["NaN", "sNaN", "Infinity", "-Infinity"])
    def test_decimals_that_are_no_numbers_are_refused(self, number):
        assert refusal({"a": Decimal(number)}).startswith(f'outputs["a"] is {number}, which JSON')

    def test_a_date_that_is_none_is_refused(self):
        class NaT(dt.datetime):
            def isoformat(self):
                return "NaT"

        assert refusal([NaT(1, 1, 1)]).startswith("outputs[0] is NaT, which JSON cannot hold.")

    def test_nat_is_refused(self):
        assert "NaT" in refusal(np.array(["NaT"], dtype="datetime64[ns]"))

    def test_integers_that_python_cannot_read_back_are_refused(self):
        assert outputs(10**4299) == 10**4299
        assert "more than 4300 digits" in refusal({"a": 10**4300})

    @pytest.mark.parametrize(
        ("text", "named"), [("a\0b", "a NUL"), ("a\ud800b", "the lone surrogate U+D800")]
    )
    def test_text_that_databases_refuse_is_refused(self, text, named):
        assert refusal({"a": text}).startswith(f'outputs["a"] holds {named}')
        assert named in refusal({text: 1})
        assert named in refusal({"a": Path(text)})
        refusal({"a": text}).encode()

    @pytest.mark.parametrize(
        ("value", "kind"),
        [
            (b"x", "bytes"),
            (bytearray(b"x"), "bytearray"),
            (object(), "object"),
            (1j, "complex"),
            ((number for number in [1]), "generator"),
            (print, "builtin_function_or_method"),
            (Peak, "type"),
            (np.complex64(1j), "complex"),
            (np.random.default_rng(), "numpy.random"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_what_json_cannot_hold_is_refused_by_key_and_type(self, value, kind):
        message = refusal({"a": [value]})

        assert message.startswith('outputs["a"][0] is')
        assert kind in message

    def test_circles_are_refused(self):
        circle = {"a": []}
        circle["a"].append(circle)

        assert refusal(circle) == 'outputs["a"][0] refers back to what holds it. Break the circle.'

    @pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 200_000])
    def test_deep_nesting_is_refused(self, levels):
        assert outputs(nested(MAX_DEPTH)) == nested(MAX_DEPTH)
        assert f"nested more than {MAX_DEPTH} levels deep" in refusal(nested(levels))

    def test_one_value_in_two_places_is_no_circle(self):
        shared = [1]

        assert outputs([shared, shared]) == [[1], [1]]

    def test_a_container_that_raises_is_refused(self):
        class Broken(dict):
            def items(self):
                raise RuntimeError("no")

        with pytest.raises(OutputError, match="outputs could not be read: RuntimeError") as caught:
            encode_outputs(Broken(a=1), max_bytes=None)
        assert isinstance(caught.value.__cause__, RuntimeError)

    def test_long_keys_are_shortened_in_messages(self):
        assert len(refusal({"k" * 10_000: object()})) < 300

    def test_size_limit_names_the_largest_key_and_the_setting(self):
        message = refusal({"small": 1, "image": "é" * 100}, max_bytes=150)

        assert message.startswith(
            'outputs take 222 bytes of JSON (202 of them in outputs["image"])'
        )
        assert "limit of 150 bytes" in message
        assert 'AUTORUN["MAX_OUTPUT_BYTES"]' in message

    def test_size_limit_holds_to_the_byte(self):
        assert encode_outputs("é", max_bytes=4) == '"é"'
        assert "outputs take 4 bytes" in refusal("é", max_bytes=3)

    @given(st.recursive(st.integers(0, 9), lambda each: st.lists(each, max_size=4)))
    def test_counting_elements_never_refuses_what_fits(self, value):
        size = len(encode_outputs(value, max_bytes=None))

        assert outputs(value, max_bytes=size) == value

    def test_a_huge_array_is_refused_before_it_is_expanded(self):
        scan = np.zeros((500, 500, 500), dtype=np.uint8)

        tracemalloc.start()
        try:
            message = refusal({"mask": scan}, max_bytes=1_000_000)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        assert most < 1_000_000  # a list of its elements takes a thousand times as much
        assert message.startswith('outputs["mask"] is a numpy.ndarray of 125,000,000 elements')
        assert 'AUTORUN["MAX_OUTPUT_BYTES"]' in message

    def test_a_value_shared_a_million_times_is_refused(self):
        value = [1]
        for _ in range(25):
            value = [value, value]

        assert "limit of 1,000 bytes" in refusal(value, max_bytes=1000)

    @given(
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
            lambda each: st.lists(each) | st.dictionaries(st.text("abé"), each),
            max_leaves=20,
        )
    )
    def test_json_comes_back_as_it_was(self, value):
        assert outputs(value) == value


class TestConfiguration:
    def test_equal_numbers_and_any_order_are_one(self):
        digests = {
            digest("Measure", "1.0", configuration, "library.document")
            for configuration in ({"a": 100, "b": [1.5]}, {"b": (1.5,), "a": 100.0})
        }

        assert len(digests) == 1

    def test_paths_and_enumerations_are_encoded(self):
        assert encode_configuration({"p": Path("a"), "c": Colour.RED}) == {"p": "a", "c": "red"}

    @pytest.mark.parametrize("value", [object(), math.nan, "\0", "\udcff", b"x", 2**53, -(2**53)])
    def test_what_cannot_be_canonical_is_refused_by_key(self, value):
        with pytest.raises(ConfigurationError, match=r'^configuration\["a"\]\[2\] '):
            encode_configuration({"a": [0, 1, value]})

    def test_a_large_integer_says_what_to_do(self):
        with pytest.raises(ConfigurationError, match="Make it a string"):
            encode_configuration({"seed": 2**60})

    def test_a_configuration_is_a_dictionary(self):
        with pytest.raises(ConfigurationError, match="must be a dictionary, not list"):
            encode_configuration([1])

    def test_digest_is_sha256_of_the_four_names(self):
        expected = (
            b'{"configuration":{"better":100},"model_label":"scans.Scan","title":"T","version":"1"}'
        )

        assert (
            digest("T", "1", {"better": 100.0}, "scans.Scan")
            == hashlib.sha256(expected).hexdigest()
        )

    def test_digest_tells_all_four_apart(self):
        digests = {
            digest("T", "1", {}, "a.B"),
            digest("U", "1", {}, "a.B"),
            digest("T", "2", {}, "a.B"),
            digest("T", "1", {"a": 1}, "a.B"),
            digest("T", "1", {}, "a.C"),
        }

        assert len(digests) == 5

    def test_digest_names_the_key_of_what_it_refuses(self):
        with pytest.raises(ConfigurationError, match=r'^configuration\["a"\] is of type object'):
            digest("T", "1", {"a": object()}, "a.B")


class TestFingerprint:
    def test_is_32_lower_case_hexadecimal_digits(self):
        assert fingerprint_of("/a/b.nii") == hashlib.md5(b'"/a/b.nii"').hexdigest()

    def test_equal_representations_have_one(self):
        assert fingerprint_of({"a": 1, "b": Path("x")}) == fingerprint_of({"b": "x", "a": 1.0})

    @pytest.mark.parametrize(
        ("one", "other"),
        [(None, ""), (2**60, str(2**60)), (2**60, 2**60 + 1), (2**60, -(2**60)), ([1, 2], [12])],
    )
    def test_different_representations_have_two(self, one, other):
        assert fingerprint_of(one) != fingerprint_of(other)

    def test_what_json_cannot_hold_is_an_input_error(self):
        with pytest.raises(InputError, match=r'^representation\["a"\] is nan'):
            fingerprint_of({"a": math.nan})


class TestCleanText:
    def test_short_text_stays(self):
        assert clean_text("é🚀\n", max_bytes=7) == "é🚀\n"

    def test_nul_and_surrogates_go(self):
        assert clean_text("a\0b\ud800c\udfffd", max_bytes=100) == "abcd"

    def test_head_and_tail_stay_and_the_gap_is_counted(self):
        text = "head" + "x" * 5000 + "tail"

        cut = clean_text(text, max_bytes=1000)

        head, gap, tail = cut.splitlines()
        assert head.startswith("head")
        assert tail.endswith("tail")
        left_out = 5008 - len(head) - len(tail)
        assert gap == f"... {left_out:,} bytes left out ..."

    @given(st.text(st.characters()), st.integers(1, 50), st.integers(0, 400))
    def test_what_comes_out_fits_and_can_be_stored(self, text, times, max_bytes):
        cut = clean_text(text * times, max_bytes=max_bytes)

        assert len(cut.encode()) <= max_bytes
        assert "\0" not in cut

    @pytest.mark.parametrize("text", ["x" * 50_000_000, "é\0\ud800" * 17_000_000])
    def test_fifty_megabytes_are_cut_without_being_cleaned(self, text, monkeypatch):
        cleaned = []
        monkeypatch.setattr(
            exception_text,
            "_storable_bytes",
            lambda part, clean=exception_text._storable_bytes: (
                cleaned.append(len(part)) or clean(part)
            ),
        )

        cut = clean_text(text, max_bytes=10_000)

        assert sum(cleaned) <= 20_000
        assert len(cut.encode()) <= 10_000


class Unspeakable(Exception):
    def __str__(self):
        raise SystemExit("no")

    __repr__ = __str__


def raised(error):
    try:
        raise error
    except type(error) as caught:
        return caught


class TestDescribeException:
    def test_tells_class_message_and_traceback(self):
        text = describe_exception(raised(OutputError("bad é")), max_bytes=10_000)

        assert text.exception_class == "autorun.exceptions.OutputError"
        assert text.message == "bad é"
        assert text.traceback.startswith("Traceback (most recent call last):")
        assert text.traceback.endswith("autorun.exceptions.OutputError: bad é\n")

    def test_builtin_classes_have_no_module(self):
        assert describe_exception(ValueError(), max_bytes=100).exception_class == "ValueError"

    def test_an_exception_without_text_is_described(self):
        text = describe_exception(raised(Unspeakable()), max_bytes=10_000)

        assert text.exception_class.endswith("Unspeakable")
        assert "SystemExit was raised" in text.message
        assert "in raised" in text.traceback

    def test_nul_and_surrogates_go(self):
        text = describe_exception(raised(ValueError("a\0b\ud800")), max_bytes=10_000)

        assert text.message == "ab"
        assert text.traceback.endswith("ValueError: ab\n")

    def test_fifty_megabytes_are_cut(self):
        text = describe_exception(raised(ValueError("x" * 50_000_000)), max_bytes=10_000)

        assert len(text.message) <= 10_000
        assert len(text.traceback) <= 10_000
        assert text.traceback.startswith("Traceback")

    def test_long_class_names_are_cut(self):
        kind = type("é" * 300, (Exception,), {})

        assert len(describe_exception(kind(), max_bytes=100).exception_class) == 255

    def test_causes_are_told(self):
        error = raised(ValueError("second"))
        error.__cause__ = raised(KeyError("first"))

        text = describe_exception(error, max_bytes=10_000).traceback

        assert text.index("KeyError: 'first'") < text.index("ValueError: second")

    def test_groups_are_told(self):
        group = ExceptionGroup("both", [raised(KeyError("one")), raised(ValueError("two"))])

        text = describe_exception(raised(group), max_bytes=10_000)

        assert text.message == "both (2 sub-exceptions)"
        assert "KeyError: 'one'" in text.traceback
        assert "ValueError: two" in text.traceback

    def test_groups_within_groups_without_end_are_described(self):
        group = ValueError("innermost")
        for _ in range(5000):
            group = ExceptionGroup("g", [group])

        text = describe_exception(group, max_bytes=1000)

        assert text.exception_class == "ExceptionGroup"
        assert text.traceback

    def test_endless_recursion_keeps_both_ends(self):
        def down():
            return up()

        def up():
            return down()

        with pytest.raises(RecursionError) as caught:
            down()
        text = describe_exception(caught.value, max_bytes=5000)

        assert len(text.traceback) <= 5000
        assert text.traceback.startswith("Traceback")
        assert "bytes left out" in text.traceback
        assert "RecursionError: maximum recursion depth exceeded" in text.traceback

    def test_notes_are_told(self):
        error = ValueError("x")
        error.add_note("seen in scan 7")

        assert "seen in scan 7" in describe_exception(error, max_bytes=1000).traceback
