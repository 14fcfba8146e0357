"""Papers as entries that run: what was claimed, the study that measures it again, what came out.

An entry is a file with one `Paper` named ``paper`` at its top level.  Entries are found, not listed: those in
this folder, and those of other packages that name a module under the entry point group ``allometry.papers``.
No entry imports torch at its top, so finding all of them is instant.

A study that is added to a paper later may stand in a file of its own, with ``extends = "slug"`` and
``studies = (...)`` at its top level: a study's file counts whole, and beside the others it would make their
evidence stale.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import ModuleType

from allometry.study.study import Study

__all__ = ["Paper", "entries", "entry", "study"]

GROUP = "allometry.papers"


@dataclass(frozen=True)
class Paper:
    """A paper's entry.

    Attributes
    ----------
    slug : str
        Lower-case words joined by hyphens; the file's name with hyphens.
    title, authors : str
        As printed; authors separated by commas.
    year : int
    arxiv : str
        Identifier, such as ``"2309.14322"``; empty where there is none.
    summary : str
        What it says to someone who plans a run, in words of our own.
    studies : sequence of Study
    parts : sequence of str
        What it brings to use on one's own model: dotted names, such as ``"allometry.measure.Monitor"``.
    venue, doi : str
    """

    slug: str
    title: str
    authors: str
    year: int
    summary: str
    studies: Sequence[Study] = ()
    parts: Sequence[str] = ()
    arxiv: str = ""
    venue: str = ""
    doi: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.slug):
            raise ValueError(f"a slug is lower-case words joined by hyphens, not {self.slug!r}")
        if not (self.arxiv or self.doi):
            raise ValueError(f"the paper {self.slug} needs an arXiv identifier or a DOI")
        if self.arxiv and not re.fullmatch(r"\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7}", self.arxiv):
            raise ValueError(f"{self.arxiv!r} is not an arXiv identifier")
        for one in self.studies:
            if one.name != self.slug and not one.name.startswith(f"{self.slug}/"):
                raise ValueError(f"study {one.name!r} of {self.slug} must be named so, or '{self.slug}/PART'")

    @property
    def url(self) -> str:
        """Where to read it."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else f"https://doi.org/{self.doi}"

    @cached_property
    def citation(self) -> str:
        """Authors, year, title, identifier in one line."""
        where = f"arXiv:{self.arxiv}" if self.arxiv else f"doi:{self.doi}"
        return f"{self.authors}. {self.title}. {self.year}. {where}"


def entries() -> list[Paper]:
    """All entries, by slug; an entry of another package that cannot be imported is left out with a warning.

    >>> [paper.slug for paper in entries()] == sorted(paper.slug for paper in entries())
    True
    """
    found: dict[str, Paper] = {}
    further: list[tuple[str, str, Sequence[Study]]] = []
    for module in _modules():
        if isinstance(slug := getattr(module, "extends", None), str):
            further.append((module.__name__, slug, module.studies))
        paper = getattr(module, "paper", None)
        if isinstance(paper, Paper):
            if paper.slug in found:
                raise ValueError(
                    f"two entries are called {paper.slug!r}; rename the one in {module.__name__}"
                )
            found[paper.slug] = paper
    for name, slug, studies in further:
        if slug not in found:
            raise ValueError(f"{name} extends {slug!r}, and there is no such entry")
        found[slug] = replace(found[slug], studies=(*found[slug].studies, *studies))
    return [found[slug] for slug in sorted(found)]


def _modules() -> Iterator[ModuleType]:
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        yield importlib.import_module(f"{__name__}.{info.name}")
    for point in metadata.entry_points(group=GROUP):
        try:
            yield importlib.import_module(point.value.partition(":")[0])
        except Exception as error:
            import warnings

            warnings.warn(f"the entry {point.name!r} of another package was left out: {error}", stacklevel=3)


def entry(slug: str) -> Paper:
    """The entry of that slug.

    Raises
    ------
    ValueError
        There is none; the nearest names are told.
    """
    known = {paper.slug: paper for paper in entries()}
    if slug not in known:
        raise ValueError(f"no entry {slug!r}{_near(slug, known)}")
    return known[slug]


def study(name: str) -> Study:
    """The study of that name among all entries: a slug names an only study, ``slug/part`` one of several.

    Raises
    ------
    ValueError
        There is none, or the slug has several.
    """
    known = {one.name: one for paper in entries() for one in paper.studies}
    if name in known:
        return known[name]
    parts = [one for one in known if one.startswith(f"{name}/")]
    if parts:
        raise ValueError(f"{name} has the studies {', '.join(parts)}; name one")
    raise ValueError(f"no study {name!r}{_near(name, known)}")


def _near(name: str, known: object) -> str:
    import difflib

    names = list(known)  # type: ignore[call-overload]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are {', '.join(names)}" if names else ""
