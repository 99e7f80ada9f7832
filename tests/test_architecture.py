"""Tests of the dependencies in docs/architecture.md, and of the rules of the code.

Nothing is imported or run: each file is parsed. Every rule is a function from a parsed file to its
violations, so the rules themselves are tested on small files that violate them.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_FUNCTION_LINES = 60  # of the body, without docstring

# Package or module -> what none of its files may import, at any place in the file.
FORBIDDEN_IMPORTS = {
    "harmonizer": ("pipelines", "nipype", "bids"),
    "harmonizer/errors.py": ("harmonizer", "numpy", "torch", "ants"),
    "harmonizer/files.py": ("harmonizer.volume", "harmonizer.cohort", "torch", "ants"),
    "harmonizer/volume.py": ("harmonizer.cohort", "torch", "ants"),
    "harmonizer/cohort.py": ("harmonizer.methods", "torch", "ants"),
    "harmonizer/contrast": ("harmonizer.methods", "harmonizer.deep", "harmonizer.segmentation",
                            "harmonizer.evaluation", "harmonizer.reports", "harmonizer.phantom",
                            "nibabel", "ants", "torch"),
    "harmonizer/deep/networks": ("harmonizer.methods", "harmonizer.deep.training",
                                 "harmonizer.deep.losses", "harmonizer.volume",
                                 "harmonizer.cohort", "nibabel", "ants"),
    "harmonizer/deep/diffusion": ("harmonizer.methods", "harmonizer.deep.training",
                                  "harmonizer.volume", "harmonizer.cohort", "nibabel", "ants"),
    "harmonizer/deep/losses": ("harmonizer.methods", "harmonizer.deep.training",
                               "harmonizer.volume", "harmonizer.cohort", "nibabel", "ants"),
    "harmonizer/deep/training": ("harmonizer.methods", "harmonizer.evaluation",
                                 "harmonizer.reports"),
    "harmonizer/deep/augmentation": ("harmonizer.methods", "harmonizer.deep.training",
                                     "harmonizer.deep.networks", "harmonizer.volume",
                                     "harmonizer.cohort"),
    "harmonizer/preprocessing": ("harmonizer.methods", "harmonizer.evaluation",
                                 "harmonizer.reports", "harmonizer.phantom", "torch"),
    "harmonizer/methods": ("harmonizer.evaluation", "harmonizer.reports", "harmonizer.phantom"),
    "harmonizer/methods/statistical": ("harmonizer.methods.learned", "torch"),
    "harmonizer/segmentation": ("harmonizer.methods", "harmonizer.deep.training",
                                "harmonizer.evaluation", "harmonizer.reports",
                                "harmonizer.phantom"),
    "harmonizer/evaluation": ("harmonizer.methods", "harmonizer.deep.training",
                              "harmonizer.reports", "harmonizer.phantom"),
    "harmonizer/reports": ("harmonizer.methods", "harmonizer.deep.training", "torch"),
    "harmonizer/phantom": ("harmonizer.methods", "harmonizer.deep.training",
                           "harmonizer.evaluation", "harmonizer.reports", "torch"),
    "pipelines": ("run",),
    "pipelines/settings": ("pipelines", "nipype", "bids", "torch", "ants"),
    "pipelines/dataset": ("nipype", "torch", "ants", "pipelines.app", "pipelines.cli",
                          "pipelines.stages", "pipelines.workflows", "pipelines.interfaces"),
    "pipelines/interfaces": ("pipelines.app", "pipelines.cli", "pipelines.stages",
                             "pipelines.workflows"),
    "pipelines/outputs": ("nipype", "pipelines.app", "pipelines.cli", "pipelines.stages",
                          "pipelines.workflows", "pipelines.interfaces"),
    "pipelines/workflows": ("pipelines.app", "pipelines.cli"),
    "pipelines/stages": ("pipelines.app", "pipelines.cli"),
}
# Slow to import (0.3 to 4 s each): only inside the functions that use them, so that `--help` is
# quick and every package can be opened alone. pipelines/interfaces is what Nipype's nodes import.
HEAVY = ("ants", "bids", "lightning", "matplotlib", "nilearn", "nipype", "pandas", "skimage",
         "sklearn", "statsmodels", "torch")
HEAVY_IMPORTS_OF = {
    "pipelines/interfaces": ("nipype",),
    "pipelines/workflows": ("nipype",),
    "harmonizer/deep": ("torch",),
    "harmonizer/methods/learned": ("torch",),
    "harmonizer/segmentation": ("torch",),
}
FORBIDDEN_MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "requests",
                     "urllib.request", "http.client", "ftplib")
FORBIDDEN_CALLS = ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load",
                   "joblib.load", "pandas.read_pickle", "pd.read_pickle", "yaml.load")


@dataclass(frozen=True)
class Source:
    """One Python file of the project."""

    path: str  # relative to the project, with slashes
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def package(self) -> list[str]:
        """The package that relative imports of this file start from."""
        return self.path.split("/")[:-1]

    def is_in(self, folder: str) -> bool:
        return self.path == folder or self.path.startswith(folder + "/")


def _is_checked_by_typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def walk(node: ast.AST, *, into_functions: bool = True) -> Iterator[ast.AST]:
    """Yield all nodes below one, except `if TYPE_CHECKING:` and, on request, function bodies."""
    for child in ast.iter_child_nodes(node):
        if _is_checked_by_typing_only(child):
            continue
        is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if is_function and not into_functions:
            continue
        yield child
        yield from walk(child, into_functions=into_functions)


def imports(source: Source, *, at_import_time: bool = False) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name of everything that a file imports.

    `from . import target` in harmonizer/methods/base.py is `harmonizer.methods.target`; `from
    ..volume import Volume` is both `harmonizer.volume` and `harmonizer.volume.Volume`, since the
    text does not tell a module from a name.
    """
    for node in walk(source.tree, into_functions=not at_import_time):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = source.package[:len(source.package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def _is_or_is_in(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def forbidden_imports(source: Source) -> list[str]:
    """Find imports against the layers; a package may always import itself."""
    found = set()
    for package, forbidden in FORBIDDEN_IMPORTS.items():
        own = package.removesuffix(".py").replace("/", ".")
        if not source.is_in(package):
            continue
        for line, name in imports(source):
            if (any(_is_or_is_in(name, module) for module in forbidden)
                    and not _is_or_is_in(name, own)):
                found.add(f"{source.path}:{line} imports {name}")
    return sorted(found)


def heavy_at_import(source: Source) -> list[str]:
    """Find imports of slow packages outside functions."""
    allowed = {module for package, modules in HEAVY_IMPORTS_OF.items() if source.is_in(package)
               for module in modules}
    return sorted({
        f"{source.path}:{line} imports {name} when it is imported"
        for line, name in imports(source, at_import_time=True)
        if name.split(".")[0] in HEAVY and name.split(".")[0] not in allowed
    })


def unsafe(source: Source) -> list[str]:
    """Find code that executes data, or uses a shell or the network."""
    found = [f"{source.path}:{line} imports {name}" for line, name in imports(source)
             if any(_is_or_is_in(name, module) for module in FORBIDDEN_MODULES)]
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in FORBIDDEN_CALLS:
            found.append(f"{source.path}:{node.lineno} calls {name}")
        for keyword in node.keywords:
            value = ast.unparse(keyword.value)
            if (keyword.arg, value) in (("shell", "True"), ("allow_pickle", "True")):
                found.append(f"{source.path}:{node.lineno} passes {keyword.arg}={value}")
    return found


def acts_on_import(source: Source) -> list[str]:
    """Find module-level calls whose result is not used, which are side effects of an import."""
    return [f"{source.path}:{node.lineno} calls {ast.unparse(node.value.func)} on import"
            for node in source.tree.body
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]


def _public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    for node in body:
        if (isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
                and not node.name.startswith("_")):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body, f"{prefix}{node.name}.")


def _bases(tree: ast.Module) -> dict[str, list[str]]:
    return {n.name: [ast.unparse(b).split("[")[0].rsplit(".", 1)[-1] for b in n.bases]
            for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}


def _describes_each_field(node: ast.AST) -> bool:
    """Return whether this is a Nipype specification with a `desc` for every field."""
    is_spec = isinstance(node, ast.ClassDef) and node.name.endswith(("InputSpec", "OutputSpec"))
    return is_spec and all(
        any(keyword.arg == "desc" for keyword in field.value.keywords)
        for field in node.body
        if isinstance(field, (ast.Assign, ast.AnnAssign)) and isinstance(field.value, ast.Call)
    )


def undocumented(source: Source) -> list[str]:
    """Find modules, public classes and functions without a docstring.

    A method of a derived class may inherit its docstring, and a Nipype specification may have
    descriptions of its fields instead.
    """
    found = [] if ast.get_docstring(source.tree) else [f"{source.path} has no docstring"]
    bases = _bases(source.tree)
    for name, node in _public(source.tree.body):
        owner = name.split(".")[-2] if "." in name else None
        if (owner and bases.get(owner)) or _describes_each_field(node):
            continue
        if ast.get_docstring(node) is None:
            found.append(f"{source.path}:{node.lineno} {name} has no docstring")
    return found


def untyped(source: Source) -> list[str]:
    """Find public functions with a parameter or result without type hint."""
    found = []
    for name, node in _public(source.tree.body):
        if isinstance(node, ast.ClassDef):
            continue
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        bare = [a.arg for a in every if a.annotation is None and a.arg not in ("self", "cls")]
        if bare or node.returns is None:
            missing = ", ".join([*bare, *(["its result"] if node.returns is None else [])])
            found.append(f"{source.path}:{node.lineno} {name} has no type for {missing}")
    return found


def too_long(source: Source) -> list[str]:
    """Find functions that do not fit on a screen."""
    found = []
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            if lines > MAX_FUNCTION_LINES:
                found.append(f"{source.path}:{node.lineno} {node.name} has {lines} lines")
    return found


RULES: tuple[Callable[[Source], list[str]], ...] = (
    forbidden_imports, heavy_at_import, unsafe, acts_on_import, undocumented, untyped, too_long,
)


def app_sources() -> list[Source]:
    modules = [f for top in ("harmonizer", "pipelines") for f in (ROOT / top).rglob("*.py")]
    files = [ROOT / "run.py", *modules]
    return [Source(str(f.relative_to(ROOT)), f.read_text(encoding="utf-8")) for f in sorted(files)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_code_follows_the_rule(rule: Callable[[Source], list[str]]) -> None:
    sources = app_sources()
    assert len(sources) > 20, "the code was not found"
    broken = [line for source in sources for line in rule(source)]
    assert not broken, "\n" + "\n".join(broken)


BROKEN = {
    "forbidden_imports": [
        ("harmonizer/evaluation/metrics/image.py", "from ...methods import registry"),
        ("harmonizer/evaluation/metrics/image.py", "from ... import methods"),
        ("harmonizer/volume.py", "def f():\n    import pipelines.settings"),
        ("harmonizer/deep/networks/unet.py", "import nibabel as nib"),
        ("harmonizer/reports/figures.py", "def f():\n    import torch.nn"),
        ("pipelines/dataset/index.py", "from nipype.pipeline import engine"),
        ("pipelines/interfaces/ants.py", "from ..workflows.base import run"),
        ("pipelines/settings/model.py", "from .. import app"),
    ],
    "heavy_at_import": [
        ("pipelines/app.py", "import nipype"),
        ("harmonizer/volume.py", "try:\n    from torch import nn\nexcept ImportError:\n    pass"),
        ("pipelines/stages/run.py", "class A:\n    import torch"),
    ],
    "unsafe": [
        ("harmonizer/files.py", "import pickle"),
        ("harmonizer/files.py", "def f(x):\n    return eval(x)"),
        ("harmonizer/files.py", "torch.load(path)"),
        ("harmonizer/files.py", "subprocess.run(c, shell=True)"),
        ("harmonizer/files.py", "np.load(p, allow_pickle=True)"),
        ("pipelines/app.py", "from urllib.request import urlopen"),
    ],
    "acts_on_import": [("harmonizer/seeds.py", "np.random.seed(0)")],
    "undocumented": [
        ("harmonizer/a.py", "x = 1"),
        ("harmonizer/a.py", '"""A."""\ndef f():\n    pass'),
        ("pipelines/a.py", '"""A."""\nclass AInputSpec(B):\n    x = traits.Int()'),
        ("harmonizer/a.py", '"""A."""\nclass A:\n    """A."""\n    def f(self):\n        pass'),
    ],
    "untyped": [
        ("harmonizer/a.py", "def f(x) -> int: ..."),
        ("harmonizer/a.py", "class A:\n    def f(self, x: int): ..."),
    ],
    "too_long": [("harmonizer/a.py", "def f():\n" + "    x = 1\n" * 61)],
}
SOUND = [
    ("harmonizer/evaluation/metrics/image.py", "from ..volume import Volume"),
    ("harmonizer/reports/figures.py", "def f():\n    import matplotlib.pyplot"),
    ("harmonizer/phantom/head.py", "from .physics import TISSUES"),
    ("harmonizer/evaluation/a.py", "if TYPE_CHECKING:\n    from ..methods import Backend"),
    ("pipelines/interfaces/ants.py", "from nipype.interfaces.base import SimpleInterface"),
    ("pipelines/stages/run.py", "from ..interfaces import image"),
    ("harmonizer/a.py", '"""A."""\nclass A(B):\n    """A."""\n    def f(self) -> None: ...'),
    ("harmonizer/a.py", "def f():\n" + "    x = 1\n" * 60),
    ("harmonizer/a.py", "x = re.compile('a')\ndef f():\n    return safetensors.torch.load(x)"),
    ("harmonizer/a.py", '"""A."""\nclass AInputSpec(B):\n    x = traits.Int(desc="how many")'),
]


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [(rule, *case) for rule in RULES for case in BROKEN[rule.__name__]],
)
def test_each_rule_finds_its_violations(
    rule: Callable[[Source], list[str]], path: str, text: str
) -> None:
    assert rule(Source(path, text)), f"{rule.__name__} did not see {text!r} in {path}"


@pytest.mark.parametrize(("path", "text"), SOUND)
def test_no_rule_but_documentation_reports_sound_code(path: str, text: str) -> None:
    rules = [rule for rule in RULES if rule not in (undocumented, untyped)]
    assert [line for rule in rules for line in rule(Source(path, text))] == []


def test_the_app_imports_itself_relatively() -> None:
    """It is `pipelines` in the repository and `harmonizer.pipelines` where it is installed."""
    found = [f"{source.path}:{node.lineno}" for source in app_sources()
             if source.path != "run.py" for node in ast.walk(source.tree)
             if (isinstance(node, ast.Import)
                 and any(_is_or_is_in(alias.name, "pipelines") for alias in node.names))
                or (isinstance(node, ast.ImportFrom) and not node.level
                    and _is_or_is_in(node.module or "", "pipelines"))]
    assert not found, found


def test_every_folder_of_code_is_a_package() -> None:
    folders = {f.parent for top in ("harmonizer", "pipelines") for f in (ROOT / top).rglob("*.py")}
    missing = [str(d.relative_to(ROOT)) for d in folders if not (d / "__init__.py").is_file()]
    assert not missing, f"setuptools would leave these out: {missing}"


def cycles(sources: list[Source]) -> list[str]:
    """Find chains of imports, also inside functions, that lead back to their first module.

    An import of a module's own package (`from . import name`) does not count.
    """
    modules = {s.path.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): s
               for s in sources}
    graph = {name: sorted({n for _, n in imports(source) if n in modules
                           and not name.startswith(n + ".") and n != name})
             for name, source in modules.items()}
    found, done = [], set()

    def visit(name: str, chain: list[str]) -> None:
        if name in chain:
            found.append(" -> ".join([*chain[chain.index(name):], name]))
        elif name not in done:
            for other in graph[name]:
                visit(other, [*chain, name])
            done.add(name)

    for name in graph:
        visit(name, [])
    return found


def test_no_module_imports_itself_through_others() -> None:
    assert not cycles(app_sources())
    texts = {
        "a/__init__.py": "",
        "a/b.py": "from .c import x",
        "a/c.py": "def f():\n    import a.b",
    }
    assert cycles([Source(path, text) for path, text in texts.items()]) == ["a.b -> a.c -> a.b"]


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_the_command_line_answers_at_once_and_imports_nothing_heavy(flag: str) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['run.py', {flag!r}]\n"
        "from pipelines.app import main\n"
        "code = main(sys.argv[1:])\n"
        "print('MODULES', *sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    before = os.times()
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    after = os.times()
    assert answer.returncode == 0, answer.stderr
    assert "harmonizer" in answer.stdout or "BIDS_DIR" in answer.stdout
    loaded = set(answer.stderr.partition("MODULES")[2].split())
    assert "pipelines" in loaded
    assert not loaded & {*HEAVY, "scipy", "nibabel"}, f"{flag} imports too much"
    # CPU seconds, because wall time depends on the load of the machine.
    seconds = sum(after[2:4]) - sum(before[2:4])
    assert seconds < 0.5, f"{flag} took {seconds:.2f} CPU seconds"
