"""What is known by name: one thing a name, from what ships, what is registered and what other packages offer."""

import sys
from importlib.metadata import EntryPoint

import pytest

from isotrace.attribution.circuits.search import CIRCUITS
from isotrace.base import registry
from isotrace.base.errors import DictionaryError, InputError
from isotrace.base.registry import Registry, load_plugin
from isotrace.base.result import RESULTS
from isotrace.dictionaries.interop import FORMATS
from isotrace.dictionaries.registry import ARCHITECTURES, RULES
from isotrace.discovery.methods import METHODS
from isotrace.domains.domain import DOMAINS
from isotrace.engine.backends.backend import BACKENDS
from isotrace.interventions import COMPONENTS
from isotrace.steering import EDITS
from isotrace.steering.decoding import DECODERS
from isotrace.steering.directions import DIRECTIONS
from isotrace.studies import STUDIES
from isotrace.subjects.families import FAMILIES
from isotrace.subjects.targets import TARGETS
from isotrace.transfer.adapting.method import METHODS as ADAPTATIONS
from isotrace.transfer.curvature import MEASURES
from isotrace.transfer.predictors import PREDICTORS

EVERY = {
    r.group: r
    for r in (
        RESULTS,
        DOMAINS,
        DECODERS,
        EDITS,
        DIRECTIONS,
        FAMILIES,
        METHODS,
        ARCHITECTURES,
        RULES,
        TARGETS,
        COMPONENTS,
        FORMATS,
        CIRCUITS,
        MEASURES,
        PREDICTORS,
        STUDIES,
        ADAPTATIONS,
        BACKENDS,
    )
}


@pytest.fixture
def words(monkeypatch):
    """A registry of its own, forgotten afterwards."""
    monkeypatch.setattr(registry, "_ALL", [])
    monkeypatch.setattr(registry, "PLACES", ())
    found = Registry("word", "isotrace.words", {"number": "numbers:Number", "fraction": "fractions"}, DictionaryError)
    found._home = "words"  # as if it stood in a module of its own
    return found


def offer(monkeypatch, **points):
    found = [EntryPoint(name, value, "isotrace.words") for name, value in points.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: found)


@pytest.mark.parametrize("group", EVERY)
def test_all_that_ships_is_found_under_its_name(group):
    for name in EVERY[group]:
        assert EVERY[group][name] is not None
        assert EVERY[group].origin(name).startswith("isotrace.")


def test_named_things_know_their_name():
    assert [METHODS[name].name for name in METHODS] == [*METHODS]
    assert [FAMILIES[name].model_type for name in FAMILIES] == [*FAMILIES]
    assert [STUDIES[name].name for name in STUDIES] == [*STUDIES]
    assert [RESULTS[name].kind for name in RESULTS] == [*RESULTS]
    assert [DOMAINS[name].name for name in DOMAINS] == [*DOMAINS]
    assert [COMPONENTS[name].name for name in COMPONENTS] == [*COMPONENTS]


def test_every_method_on_disk_is_in_the_registry():
    from pathlib import Path

    import isotrace.discovery as room

    files = [file for part in ("methods", "edges") for file in (Path(room.__file__).parent / part).glob("*.py")]
    decorated = sum(file.read_text(encoding="utf-8").count("\n@method(") for file in files)
    assert decorated == len(METHODS)


def test_what_ships_is_imported_when_asked_for(words):
    sys.modules.pop("this", None)
    lazy = Registry("word", "isotrace.words", {"zen": "this:s"})
    assert list(lazy) == ["zen"]
    assert "zen" in lazy
    assert "this" not in sys.modules
    assert lazy.origin("zen") == "this"


def test_a_module_may_be_the_thing_or_hold_it(words):
    import fractions
    import numbers

    assert words["number"] is numbers.Number
    assert words["fraction"] is fractions
    assert dict(words.items()) == {"number": numbers.Number, "fraction": fractions}


def test_what_is_registered_comes_last_and_knows_its_origin(words):
    @words.named("mine")
    class Mine: ...

    assert words["mine"] is Mine
    assert list(words) == ["number", "fraction", "mine"]
    assert words.origin("mine") == __name__
    words.remove("mine")
    assert "mine" not in words


def test_a_second_thing_of_one_name_is_refused(words):
    first = words.register("mine", object())
    assert words.register("mine", first) is first
    with pytest.raises(InputError, match=rf"two things are the word 'mine': of {__name__} and of {__name__}"):
        words.register("mine", object())
    assert words["mine"] is first
    with pytest.raises(InputError, match=f"the word 'number': of numbers and of {__name__}"):
        words.register("number", object())


def test_an_unknown_name_lists_the_known(words):
    with pytest.raises(DictionaryError, match=r"no word 'noun': give one of number, fraction\.$"):
        words["noun"]


def test_packages_offer_by_entry_points(words, monkeypatch):
    offer(monkeypatch, complex="numbers:Complex")
    import numbers

    assert list(words) == ["number", "fraction", "complex"]
    assert words["complex"] is numbers.Complex
    assert words.origin("complex") == "numbers"


def test_an_entry_point_may_not_take_a_name(words, monkeypatch):
    offer(monkeypatch, number="decimal:Decimal")
    with pytest.raises(InputError, match="'number': of numbers:Number and of decimal:Decimal"):
        words["fraction"]


def test_a_broken_entry_point_says_which(words, monkeypatch):
    offer(monkeypatch, broken="numbers:Nothing", lost="no_such_module_at_all")
    with pytest.raises(DictionaryError, match=r"word 'broken' of numbers cannot be loaded: .*Nothing"):
        words["broken"]
    with pytest.raises(DictionaryError, match=r"word 'lost' .*no_such_module_at_all"):
        words["lost"]
    with pytest.raises(DictionaryError, match="word 'broken'"):
        registry.report()


def test_report_knows_every_registry():
    found = registry.report()
    assert {group: [*names] for group, names in found.items()} == {g: [*r] for g, r in EVERY.items()}
    assert {origin.partition(".")[0] for names in found.values() for origin in names.values()} == {"isotrace"}


def test_report_says_what_comes_from_where(words, monkeypatch):
    offer(monkeypatch)
    words.register("mine", object())
    assert registry.report() == {"isotrace.words": {"number": "numbers", "fraction": "fractions", "mine": __name__}}


def test_a_plugin_is_a_module_or_a_file(words, monkeypatch, tmp_path):
    file = tmp_path / "words_of_mine.py"
    file.write_text("from isotrace.base import registry\nregistry._ALL[0].register('filed', 1)\n", encoding="utf-8")
    load_plugin(str(file))
    assert words["filed"] == 1
    assert words.origin("filed") == "words_of_mine"
    load_plugin(str(file))  # the second time it is there
    sys.modules.pop("words_of_mine")
    load_plugin("math")


@pytest.mark.parametrize("name", ["no_such_module_at_all", "nowhere/at_all.py"])
def test_a_plugin_that_is_not_there_is_refused(name):
    with pytest.raises(InputError, match=rf"plug-in {name} cannot be imported .*give a module or a \.py file"):
        load_plugin(name)


def test_a_plugin_file_may_not_hide_a_module(tmp_path):
    (tmp_path / "json.py").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="another module is called json: rename"):
        load_plugin(str(tmp_path / "json.py"))
