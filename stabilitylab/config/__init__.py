"""Configuration of a run: frozen, validated once, read from and written to TOML.

A configuration is merged from layers: the recipe of the data set, then a file, then flags. See `resolve`.
"""

from stabilitylab.config.layering import (
    from_dict,
    parse_override,
    read_run_config,
    read_toml,
    recipes,
    resolve,
    set_key,
)
from stabilitylab.config.sections import (
    OPTIMIZERS,
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
    "OPTIMIZERS",
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
    "read_run_config",
    "read_toml",
    "recipes",
    "resolve",
    "set_key",
]
