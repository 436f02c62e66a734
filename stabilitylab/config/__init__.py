"""What a run is: frozen, checked once, TOML in and out.

A configuration is layered: the recipe of the data set, then a file, then flags. `resolve` does that.
"""

from stabilitylab.config.layering import from_dict, parse_override, read_toml, recipes, resolve, set_key
from stabilitylab.config.sections import (
    VIT_SIZES,
    Config,
    DataConfig,
    EvalConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RecordConfig,
    TrainConfig,
)
from stabilitylab.registry import check_choice

__all__ = [
    "VIT_SIZES",
    "Config",
    "DataConfig",
    "EvalConfig",
    "MethodConfig",
    "ModelConfig",
    "OptimConfig",
    "RecordConfig",
    "TrainConfig",
    "check_choice",
    "from_dict",
    "parse_override",
    "read_toml",
    "recipes",
    "resolve",
    "set_key",
]
