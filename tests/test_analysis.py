"""Declaring analyses, finding them, and fitting arguments to their signatures."""

import asyncio
import datetime as dt
import enum
import importlib
import pickle
import subprocess
import sys
import typing
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NewType,
    Optional,
    Protocol,
    TypedDict,
    TypeVar,
    Union,
)

import pytest

from autorun import analysis as analyses
from autorun.analysis import Analysis, analysis, get, registered, temporarily_registered
from autorun.declare.arguments import Problem
from autorun.declare.conversion import Mismatch, convert
from autorun.exceptions import (
    AlreadyRegistered,
    AutorunError,
    ConfigurationError,
    ImproperAnalysis,
    NotRegistered,
)

if TYPE_CHECKING:
    from somewhere import Unknown


T = TypeVar("T")
Voxels = NewType("Voxels", int)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Readable(Protocol):
    def read(self) -> bytes: ...


class Options(TypedDict, total=False):
    size: int


@dataclass
class Box:
    size: int
    path: Path | None = None


@pytest.fixture(autouse=True)
def registry():
    """An empty one; what apps have registered is back after the test."""
    with temporarily_registered():
        analyses._registry.clear()
        yield


@pytest.fixture
def preprocess():
    @analysis("Scan Preprocessing", version="1.0")
    def preprocess(input_file: Path, *, harder: bool, better: int, stronger: str = "no") -> dict:
        return {"file": input_file, "better": better}

    return preprocess


def declared(function, title="Anything"):
    return Analysis(title, "1.0", function)


def problems(function, configuration, input_key="input"):
    return declared(function).check(configuration, input_key)


class TestDeclaration:
    def test_the_function_stays_what_it_was(self, preprocess):
        assert preprocess(Path("a"), harder=True, better=1) == {"file": Path("a"), "better": 1}
        assert preprocess.__name__ == "preprocess"

    def test_the_function_carries_its_analysis(self, preprocess):
        assert preprocess.analysis is get("Scan Preprocessing", "1.0")
        assert preprocess.analysis.function is preprocess
        assert str(preprocess.analysis) == "Scan Preprocessing v1.0"
        assert preprocess.analysis.location == f"{__name__}:preprocess.<locals>.preprocess"

    def test_signature_and_type_hints_are_resolved(self, preprocess):
        assert next(iter(preprocess.analysis.signature.parameters)) == "input_file"
        assert preprocess.analysis.arguments.type_hints["input_file"] is Path

    def test_one_function_may_be_two_versions(self):
        @analysis("A", version="2")
        @analysis("A", version="1")
        def body(): ...

        assert get("A", "1").function is get("A", "2").function
        assert body.analysis.version == "2"

    @pytest.mark.parametrize("version", [1, 1.0])
    def test_a_number_as_version_is_to_be_quoted(self, version):
        with pytest.raises(ImproperAnalysis, match=f"Quote it: '{version}'"):
            analysis("A", version=version)

    @pytest.mark.parametrize("name", ["", " ", " a", None, "x" * 300])
    def test_titles_and_versions_are_names(self, name):
        with pytest.raises(ImproperAnalysis, match="title must"):
            analysis(name, version="1")
        with pytest.raises(ImproperAnalysis, match="version must"):
            analysis("A", version=name)

    def test_without_a_title_and_a_version_it_says_how_to_write_it(self):
        written = r"Write @analysis\('Count Words', version='1\.0'\) above .*count_words\."
        with pytest.raises(ImproperAnalysis, match=written):

            @analysis
            def count_words(text): ...

    @pytest.mark.parametrize(
        "options",
        [((), {}), (("A",), {}), ((), {"version": "1"})],
        ids=["both", "version", "title"],
    )
    def test_what_is_missing_is_named(self, options):
        arguments, named = options
        what = "version" if arguments else "title"
        with pytest.raises(ImproperAnalysis, match=rf"{what} must not be .*Write @analysis\("):
            analysis(*arguments, **named)

    def test_only_functions_are_decorated(self):
        with pytest.raises(ImproperAnalysis, match="must decorate a function"):
            analysis("A", version="1")(Box)

    def test_two_functions_of_one_name_are_refused_with_both_places(self):
        @analysis("A", version="1")
        def one(): ...

        with pytest.raises(AlreadyRegistered) as caught:

            @analysis("A", version="1")
            def other(): ...

        assert "<locals>.one" in str(caught.value)
        assert "<locals>.other" in str(caught.value)
        assert get("A", "1").function is one

    def test_a_reloaded_module_replaces_its_own(self, tmp_path, monkeypatch):
        source = (
            "from autorun.analysis import analysis\n@analysis('R', version='1')\ndef body(): ...\n"
        )
        (tmp_path / "reloaded_analyses.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)

        module = importlib.import_module("reloaded_analyses")
        before = get("R", "1")
        importlib.reload(module)

        assert get("R", "1") is not before
        assert get("R", "1").function is module.body

    def test_is_importable_before_django_is_set_up(self):
        code = (
            "import autorun.analysis, autorun.state.encoding, sys;"
            "assert 'django.db' not in sys.modules"
        )

        completed = subprocess.run([sys.executable, "-c", code], check=False)

        assert completed.returncode == 0


class TestRegistry:
    def test_registered_lists_by_title_and_version(self, preprocess):
        analysis("A", version="1")(lambda: None)

        assert [str(each) for each in registered()][-2:] == ["A v1", "Scan Preprocessing v1.0"]

    def test_an_unknown_version_names_the_known_ones(self, preprocess):
        with pytest.raises(NotRegistered, match=r"Registered versions: '1\.0'\.") as caught:
            get("Scan Preprocessing", "2.0")
        assert isinstance(caught.value, LookupError)
        assert isinstance(caught.value, AutorunError)

    def test_an_unquoted_version_is_to_be_quoted(self, preprocess):
        with pytest.raises(NotRegistered, match="quote it"):
            get("Scan Preprocessing", 1.0)

    def test_a_misspelt_title_is_corrected(self, preprocess):
        with pytest.raises(NotRegistered, match="Did you mean 'Scan Preprocessing'"):
            get("Scan Preprocesing", "1.0")

    def test_an_unknown_title_names_those_there_are(self, preprocess):
        with pytest.raises(NotRegistered, match=r"Registered: .*'Scan Preprocessing'.*'analyses'"):
            get("Q", "1.0")

    def test_what_is_registered_for_a_test_is_gone_after_it(self, preprocess):
        with temporarily_registered(declared(print, "B"), preprocess):
            analysis("C", version="1")(lambda: None)
            assert get("B", "1.0").function is print

        for title in ("B", "C"):
            with pytest.raises(NotRegistered):
                get(title, "1.0")
        assert get("Scan Preprocessing", "1.0")

    def test_only_analyses_are_registered_for_a_test(self):
        with pytest.raises(ImproperAnalysis, match="Decorate it"), temporarily_registered(print):
            pass


class TestCall:
    def test_calls_the_function(self, preprocess):
        assert preprocess.analysis.call(input_file="a", harder=True, better=2)["better"] == 2

    def test_runs_an_async_function_to_its_end(self):
        @analysis("Async", version="1")
        async def body(n: int):
            await asyncio.sleep(0)
            return n + 1

        assert body.analysis(n=1) == 2
        assert asyncio.run(body(1)) == 2


class TestCheck:
    def test_what_fits_has_no_problems(self, preprocess):
        configuration = {"harder": True, "better": 100, "stronger": "faster"}

        assert preprocess.analysis.check(configuration, "input_file") == []

    def test_a_misspelt_argument_is_corrected(self, preprocess):
        configuration = {"harder": True, "better": 100, "stonger": "faster"}

        assert preprocess.analysis.check(configuration, "input_file") == [
            Problem(
                "Scan Preprocessing v1.0 has no argument 'stonger'.", "Did you mean 'stronger'?"
            )
        ]

    def test_an_unknown_argument_lists_those_there_are(self, preprocess):
        [problem] = preprocess.analysis.check({"harder": True, "better": 1, "qqq": 1}, "input_file")

        assert problem.hint.endswith("'input_file', 'harder', 'better', 'stronger'.")

    def test_missing_arguments_are_named(self, preprocess):
        messages = [each.message for each in preprocess.analysis.check({}, "input_file")]

        assert messages == [
            "Scan Preprocessing v1.0 requires the argument 'harder'.",
            "Scan Preprocessing v1.0 requires the argument 'better'.",
        ]

    def test_the_input_key_is_an_argument(self, preprocess):
        configuration = {"harder": True, "better": 1}

        [problem] = preprocess.analysis.check(configuration, "input_fil")

        assert problem.message.endswith("has no argument 'input_fil' to receive the input.")
        assert problem.hint == "Did you mean 'input_file'?"

    def test_an_input_key_like_no_argument_is_the_one_that_is_left(self, preprocess):
        [problem] = preprocess.analysis.check({"harder": True, "better": 1}, "scan")

        assert problem.hint == "Did you mean 'input_file'?"

    def test_which_argument_is_meant_is_not_guessed_among_several(self, preprocess):
        first, *missing = preprocess.analysis.check({"harder": True}, "scan")

        assert first.hint.endswith("'input_file', 'harder', 'better', 'stronger'.")
        assert len(missing) == 2

    def test_the_input_is_not_in_the_configuration(self, preprocess):
        configuration = {"harder": True, "better": 1, "input_file": "a"}

        [problem] = preprocess.analysis.check(configuration, "input_file")

        assert "is in the configuration as well" in problem.message

    def test_wrong_types_are_named(self, preprocess):
        configuration = {"harder": True, "better": "very"}

        [problem] = preprocess.analysis.check(configuration, "input_file")

        assert problem.message == (
            "Scan Preprocessing v1.0: argument 'better' must be int, not 'very' (str)."
        )
        assert "annotation in" in problem.hint

    def test_elements_of_wrong_type_are_named(self):
        def body(input, sizes: dict[str, list[int]]): ...

        [problem] = problems(body, {"sizes": {"a": [1, "2"]}})

        assert "argument 'sizes['a'][1]' must be int, not '2' (str)" in problem.message

    def test_a_configuration_is_a_mapping(self, preprocess):
        [problem] = preprocess.analysis.check([], "input_file")

        assert "is of type list" in problem.message

    def test_keys_are_strings(self):
        [problem] = problems(lambda scan, **rest: None, {1: 2}, "scan")

        assert problem.message == "Anything v1.0 has no argument 1."

    def test_positional_only_arguments_cannot_be_passed(self):
        def body(path, /, input): ...

        [problem] = problems(body, {})

        assert "'path' of Anything v1.0 is positional-only" in problem.message
        assert "Remove the '/'" in problem.hint

    def test_any_name_fits_variadic_arguments(self):
        def body(*args, **rest: int): ...

        assert problems(body, {"a": 1}) == []
        assert "'a' must be int" in problems(body, {"a": "x"})[0].message

    def test_a_default_fits_whatever_its_annotation(self):
        def body(input, size: int = None): ...  # noqa: RUF013

        assert problems(body, {"size": None}) == []

    def test_what_cannot_be_resolved_hides_nothing_else(self):
        def body(input: "Unknown", thing: "Unknown", size: "int"): ...

        [problem] = problems(body, {"thing": 1, "size": "x"})

        assert "'size' must be int" in problem.message


class TestBind:
    def test_values_are_converted(self, preprocess):
        configuration = {"harder": True, "better": 100.0}

        arguments = preprocess.analysis.arguments.bind(configuration, {"input_file": "/a"})

        assert arguments == {"harder": True, "better": 100, "input_file": Path("/a")}
        assert isinstance(arguments["better"], int)

    def test_an_input_of_wrong_type_is_named(self, preprocess):
        with pytest.raises(ConfigurationError) as caught:
            preprocess.analysis.arguments.bind({"harder": True, "better": 1}, {"input_file": 7})

        assert str(caught.value) == (
            "Scan Preprocessing v1.0: argument 'input_file' must be Path, not 7 (int)."
        )

    @pytest.mark.parametrize(
        ("configuration", "said"),
        [
            ({}, "requires the argument 'harder'"),
            ({"harder": True, "better": 1, "beter": 1}, "Did you mean 'better'"),
            ({"harder": True, "better": 1, "input_file": 1}, "configuration as well"),
        ],
    )
    def test_arguments_that_do_not_fit_are_refused(self, preprocess, configuration, said):
        with pytest.raises(ConfigurationError, match=said):
            preprocess.analysis.arguments.bind(configuration, {"input_file": "/a"})

    def test_a_function_cannot_change_the_configuration(self):
        def body(input, options, sizes: list[int]): ...

        configuration = {"options": {"a": [1]}, "sizes": [1]}

        arguments = declared(body).arguments.bind(configuration, {"input": 1})
        arguments["options"]["a"].append(2)
        arguments["sizes"].append(2)

        assert configuration == {"options": {"a": [1]}, "sizes": [1]}

    def test_calls_share_the_values_that_no_function_can_change(self):
        def body(input, folder: Path, sizes: list[int]): ...

        arguments, kept = declared(body).arguments, {}
        configuration = {"folder": "/a", "sizes": [1]}

        first = arguments.bind(configuration, {"input": 1}, kept=kept)
        second = arguments.bind(configuration, {"input": 2}, kept=kept)

        assert second == {"input": 2, "folder": Path("/a"), "sizes": [1]}
        assert second["folder"] is first["folder"]
        assert second["sizes"] is not first["sizes"]

    def test_a_long_value_is_shortened(self, preprocess):
        with pytest.raises(ConfigurationError) as caught:
            preprocess.analysis.arguments.bind(
                {"harder": True, "better": "x" * 10**6}, {"input_file": "/a"}
            )

        assert len(str(caught.value)) < 200


IDENTIFIER = uuid.UUID(int=2**100 + 7)

FITTING = [
    (True, bool, True),
    (1, int, 1),
    (100.0, int, 100),
    (1, float, 1.0),
    (1.5, float, 1.5),
    ("a", str, "a"),
    ("a", Path, Path("a")),
    (Path("a"), Path, Path("a")),
    ("a", PurePosixPath, PurePosixPath("a")),
    (None, None, None),
    (None, Optional[int], None),  # noqa: UP045
    (1, Union[int, str], 1),  # noqa: UP007
    ("a", int | str, "a"),
    ("a", Path | None, Path("a")),
    ("a", Path | str, "a"),
    (1.5, int | float, 1.5),
    ("a", Literal["a", "b"], "a"),
    ("red", Literal[Colour.RED], Colour.RED),
    ("red", Colour, Colour.RED),
    ("RED", Colour, Colour.RED),
    (Colour.RED, Colour, Colour.RED),
    (1, Level, Level.LOW),
    ([1, 2], list, [1, 2]),
    ([1, 2], list[int], [1, 2]),
    ((1, 2), typing.List[int], [1, 2]),  # noqa: UP006
    (["a"], list[Path], [Path("a")]),
    ([1, 2], tuple, (1, 2)),
    ([1, 2], tuple[int, ...], (1, 2)),
    ([1, "a"], tuple[int, Path], (1, Path("a"))),
    ([], tuple[()], ()),
    ([1, 1], set[int], {1}),
    ([1], frozenset, frozenset([1])),
    ([1], Sequence[float], [1.0]),
    ((1,), Sequence, (1,)),
    ("ab", Iterable, "ab"),
    ({"a": "b"}, dict[str, Path], {"a": Path("b")}),
    ({"1": 2}, dict[int, int], {1: 2}),
    ({"a": 1}, Mapping, {"a": 1}),
    ({"size": 1}, Options, {"size": 1}),
    ({"size": 1, "path": "a"}, Box, Box(1, Path("a"))),
    ("1.10", Decimal, Decimal("1.10")),
    (0.1, Decimal, Decimal("0.1")),
    (str(IDENTIFIER), uuid.UUID, IDENTIFIER),
    (IDENTIFIER, uuid.UUID, IDENTIFIER),
    ("2024-02-29", dt.date, dt.date(2024, 2, 29)),
    ("2024-02-29T01:00:00Z", dt.datetime, dt.datetime(2024, 2, 29, 1, tzinfo=dt.UTC)),
    ("01:02", dt.time, dt.time(1, 2)),
    ("P1D", dt.timedelta, dt.timedelta(days=1)),
    ("a", Annotated[Path, "where"], Path("a")),
    (1, Voxels, 1),
    (7, Any, 7),
    (7, object, 7),
    (7, T, 7),
    (7, "Unknown", 7),
    (7, Readable, 7),
    (len, Callable[[str], int], len),
    (Box(1), Box, Box(1)),
]

UNFITTING = [
    (1, bool),
    ("True", bool),
    (True, int),
    (1.5, int),
    (float("inf"), int),
    ("1", int),
    (True, float),
    ("1.5", float),
    (10**400, float),
    (1, str),
    (Path("a"), str),
    ("", Path),
    ("", PurePosixPath),
    (None, str),
    (1, Path),
    (1, None),
    ("a", int | None),
    (1, Literal[True]),
    ("c", Literal["a", "b"]),
    ("green", Colour),
    ([], Colour),
    ("ab", list),
    ("ab", Sequence[str]),
    ({"a": 1}, list),
    (1, list[int]),
    (["a"], list[int]),
    ([[1]], set),
    ([1], tuple[int, int]),
    ("ab", tuple),
    ([1], dict),
    ({"a": "b"}, dict[str, int]),
    ({"a": 1}, dict[int, int]),
    ({"size": "x"}, Box),
    ({"colour": 1}, Box),
    ("x", Decimal),
    ("x", uuid.UUID),
    ("2024-13-01", dt.date),
    (20240101, dt.date),
    ("x", dt.timedelta),
    ("x", Voxels),
    (1, Callable),
    (1, Box),
]


class TestConversion:
    @pytest.mark.parametrize(("value", "annotation", "expected"), FITTING, ids=repr)
    def test_what_fits_is_converted(self, value, annotation, expected):
        converted = convert(value, annotation)

        assert converted == expected
        assert type(converted) is type(expected)

    @pytest.mark.parametrize(("value", "annotation"), UNFITTING, ids=repr)
    def test_what_does_not_fit_is_refused(self, value, annotation):
        with pytest.raises(Mismatch, match="must be"):
            convert(value, annotation)

    @pytest.mark.parametrize(
        ("annotation", "said"),
        [
            (int | None, "int | None"),
            (Optional[Path], "Path | None"),  # noqa: UP045
            (list[int], "list[int]"),
            (Literal["a", "b"], "one of 'a', 'b'"),
            (Colour, "Colour (one of 'red', 'blue')"),
        ],
    )
    def test_messages_say_what_is_expected(self, annotation, said):
        with pytest.raises(Mismatch) as caught:
            convert(object, annotation)
        assert f"must be {said}, not" in str(caught.value)

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="type aliases came with Python 3.12")
    def test_type_aliases_are_followed(self):
        names = {}
        exec("type Size = int | None", names)

        assert convert(1, names["Size"]) == 1
        with pytest.raises(Mismatch):
            convert("x", names["Size"])


def module_level(n: int) -> int:
    return n


def test_a_decorated_function_can_be_pickled():
    analysis("P", version="1")(module_level)

    assert pickle.loads(pickle.dumps(module_level)) is module_level
