"""TensorBoard's event files, in every form that people write them."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch.utils.tensorboard import SummaryWriter

from stabilitylab.errors import LogFormatError
from stabilitylab.importers.options import Options
from stabilitylab.importers.registry import import_log
from stabilitylab.store.reader import open_run
from tests.importers.planted import LAYERS, assert_holds, bring, events_of, losses_of, norms_of, planted

SHAPE = TensorShapeProto()
TENSORS = {
    "float_val": lambda v: TensorProto(dtype=1, tensor_shape=SHAPE, float_val=[v]),
    "double_val": lambda v: TensorProto(dtype=2, tensor_shape=SHAPE, double_val=[v]),
    "content_f32": lambda v: TensorProto(dtype=1, tensor_shape=SHAPE, tensor_content=struct.pack("<f", v)),
    "content_f64": lambda v: TensorProto(dtype=2, tensor_shape=SHAPE, tensor_content=struct.pack("<d", v)),
    "half_val": lambda v: TensorProto(
        dtype=19, tensor_shape=SHAPE, half_val=[int(np.array(v, np.float16).view(np.uint16))]
    ),
}


def write_scalars(folder: Path, norms: dict[str, np.ndarray], start: int = 0, **options: int) -> None:
    with SummaryWriter(str(folder), **options) as writer:
        for step in range(start, len(next(iter(norms.values())))):
            for layer, values in norms.items():
                writer.add_scalar(f"grad_norm/{layer}", values[step], step)
            writer.add_scalar("train/loss", 3 - 0.01 * step, step)


@pytest.mark.parametrize("kind", ["simple", "new_style", *TENSORS])
def test_scalars_in_every_form_are_the_same_series(kind: str, tmp_path: Path) -> None:
    norms = planted()
    folder = tmp_path / "tb"
    if kind in ("simple", "new_style"):
        with SummaryWriter(str(folder)) as writer:
            for layer, values in norms.items():
                for step, value in enumerate(values):
                    writer.add_scalar(f"grad_norm/{layer}", value, step, new_style=kind == "new_style")
    else:
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
        file = EventFileWriter(str(folder))
        for step in range(len(norms["norm"])):
            for layer, values in norms.items():
                value = Summary.Value(
                    tag=f"grad_norm/{layer}",
                    tensor=TENSORS[kind](float(values[step])),
                    metadata=metadata if step == 0 else None,
                )
                file.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=[value])))
        file.close()
    assert_holds(bring(tmp_path / "runs", folder).path, norms, 1e-3 if kind == "half_val" else 1e-6)


def test_histograms_of_gradients_give_exact_norms(tmp_path: Path) -> None:
    torch.manual_seed(0)
    norms: dict[str, list[float]] = {layer: [] for layer in LAYERS}
    with SummaryWriter(str(tmp_path / "tb")) as writer:
        for step in range(15):
            for layer in LAYERS:
                gradient = torch.randn(200, dtype=torch.float64)
                norms[layer].append(float(gradient.norm()))
                writer.add_histogram(f"gradients/{layer}", gradient, step)
            writer.add_histogram("weights/a", torch.randn(10), step)
    made = bring(tmp_path / "runs", tmp_path / "tb")
    assert_holds(made.path, {layer: np.array(values) for layer, values in norms.items()})
    assert "weights/a" in events_of(made.path)["skipped"][0]


@pytest.mark.parametrize("marked", [True, False])
def test_a_restart_leaves_no_seam(marked: bool, tmp_path: Path) -> None:
    first, second = planted(60, seed=0), planted(56, seed=5)
    write_scalars(tmp_path / "tb", first)
    earlier = next((tmp_path / "tb").iterdir())
    earlier.rename(earlier.with_name(earlier.name.replace(earlier.name.split(".")[3], "1000000000", 1)))
    write_scalars(tmp_path / "tb", second, start=50, **({"purge_step": 50} if marked else {}))
    made = bring(tmp_path / "runs", tmp_path / "tb")
    assert_holds(made.path, {layer: np.r_[first[layer][:50], second[layer][50:]] for layer in LAYERS})
    (said,) = events_of(made.path)["superseded"]
    assert "restarted at step 50: 6 + 4 superseded rows" in said


def test_one_tag_whose_steps_go_round_and_round_does_not_cut_the_others(tmp_path: Path) -> None:
    norms = planted()
    with SummaryWriter(str(tmp_path / "tb")) as writer:
        for step in range(40):
            for layer, values in norms.items():
                writer.add_scalar(f"grad_norm/{layer}", values[step], step)
            writer.add_scalar("batch_time", 1.0, step % 10)
    assert_holds(bring(tmp_path / "runs", tmp_path / "tb").path, norms)


def test_the_same_norm_against_samples_and_tokens_is_one_layer(tmp_path: Path) -> None:
    norm = planted()["norm"]
    with SummaryWriter(str(tmp_path / "tb")) as writer:
        for step, value in enumerate(norm):
            writer.add_scalar("lm-loss-training/lm loss", 3.0, step)
            writer.add_scalar("grad-norm/grad-norm", value, step)
            writer.add_scalar("grad-norm/grad-norm vs samples", value, step * 2048)
            writer.add_scalar("grad-norm/grad-norm vs tokens", value, step * 2048 * 200_000)
    made = bring(tmp_path / "runs", tmp_path / "tb")
    assert_holds(made.path, {"global": norm})
    assert made.loss == "lm-loss-training/lm loss"
    assert len(events_of(made.path)["axes"]) == 1
    assert "refused_rows" not in events_of(made.path)


@pytest.mark.parametrize("version", [1, 2])
def test_lightnings_keys_merge_into_layers(version: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [
        "net.patch_embed.proj.weight",
        "net.patch_embed.proj.bias",
        "net.blocks.0.attn.qkv.weight",
        "net.norm.weight",
    ]
    values = {name: rng.uniform(1, 2, 30) for name in names}
    total = np.sqrt(sum(v**2 for v in values.values()))
    with SummaryWriter(str(tmp_path / "tb")) as writer:
        for step in range(30):
            for name, series in values.items():
                writer.add_scalar(
                    f"grad_2.0_norm/{name}" if version == 2 else f"grad_2.0_norm_{name}_step", series[step], step
                )
            writer.add_scalar("grad_2.0_norm_total" + ("_step" if version == 1 else ""), total[step], step)
            if step % 10 == 9:
                writer.add_scalar("val_knn_acc1", 55 + step / 10, step)
    made = bring(tmp_path / "runs", tmp_path / "tb")
    patch = np.hypot(values[names[0]], values[names[1]])
    assert_holds(made.path, {"patch_embed": patch, "blocks.0": values[names[2]], "norm": values[names[3]]})
    with open_run(made.path) as run:
        np.testing.assert_allclose(run.table("iterations")["grad_norm"], total, rtol=1e-6)
        assert run.evals()["val_knn_acc1"]["value"].tolist() == pytest.approx([55.9, 56.9, 57.9], rel=1e-6)
    assert "val_knn_acc1" in events_of(made.path)["percent"][0]


def test_subfolders_that_are_parts_of_a_run_are_joined(tmp_path: Path) -> None:
    norms = planted()
    write_scalars(tmp_path / "tb", norms)
    with SummaryWriter(str(tmp_path / "tb" / "validation")) as writer:
        writer.add_scalar("accuracy", 0.5, 10)
    with SummaryWriter(str(tmp_path / "tb")) as writer:
        writer.add_scalars("pair", {"left": 1.0, "right": 2.0}, 3)
        writer.add_hparams({"lr": 0.1}, {"hparam/best": 1.0})
    made = bring(tmp_path / "runs", tmp_path / "tb")
    assert_holds(made.path, norms)
    with open_run(made.path) as run:
        assert run.evals()["validation/accuracy"]["value"].tolist() == [0.5]
        assert {"pair/left", "pair/right"} <= set(run.table("scalars")["name"])


def test_several_runs_below_a_folder_are_a_run_each(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_scalars(tmp_path / "tb" / f"version_{seed}", planted(seed=seed))
    made = import_log(tmp_path / "runs", tmp_path / "tb", name="lightning")
    assert [one.path.name for one in made] == ["lightning-version_0", "lightning-version_1"]
    for seed, one in enumerate(made):
        assert_holds(one.path, planted(seed=seed))


def test_a_damaged_file_gives_what_it_holds(tmp_path: Path) -> None:
    write_scalars(tmp_path / "tb", planted())
    (file,) = (tmp_path / "tb").iterdir()
    os.truncate(file, file.stat().st_size * 3 // 4)
    found = norms_of(bring(tmp_path / "runs", tmp_path / "tb").path)
    for layer, (_, values) in found.items():
        assert 20 < len(values) < 40
        np.testing.assert_allclose(values, planted()[layer][: len(values)], rtol=1e-6)


def test_tags_of_other_kinds_are_skipped_and_counted(tmp_path: Path) -> None:
    norms = planted()
    write_scalars(tmp_path / "tb", norms)
    with SummaryWriter(str(tmp_path / "tb")) as writer:
        writer.add_image("image", torch.zeros(3, 4, 4), 1)
        writer.add_text("words", "hello", 1)
        writer.add_scalar("x" * 5000, 1.0, 1)
        writer.add_scalar("negative", 1.0, -3)
    made = bring(tmp_path / "runs", tmp_path / "tb")
    assert_holds(made.path, norms)
    assert "3 non-scalar tags" in events_of(made.path)["skipped"][0]
    assert "step -3" in events_of(made.path)["refused_rows"][0]
    with pytest.raises(LogFormatError, match="tag negative: step -3 is not from 0"):
        bring(tmp_path / "runs", tmp_path / "tb", Options(strict=True))


def test_training_loss_is_kept(tmp_path: Path) -> None:
    write_scalars(tmp_path / "tb", planted())
    with open_run(bring(tmp_path / "runs", tmp_path / "tb").path) as run:
        np.testing.assert_allclose(losses_of(run), 3 - 0.01 * np.arange(40), rtol=1e-6)
