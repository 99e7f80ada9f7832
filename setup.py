"""Package list of the distribution; everything else is in setup.cfg.

The folder `pipelines` is installed as `harmonizer.pipelines`. A top-level package of that common
name could shadow one of another project, or be shadowed by it (docs/architecture.md, Installed
names).
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["harmonizer", "harmonizer.*"]),
        *(f"harmonizer.{name}" for name in find_packages(include=["pipelines", "pipelines.*"])),
    ],
    package_dir={"harmonizer.pipelines": "pipelines"},
)
