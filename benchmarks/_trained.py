"""Train the small real runs on which `real_noise.py`, `collapse.py` and `early_warning.py` are evaluated.

    python benchmarks/_trained.py DIR --fashion FOLDER [--only TEXT] [--list]

Healthy: MoCo v3 on two data sets and three batch sizes, two seeds of each, 20,000 iterations in all; SimCLR and BYOL
on digits, four seeds each. Collapsing: MoCo v3 with a weight decay of 3, SimCLR with learning rates that are raised
until its features collapse, BYOL without predictor. Unstable: the narrow regime (experiments/recipes/narrow.toml) with
all signals that may warn of spikes. Runs that exist in DIR are not trained again. Half a minute per run on one core,
the unstable ones two to three minutes.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

SMALL = (
    "model.img_size=8", "model.patch_size=2", "model.num_heads=2", "model.embed_dim=16", "model.depth=3",
    "method.hidden_dim=64", "method.out_dim=32", "eval.knn_bank=1000", "eval.knn_queries=300",
    "optim.warmup_iterations=100",
)  # fmt: skip
EVERYWHERE = (
    "train.device=cpu", "train.compile=true", "train.checkpoint_every=0", "optim.schedule=constant",
    "method.ema_schedule=constant",
)  # fmt: skip
RECIPES = Path(__file__).parents[1] / "experiments" / "recipes"
SAFE_RATE = 0.008
"""Base learning rate of the healthy runs: lr = base_lr x batch_size / 256."""


@dataclass(frozen=True)
class Training:
    """``healthy``: the expected verdict. ``data``: the name of the data set, without its folder. ``recipe``: the file
    in experiments/recipes that gives every other setting."""

    name: str
    healthy: bool
    method: str = "mocov3"
    data: str = "digits"
    batch: int = 64
    seed: int = 0
    iterations: int = 400
    base_lr: float = SAFE_RATE
    settings: tuple[str, ...] = SMALL
    recipe: str = ""

    def arguments(self, fashion: str) -> list[str]:
        """The arguments for `stablab`. ``fashion``: the folder of Fashion-MNIST."""
        data = f"fashion-mnist:{fashion}" if self.data == "fashion" else self.data
        chosen = {
            "method": self.method, "data": data, "batch-size": self.batch, "seed": self.seed,
            "iterations": self.iterations, "base-lr": self.base_lr, "name": self.name,
        }  # fmt: skip
        flags = [text for key, value in chosen.items() for text in (f"--{key}", str(value))]
        config = ["--config", str(RECIPES / self.recipe)] if self.recipe else []
        sets = [text for value in (*EVERYWHERE, *self.settings) for text in ("--set", value)]
        return ["train", "--log-grads", *config, *flags, *sets]


RARELY = (*SMALL, "eval.knn_every=100")
OFTEN = (*SMALL, "eval.knn_every=20")
SIGNALS = (
    'record.signals=["grad_norm", "weight_norm", "update_ratio", "adam_rms", "attention_max", "attention_entropy", '
    '"grad_cosine"]'
)
NAMED = (
    "model.img_size=12", "model.patch_size=4", "model.num_heads=4", "model.embed_dim=64", "model.depth=4",
    "optim.weight_decay=3", "optim.warmup_iterations=100", "eval.knn_every=20",
)  # fmt: skip
TRAININGS = (
    *(
        Training(f"healthy-{data}-{batch}-{seed}", True, "mocov3", data, batch, seed, length, SAFE_RATE, RARELY)
        for seed in (0, 1)
        for data in ("digits", "fashion")
        for batch, length in ((32, 2000), (64, 1500), (16, 1500))
    ),
    *(
        Training(f"healthy-{method}-{seed}", True, method, batch=32, seed=seed, settings=OFTEN)
        for method in ("simclr", "byol")
        for seed in range(4)
    ),
    # The run of the issue: kNN falls from 0.85 to 0.10.
    Training("collapse-named", False, batch=128, iterations=1770, base_lr=0.06, settings=NAMED),
    *(
        Training(
            f"collapse-decay-{seed}", False, batch=32, seed=seed, base_lr=0.3, settings=(*OFTEN, "optim.weight_decay=3")
        )
        for seed in range(3)
    ),
    *(
        Training(f"collapse-simclr-{rate:g}-{seed}", False, "simclr", batch=32, seed=seed, base_lr=rate, settings=OFTEN)
        for rate in (0.5, 2, 8)
        for seed in range(2)
    ),
    # Many spikes, for `early_warning.py`. The seeds are new: no study used them.
    *(
        Training(
            f"unstable-{seed}",
            False,
            "simclr",
            "digits",
            32,
            seed,
            6000,
            0.1048,
            (SIGNALS, "eval.knn_every=500"),
            "narrow.toml",
        )
        for seed in range(30, 42)
    ),
    *(
        Training(
            f"collapse-byol-{seed}", False, "byol", batch=32, seed=seed, settings=(*OFTEN, "method.predictor=false")
        )
        for seed in range(3)
    ),
)


def train(training: Training, folder: Path, fashion: str) -> None:
    from stabilitylab.cli import cli

    cli.main([*training.arguments(fashion), "--runs-dir", str(folder)], standalone_mode=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the runs live")
    parser.add_argument("--fashion", default="", help="the folder of Fashion-MNIST")
    parser.add_argument("--only", default="", help="only runs whose name contains this")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    given = parser.parse_args()
    for one in TRAININGS:
        if given.only not in one.name or (one.data == "fashion" and not (given.fashion or given.list)):
            continue
        if given.list or (given.folder / one.name).exists():
            print(one.name, "" if given.list else "is there")
        else:
            train(one, given.folder, given.fashion)
