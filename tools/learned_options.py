"""Print docs/learned-options.md: every setting of the learned methods, from their own classes.

Usage::

    python tools/learned_options.py > docs/learned-options.md
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

HEAD = """# Settings of the learned methods

Written by `tools/learned_options.py`. A setting is given as `--backend-option NAME=VALUE` and saved
in the model; `--preset tiny|small|paper` sets many at once. The defaults are those of `small`.
"""


def page() -> str:
    """Return the whole page as text."""
    from harmonizer.methods import registry

    parts = [HEAD]
    for name in registry.BUILT_IN:
        backend = registry.get(name)
        if not backend.capabilities.trained:
            continue
        rows = [f"| `{name}` | `{field.name}` | `{field.default}` |"
                for field in dataclasses.fields(backend.Config)]
        parts.append(f"## {name}\n\n{backend.reference}.\n\n```\n"
                     f"{inspect.cleandoc(backend.Config.__doc__ or '').strip()}\n```\n\n"
                     "| method | setting | default |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
