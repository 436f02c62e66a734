"""``python -m tests.train.in_double train ...``: the command line, with the model in float64.

In float32 the order of sums decides which ReLU unit is on, and ten iterations later the runs differ by percents.
"""

from __future__ import annotations

from stabilitylab.cli import main
from stabilitylab.config import Config
from stabilitylab.methods.base import Method
from stabilitylab.train.mitigations import applied

build = applied.build_method


def build_in_double(config: Config, channels: int) -> object:
    method = build(config, channels)
    assert isinstance(method, Method)
    for name in ("base_encoder", "momentum_encoder"):
        if hasattr(method, name):
            method.get_submodule(name).register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    return method.double()


if __name__ == "__main__":
    applied.build_method = build_in_double
    main()
