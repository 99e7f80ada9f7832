"""Citations of the methods text: keys as in pandoc, their BibTeX, and text for readers.

The text cites with ``[@Avants2008]`` or ``[@Holm1979; @Wang2004]``. `pipelines/data/references.bib`
has the entries, one field on each line.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from urllib.parse import quote

from harmonizer import __version__

__all__ = ["SOFTWARE_KEY", "bibliography", "cited_keys", "readable"]

SOFTWARE_KEY = "BrainHarmonizer"
SOFTWARE_ENTRY = f"""@misc{{{SOFTWARE_KEY},
  author = {{{{The brain-harmonizer developers}}}},
  title = {{brain-harmonizer: a BIDS App that harmonizes multi-site brain MRI}},
  year = {{2026}},
  note = {{Version {__version__}}},
  url = {{https://github.com/brain-harmonizer/harmonizer}}
}}
"""
_CITATION = re.compile(r"\[(@\w+(?:; @\w+)*)\]")
_ENTRY = re.compile(r"^@\w+\{(\w+),\n.*?^\}\n", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^  (\w+) = \{(.*)\},?$", re.MULTILINE)
_ACCENTS = {r"{\'u}": "ú", r"{\'a}": "á"}


def cited_keys(text: str) -> tuple[str, ...]:
    """Return the keys that a text cites, sorted.

    >>> cited_keys("Bias [@Tustison2010] and tests [@Holm1979; @Benjamini1995].")
    ('Benjamini1995', 'Holm1979', 'Tustison2010')
    """
    return tuple(sorted({key.strip("@ ") for group in _CITATION.findall(text)
                         for key in group.split(";")}))


def bibliography(text: str) -> str:
    """Return the BibTeX entries that a text cites."""
    return "\n".join(_entries()[key] for key in cited_keys(text))


def readable(text: str) -> str:
    """Replace keys by authors and year, and add the list of references, as small Markdown."""
    facts = {key: _facts(entry) for key, entry in _entries().items()}
    body = _CITATION.sub(lambda match: "(" + "; ".join(
        f"{facts[key]['short']}, {facts[key]['year']}"
        for key in (word.strip("@ ") for word in match[1].split(";"))) + ")", text)
    lines = [f"* {_reference(facts[key])}" for key in cited_keys(text)]
    return f"{body}\n\n## References\n\n" + "\n".join(lines) + "\n"


@cache
def _entries() -> dict[str, str]:
    """Read the BibTeX entries: key -> text."""
    root = files(__name__.rpartition(".stages.")[0])  # installed as harmonizer.pipelines
    text = (root / "data" / "references.bib").read_text(encoding="utf-8")
    return {match[1]: match[0] for match in _ENTRY.finditer(text + SOFTWARE_ENTRY)}


def _facts(entry: str) -> dict[str, str]:
    """Return the fields of an entry, and the authors in short."""
    fields = dict(_FIELD.findall(entry))
    for name, value in fields.items():
        for code, letter in _ACCENTS.items():
            value = value.replace(code, letter)
        fields[name] = value.strip("{}").replace("--", "-")
    names = [name.partition(",")[0] for name in fields["author"].split(" and ")]
    fields["short"] = (names[0] if len(names) == 1 else
                       " and ".join(names) if len(names) == 2 and names[1] != "others" else
                       f"{names[0]} et al.")
    return fields


def _reference(facts: dict[str, str]) -> str:
    """Return one line of the list of references."""
    where = facts.get("journal") or facts.get("booktitle", "")
    volume = f" {facts['volume']}" if "volume" in facts else ""
    pages = f":{facts['pages']}" if "pages" in facts else ""
    link = (f"https://doi.org/{quote(facts['doi'], safe='/:')}" if "doi" in facts
            else facts.get("url", ""))
    parts = [f"{facts['short']} ({facts['year']})", facts["title"],
             facts.get("note", ""), f"{where}{volume}{pages}", link]
    return ". ".join(part for part in parts if part)
