from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from stabilitylab.config import from_dict, parse_override, read_toml, recipes, resolve
from stabilitylab.errors import ConfigError


@pytest.mark.parametrize("kind", sorted(recipes()))
def test_toml_out_and_in_gives_the_same_configuration(kind: str) -> None:
    config = resolve({"data": {"name": f'{kind}:some "odd"\nfolder\\'}, "mitigation": ["frozen-patch"]})
    assert from_dict(tomllib.loads(config.to_toml())) == config


def test_later_layers_win_and_iterations_replace_epochs() -> None:
    config = resolve({"train": {"epochs": 5}}, {"optim": {"base_lr": 0.1}}, {"optim": {"base_lr": 0.2}})
    assert (config.train.epochs, config.train.iterations, config.optim.base_lr) == (5, None, 0.2)


def test_the_paper_recipe_belongs_to_image_folders() -> None:
    config = resolve({"data": {"name": "imagefolder:x"}})
    assert config.model.vit_size == (384, 12, 12)
    assert (config.train.batch_size, config.train.epochs, config.optim.warmup_epochs) == (4096, 300, 40)
    assert (config.optim.base_lr, config.optim.weight_decay, config.method.hidden_dim) == (1.5e-4, 0.1, 4096)


def test_swav_has_the_paper_s_heads_on_photos_and_sharper_codes_on_small_images() -> None:
    photos = resolve({"data": {"name": "imagefolder:x"}, "method": {"name": "swav"}}).method
    digits = resolve({"method": {"name": "swav"}}).method
    assert (photos.temperature, photos.head_bn, photos.sinkhorn_epsilon) == (0.1, False, 0.05)
    assert (digits.temperature, digits.head_bn, digits.sinkhorn_epsilon) == (0.1, True, 0.03)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {"name": "digitz"}}, "unknown data 'digitz'; did you mean digits?"),
        ({"model": {"arch": "vit_smal"}}, "model.arch: unknown arch 'vit_smal'; did you mean vit_small"),
        ({"model": {"img_size": 18}}, "model: patch_size 4 does not divide img_size 18"),
        (
            {"optim": {"weight_decy": 1}},
            "unknown key optim.weight_decy; did you mean weight_decay or weight_decay_end?",
        ),
        ({"trian": {}}, "unknown key trian; did you mean train?"),
        ({"optim": {"base_lr": -1}}, "optim.base_lr = -1: input should be greater than or equal to 0"),
        ({"train": {"iterations": 5, "epochs": 5}}, "train: set exactly one of iterations and epochs"),
        (
            {"model": {"arch": "vit_small_patch16_224", "img_size": 32}},
            "model.arch 'vit_small_patch16_224' implies img_size 224, but img_size = 32 is set too",
        ),
    ],
)
def test_errors_name_field_value_and_what_is_allowed(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(values)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_overrides() -> None:
    assert parse_override("optim.base_lr=1e-3") == (["optim", "base_lr"], 0.001)
    assert parse_override("data.name=digits") == (["data", "name"], "digits")
    with pytest.raises(ConfigError, match=r"not of the form section\.key=value"):
        parse_override("base_lr")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("a = \n")
    with pytest.raises(ConfigError, match=r"run\.toml is not valid TOML: .*line 1"):
        read_toml(path)
    with pytest.raises(ConfigError, match=r"cannot read configuration .*absent\.toml: No such file"):
        read_toml(tmp_path / "absent.toml")
