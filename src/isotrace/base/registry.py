"""What is known by name: domains, families, methods, architectures, … and where each of them comes from.

A registry names what ships with isotrace, imported when it is asked for; takes what is registered by `register` or
the decorator `named`; and finds what installed packages offer by entry points of its group (`isotrace.families`, …),
whose value is the object or a module that registers it. A name stands for one thing.
"""

import sys
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Generic, TypeVar

from isotrace.base.errors import InputError, IsotraceError

T = TypeVar("T")
U = TypeVar("U")


class Registry(Generic[T]):
    """name → T, in the order of shipping, then by entry point, then as registered.

    noun: what one of them is called in messages. shipped: name → `module:attribute`, or a module that registers the
    name or itself is the thing. error: raised for a name that is not known; advice: what else can be done then.
    """

    def __init__(
        self, noun: str, group: str, shipped: Mapping[str, str] | None = None,
        error: type[IsotraceError] = InputError, advice: str = "",
    ) -> None:  # fmt: skip
        self.noun, self.group, self.error, self.advice = noun, group, error, advice
        self._shipped = {name: EntryPoint(name, value, group) for name, value in (shipped or {}).items()}
        self._items: dict[str, T] = {}
        self._origins: dict[str, str] = {}
        self._home = _importer({__name__})
        _ALL.append(self)

    def register(self, name: str, item: T) -> T:
        """Raises InputError where another thing has the name; the same object may come twice."""
        if self._items.get(name) is item:
            return item
        origin, offered = _importer({__name__, self._home}), self._offered.get(name)
        if name in self._items or (offered and _package(offered.module) != _package(origin)):
            raise self._twice(name, self.origin(name), origin)
        self._items[name], self._origins[name] = item, origin
        return item

    def named(self, name: str) -> Callable[[U], U]:
        """Decorator of a class or function that goes by `name`."""
        return lambda item: self.register(name, item)  # pyright: ignore[reportArgumentType, reportReturnType]

    def remove(self, name: str) -> None:
        """Forget what was registered, so that a notebook can register it anew."""
        del self._items[name], self._origins[name]

    def origin(self, name: str) -> str:
        """The module it comes from, with the distribution of an entry point."""
        if (offered := self._offered.get(name)) is None:
            return self._origins[name]
        return f"{offered.module} ({offered.dist.name} {offered.dist.version})" if offered.dist else offered.module

    def __getitem__(self, name: str) -> T:
        """Raises `error` for a name that is not known, and where an entry point cannot be loaded."""
        if name not in self._items and (offered := self._offered.get(name)):
            try:
                found = offered.load()
            except (ImportError, AttributeError) as error:
                raise self.error(
                    f"the {self.noun} {name!r} of {self.origin(name)} cannot be loaded: {error}."
                ) from error
            self._items.setdefault(name, found)  # unless importing it has registered it
        if name not in self._items:
            raise self.error(f"no {self.noun} {name!r}: give one of {', '.join(self)}{self.advice}.")
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._offered or name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter({**self._offered, **self._items})

    def __len__(self) -> int:
        return len({**self._offered, **self._items})

    def keys(self) -> list[str]:
        return [*self]

    def values(self) -> ValuesView[T]:
        return {name: self[name] for name in self}.values()

    def items(self) -> ItemsView[str, T]:
        return {name: self[name] for name in self}.items()

    @cached_property
    def _offered(self) -> dict[str, EntryPoint]:
        """What ships and what installed packages offer, not loaded yet."""
        found = dict(self._shipped)
        for point in entry_points(group=self.group):
            first = found.setdefault(point.name, point)
            if first.value != point.value:
                raise self._twice(point.name, first.value, point.value)
        return found

    def _twice(self, name: str, first: str, second: str) -> InputError:
        return InputError(f"two things are the {self.noun} {name!r}: of {first} and of {second}. Rename or remove one.")


_ALL: list[Registry[Any]] = []


PLACES = (
    "base.result", "domains.domain", "subjects.families", "subjects.targets", "interventions", "dictionaries.features",
    "dictionaries.registry", "dictionaries.interop", "attribution.circuits.search", "discovery.method", "steering",
    "steering.decoding", "steering.directions", "transfer.adapting.method", "transfer.curvature.measure",
    "transfer.predictors.predictor", "studies.study", "engine.backends.backend",
)  # fmt: skip
"""Where the registries of isotrace stand, and what registers in them when it is imported."""


def report() -> dict[str, dict[str, str]]:
    """Group → name → origin, of every registry. What does not ship is loaded: raises as that does."""
    for place in PLACES:
        import_module(f"isotrace.{place}")
    for registry in _ALL:
        for name in registry:
            if name not in registry._shipped:
                registry[name]
    return {registry.group: {name: registry.origin(name) for name in registry} for registry in _ALL}


def load_plugin(name: str) -> None:
    """Import a module, or a file that ends in .py, for what it registers. Raises InputError if it cannot be."""
    try:
        if not name.endswith(".py"):
            import_module(name)
            return
        spec = spec_from_file_location(Path(name).stem, Path(name).resolve())
        assert spec is not None
        assert spec.loader is not None  # a file that ends in .py has one
        if (present := sys.modules.get(spec.name)) is not None:
            if getattr(present, "__file__", None) != spec.origin:
                raise InputError(f"another module is called {spec.name}: rename the plug-in {name}.")
            return
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[spec.name] = module
    except (ImportError, OSError, SyntaxError) as error:
        raise InputError(f"the plug-in {name} cannot be imported ({error}): give a module or a .py file.") from error


def _package(module: str) -> str:
    return module.partition(".")[0]


def _importer(skipped: set[str]) -> str:
    """The module that called the functions of the modules `skipped`."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_name != "<module>" and frame.f_globals.get("__name__") in skipped:
        frame = frame.f_back
    return frame.f_globals.get("__name__", "__main__")
