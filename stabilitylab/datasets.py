"""The data sets by name. Imports no torch: `stabilitylab.data.datasets` loads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stabilitylab.registry import Registry


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set to train on.

    ``help``: one line. ``load(folder)`` gives a `stabilitylab.data.datasets.ImageData`; also as
    ``"package.module:function"``. ``folder``: whether it is written ``name:DIR``; else ``load`` gets an empty string.
    ``recipe``: of a data set of another package, the starting values of the configuration as nested dicts, on top of
    those of digits; the data sets of this package have a file in ``recipes/``.
    """

    help: str
    load: str | Callable[[str], Any]
    folder: bool = True
    recipe: Mapping[str, Any] = field(default_factory=dict)


def _check(name: str, entry: Any) -> None:
    if not isinstance(entry, DataSet):
        raise TypeError(f"it is not a stabilitylab.datasets.DataSet but a {type(entry).__name__}")


_HERE = "stabilitylab.data.datasets:"

DATASETS: Registry[DataSet] = Registry(
    "data",
    {
        "digits": DataSet(
            help="scikit-learn's 1,797 digits, enlarged to 16 x 16", load=_HERE + "load_digits", folder=False
        ),
        "fashion-mnist": DataSet(help="Fashion-MNIST, as its authors publish it", load=_HERE + "load_fashion_mnist"),
        "cifar10": DataSet(help="CIFAR-10, as torchvision lays it out", load=_HERE + "load_cifar10"),
        "cifar100": DataSet(help="CIFAR-100, as torchvision lays it out", load=_HERE + "load_cifar100"),
        "stl10": DataSet(help="STL-10, as torchvision lays it out", load=_HERE + "load_stl10"),
        "imagefolder": DataSet(help="folders train/ and val/, one folder per class", load=_HERE + "load_image_folder"),
    },
    group="stabilitylab.datasets",
    check=_check,
)


def describe_datasets() -> str:
    """How each is written, for a help page; those of other packages are listed without being loaded."""
    entries = ((name, DATASETS.own(name)) for name in DATASETS)
    return ", ".join(f"{name}:DIR" if entry is not None and entry.folder else name for name, entry in entries)
