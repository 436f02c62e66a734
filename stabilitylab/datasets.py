"""Registry of data sets to train on, and recorded runs. It does not import torch; `stabilitylab.data.datasets` contains
the loaders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stabilitylab.registry import Registry, located


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set to train on.

    ``help``: a one-line description. ``load(folder)``: returns a `stabilitylab.data.datasets.ImageData`; it may be
    given as ``"package.module:function"``. ``folder``: whether users write ``name:DIR``; otherwise ``load`` gets an
    empty string. ``recipe``: for data sets of plugins, default values of the configuration as nested dicts, on top of
    those of digits. The data sets of this package have a file in ``recipes/`` instead.
    """

    help: str
    load: str | Callable[[str], Any]
    folder: bool = True
    recipe: Mapping[str, Any] = field(default_factory=dict)


def _check(name: str, entry: Any) -> None:
    if not isinstance(entry, DataSet):
        raise TypeError(f"expected a stabilitylab.datasets.DataSet, not a {type(entry).__name__}")


_HERE = "stabilitylab.data.datasets:"

DATASETS: Registry[DataSet] = Registry(
    "data",
    {
        "digits": DataSet(
            help="scikit-learn's 1,797 digits, enlarged to 16 x 16", load=_HERE + "load_digits", folder=False
        ),
        "fashion-mnist": DataSet(help="Fashion-MNIST in its original IDX files", load=_HERE + "load_fashion_mnist"),
        "cifar10": DataSet(help="CIFAR-10 in torchvision's layout", load=_HERE + "load_cifar10"),
        "cifar100": DataSet(help="CIFAR-100 in torchvision's layout", load=_HERE + "load_cifar100"),
        "stl10": DataSet(help="STL-10 in torchvision's layout", load=_HERE + "load_stl10"),
        "imagefolder": DataSet(help="folders train/ and val/, one folder per class", load=_HERE + "load_image_folder"),
    },
    group="stabilitylab.datasets",
    check=_check,
)


def describe_datasets() -> str:
    """The names of all data sets as written on the command line, for ``--help``. Plugins are listed without being
    imported."""
    entries = ((name, DATASETS.own(name)) for name in DATASETS)
    return ", ".join(f"{name}:DIR" if entry is not None and entry.folder else name for name, entry in entries)


def load(name: str) -> Any:
    """Load recorded runs that ship with the package: the gradient norms of every layer at every iteration, for testing
    detectors. These are not images to train on.

    ``load("first-layer-spikes")`` returns a `stabilitylab.run.open_data.OpenData`.

    Raises:
        ConfigError: the name is unknown.
    """
    return located("stabilitylab.run.open_data:load")(name)
