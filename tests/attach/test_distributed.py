"""Several processes: sharded and averaged gradients have the right norms, and no process waits for a dead one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from stabilitylab.store.reader import open_run
from tests.attach.test_loop import ALL, Net, batch, groups_of, plain, series

pytestmark = pytest.mark.slow


def torchrun(tmp_path: Path, body: str, *, processes: int = 2, fails: bool = False) -> str:
    """Run ``body`` under torchrun with gloo."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(body))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OUT": str(tmp_path),
    }
    done = subprocess.run(
        [*command, str(script)], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr


COMMON = """
    import os, torch, torch.distributed as dist, stabilitylab
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from stabilitylab.errors import RunExists
    from tests.attach.test_loop import Net, batch
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = Net()
    def shard(mesh):
        for b in model.blocks:
            fully_shard(b, mesh=mesh)
        fully_shard(model, mesh=mesh)
    def leave():
        dist.barrier()  # gloo may abort where a peer is gone before its threads are joined
        dist.destroy_process_group()
    def train(steps, **options):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        with stabilitylab.record(model, optimizer, run="r", runs_dir=os.environ["OUT"], **options) as rec:
            for i in range(steps):
                model(batch(i).chunk(dist.get_world_size())[rank]).square().mean().backward()
                rec.step()
                optimizer.step()
                optimizer.zero_grad()
                if options.get("dies") == i:
                    raise SystemExit(1)
"""


@pytest.mark.parametrize(
    ("wrap", "processes"),
    [
        ("model = torch.nn.parallel.DistributedDataParallel(model)", 2),
        ("shard(init_device_mesh('cpu', (2,)))", 2),
        ("shard(init_device_mesh('cpu', (2, 2), mesh_dim_names=('replicas', 'shards')))", 4),
    ],
    ids=["ddp", "fsdp2", "hsdp"],
)
def test_every_signal_is_that_of_one_process(wrap: str, processes: int, tmp_path: Path) -> None:
    call = f"    {wrap}\n    train(4, signals={ALL!r})\n    leave()\n"
    torchrun(tmp_path, COMMON + call, processes=processes)
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    import stabilitylab

    truths = []
    with stabilitylab.record(model, optimizer, run="alone", runs_dir=tmp_path, signals=ALL) as rec:
        for i in range(4):
            model(batch(i)).square().mean().backward()
            truths.append(plain(groups_of(model)))
            rec.step()
            optimizer.step()
            optimizer.zero_grad()
    found = series(tmp_path / "r")
    assert found.keys() == truths[0].keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, [truth[name] for truth in truths], rtol=1e-4, err_msg=name)
    for signal in ALL:
        alone, together = series(tmp_path / "alone", signal), series(tmp_path / "r", signal)
        for name, values in alone.items():
            np.testing.assert_allclose(together[name], values, rtol=2e-3, atol=1e-7, err_msg=f"{signal} of {name}")


def test_a_nan_in_one_shard_is_a_nan(tmp_path: Path) -> None:
    body = """
    shard(init_device_mesh("cpu", (2,)))
    with stabilitylab.record(model, run="r", runs_dir=os.environ["OUT"], signals=("grad_max", "nonfinite")) as rec:
        model(batch(0)).square().mean().backward()
        if rank == 1:
            model.stem.weight.grad.to_local()[0, 0] = float("nan")
        rec.step()
    leave()
    """
    torchrun(tmp_path, COMMON + body)
    assert np.isnan(series(tmp_path / "r", "grad_max")["stem"]).all()
    np.testing.assert_allclose(series(tmp_path / "r", "nonfinite")["stem"], [1 / (6 * 8 + 8)])


def test_all_processes_resume_at_the_same_iteration(tmp_path: Path) -> None:
    body = """
    shard(init_device_mesh("cpu", (2,)))
    train(3, every=2)
    train(3, every=2, resume=True)
    try:
        train(1)
    except (RunExists, stabilitylab.RecordError) as error:
        assert "already exists" in str(error)
    else:
        raise AssertionError("the name is taken")
    leave()
    """
    torchrun(tmp_path, COMMON + body)
    with open_run(tmp_path / "r") as reader:
        assert reader.layer_series()[0][0].tolist() == [0, 2, 4]


def test_a_process_that_crashes_leaves_nobody_waiting(tmp_path: Path) -> None:
    body = """
    shard(init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(model.parameters())
    with stabilitylab.record(model, run="r", runs_dir=os.environ["OUT"], signals=("grad_norm", "update_ratio")) as rec:
        for i in range(3):
            model(batch(i)).square().mean().backward()
            rec.step()
            optimizer.step()
            optimizer.zero_grad()
        if rank == 0:
            raise ZeroDivisionError
        import time; time.sleep(600)
    """
    assert "ZeroDivisionError" in torchrun(tmp_path, COMMON + body, fails=True)
    with open_run(tmp_path / "r") as reader:
        assert reader.status == "crashed"
        assert len(reader.layer_series()[0][0]) >= 2


def test_hugging_face_measures_the_averaged_gradient(tmp_path: Path) -> None:
    body = """
    import os
    from pathlib import Path
    from transformers import PretrainedConfig, Trainer, TrainingArguments
    from stabilitylab.attach.huggingface import StabilityCallback
    from tests.attach.test_frameworks import Classifier, digits
    out = Path(os.environ["OUT"])
    pixels, labels = digits()
    data = [{"pixels": x, "labels": y} for x, y in zip(pixels, labels, strict=True)]
    arguments = TrainingArguments(
        str(out / "hf"), per_device_train_batch_size=32, max_steps=4, logging_steps=1, save_strategy="no",
        report_to=[], use_cpu=True, max_grad_norm=0.1, gradient_accumulation_steps=2, disable_tqdm=True,
    )
    callback = StabilityCallback("r", runs_dir=out)
    trainer = Trainer(Classifier(PretrainedConfig()), arguments, train_dataset=data, callbacks=[callback])
    trainer.train()
    if trainer.is_world_process_zero():
        logged = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
        (out / "logged").write_text(repr(logged))
    """
    torchrun(tmp_path, body)
    logged = eval((tmp_path / "logged").read_text())  # the norms that the Trainer clipped by, those of all processes
    with open_run(tmp_path / "r") as reader:
        np.testing.assert_allclose(reader.table("iterations")["grad_norm"], logged, rtol=1e-4)


def test_the_loss_is_the_mean_over_processes(tmp_path: Path) -> None:
    torchrun(
        tmp_path,
        COMMON
        + """
    from torch.nn.parallel import DistributedDataParallel
    model = DistributedDataParallel(model)
    with stabilitylab.record(model, run="r", runs_dir=os.environ["OUT"]) as rec:
        for i in range(3):
            loss = model(batch(i).chunk(2)[rank]).square().mean()
            loss.backward()
            rec.step(loss=loss)
            model.zero_grad()
    leave()
    """,
    )
    torch.manual_seed(0)
    model = Net()
    expected = [float(model(batch(i)).square().mean()) for i in range(3)]
    with open_run(tmp_path / "r") as reader:
        np.testing.assert_allclose(reader.table("iterations")["loss"], expected, rtol=1e-5)
