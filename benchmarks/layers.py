"""The layers that the recorder finds in models of timm, torchvision and transformers, compared with the truth.

    python benchmarks/layers.py [--only NAME] [--markdown docs/layers.md]

Models have random weights; nothing is downloaded. Takes some minutes on one thread. For each model it prints: the
number of blocks (counted by the name patterns below), the number of layers, layers that merge or split blocks, the
first and the last layer, inversions relative to the order in which operations first use the parameters (observed with
a TorchFunctionMode, not with hooks), the largest share of parameters in one layer, and the largest relative error of a
norm compared with autograd. The exit code is 1 if a block is merged or split, an order is inverted, or a norm is off
by more than 1e-4.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import stabilitylab
from stabilitylab.store.reader import open_run

STAGES = r"(stages|layers|levels|transformers)\.\d+\.(blocks|transformer_encoder)\.\d+"
VIT = r"^blocks\.\d+"
NESTED = r"^(blocks|stages)\.\d+\.\d+"
LAYER = r"^layer\d\.\d+"
TIMM: dict[str, tuple[str, int, dict[str, Any]]] = {
    # name: pattern of a block, image size, options
    "vit_tiny_patch16_224": (VIT, 64, {"img_size": 64}),
    "deit_tiny_distilled_patch16_224": (VIT, 64, {"img_size": 64}),
    "deit3_small_patch16_224": (VIT, 64, {"img_size": 64, "depth": 4}),
    "eva02_tiny_patch14_224": (VIT, 56, {"img_size": 56}),
    "beit_base_patch16_224": (VIT, 64, {"img_size": 64, "depth": 3}),
    "vit_small_patch14_dinov2": (VIT, 56, {"img_size": 56, "depth": 4}),
    "vit_small_patch16_dinov3": (VIT, 64, {"depth": 4}),
    "vit_small_r26_s32_224": (rf"{VIT}|backbone\.stages\.\d+\.blocks\.\d+", 64, {"img_size": 64, "depth": 3}),
    "naflexvit_base_patch16_gap": (VIT, 64, {"depth": 3, "embed_dim": 96, "num_heads": 3}),
    "samvit_base_patch16": (VIT, 64, {"img_size": 64, "depth": 3, "global_attn_indexes": (2,)}),
    "convit_tiny": (VIT, 224, {"depth": 4}),
    "cait_xxs24_224": (r"^blocks(_token_only)?\.\d+", 64, {"img_size": 64, "depth": 4}),
    "xcit_nano_12_p16_224": (r"^(cls_attn_)?blocks\.\d+", 64, {"img_size": 64}),
    "mixer_s32_224": (VIT, 64, {"img_size": 64}),
    "gmixer_24_224": (VIT, 64, {"img_size": 64}),
    "resmlp_12_224": (VIT, 64, {"img_size": 64}),
    "convmixer_768_32": (VIT, 64, {}),
    "hiera_tiny_224": (VIT, 64, {"img_size": (64, 64)}),
    "swin_tiny_patch4_window7_224": (STAGES, 56, {"img_size": 56}),
    "swinv2_tiny_window8_256": (STAGES, 64, {"img_size": 64}),
    "convnext_tiny": (STAGES, 64, {}),
    "maxvit_rmlp_pico_rw_256": (STAGES, 64, {"img_size": 64}),
    "coatnet_pico_rw_224": (STAGES, 64, {"img_size": 64}),
    "pvt_v2_b0": (STAGES, 64, {}),
    "twins_pcpvt_small": (NESTED, 64, {"img_size": 64}),
    "davit_tiny": (STAGES, 64, {}),
    "edgenext_xx_small": (STAGES, 64, {}),
    "focalnet_tiny_srf": (STAGES, 64, {}),
    "gcvit_xxtiny": (STAGES, 224, {}),
    "mvitv2_tiny": (STAGES, 64, {"img_size": 64}),
    "poolformer_s12": (STAGES, 64, {}),
    "efficientformerv2_s0": (STAGES, 224, {}),
    "efficientvit_b0": (r"^stages\.\d+\.blocks\.\d+", 64, {}),
    "efficientvit_m0": (STAGES, 224, {}),
    "inception_next_tiny": (STAGES, 64, {}),
    "sequencer2d_s": (STAGES, 64, {"img_size": 64}),
    "pit_ti_224": (STAGES, 224, {}),
    "jx_nest_tiny": (STAGES, 224, {}),
    "tiny_vit_5m_224": (STAGES, 224, {}),
    "levit_128s": (STAGES, 224, {}),
    "swiftformer_xs": (STAGES, 224, {}),
    "repvit_m0_9": (STAGES, 64, {}),
    "mambaout_femto": (STAGES, 64, {}),
    "starnet_s1": (NESTED, 64, {}),
    "nfnet_l0": (NESTED, 64, {}),
    "repvgg_a0": (NESTED, 64, {}),
    "mobileone_s0": (NESTED, 64, {}),
    "visformer_tiny": (r"^stage\d\.\d+", 224, {}),
    "coat_lite_tiny": (r"^serial_blocks\d\.\d+", 224, {}),
    "volo_d1_224": (r"^(network\.[0234]|post_network)\.\d+", 224, {}),
    "crossvit_9_240": (r"^blocks\.\d+\.blocks\.\d+\.\d+", 240, {}),
    "fastvit_t8": (r"^stages\.\d+\.blocks\.\d+", 64, {}),
    "mobilevitv2_050": (r"^stages\.\d+\.\d+\.transformer\.\d+", 64, {}),
    "vovnet39a": (STAGES, 64, {}),
    "cspdarknet53": (STAGES, 64, {}),
    "resnet18": (LAYER, 64, {}),
    "resnetv2_50": (STAGES, 64, {}),
    "res2net50_26w_4s": (LAYER, 64, {}),
    "skresnet18": (LAYER, 64, {}),
    "regnety_002": (r"^s\d\.b\d+", 64, {}),
    "densenet121": (r"^features\.denseblock\d\.denselayer\d+", 64, {}),
    "efficientnet_b0": (NESTED, 64, {}),
    "mobilenetv4_conv_small": (NESTED, 64, {}),
    "ghostnet_100": (NESTED, 64, {}),
    "rexnet_100": (r"^features\.\d+", 64, {}),
    "dla34": (r"tree[12](?=\.(conv1|bn1|conv2|bn2))", 64, {}),
    "hrnet_w18_small": (r"branches\.\d+\.\d+", 64, {}),
    "xception41": (VIT, 96, {}),
    "inception_v4": (r"^features\.\d+", 139, {}),
    "vgg11_bn": (r"^features\.\d+", 64, {}),
}
TORCHVISION: dict[str, tuple[str, int]] = {
    "vit_b_16": (r"encoder_layer_\d+", 224),
    "swin_t": (r"^features\.[1357]\.\d+", 64),
    "convnext_tiny": (r"^features\.[1357]\.\d+", 64),
    "maxvit_t": (r"^blocks\.\d+\.layers\.\d+", 224),
    "efficientnet_b0": (r"^features\.[1-7]\.\d+", 64),
    "mobilenet_v2": (r"^features\.\d+", 64),
    "regnet_y_400mf": (r"block\d-\d+", 64),
    "resnet50": (LAYER, 64),
    "squeezenet1_0": (r"^features\.\d+", 64),
    "shufflenet_v2_x0_5": (r"^stage\d\.\d+", 64),
}
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 99,
}
TEXT: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    # name: model, config, pattern of a block, options
    "GPT-2": (
        "GPT2LMHeadModel", "GPT2Config", r"\.h\.\d+", {"n_embd": 32, "n_layer": 3, "n_head": 2, "vocab_size": 99},
    ),
    "BERT": ("BertForMaskedLM", "BertConfig", r"layer\.\d+", SMALL),
    "Llama": ("LlamaForCausalLM", "LlamaConfig", r"layers\.\d+", SMALL),
    "Mixtral": (
        "MixtralForCausalLM", "MixtralConfig", r"layers\.\d+",
        {**SMALL, "num_key_value_heads": 2, "num_local_experts": 4},
    ),
    "T5": (
        "T5ForConditionalGeneration", "T5Config", r"(en|de)coder\.block\.\d+",
        {"vocab_size": 99, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 3, "num_heads": 2,
         "decoder_start_token_id": 0},
    ),
    "Mamba": (
        "MambaForCausalLM", "MambaConfig", r"layers\.\d+",
        {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3},
    ),
    "DeBERTa": ("DebertaV2ForMaskedLM", "DebertaV2Config", r"layer\.\d+", SMALL),
    "DistilBERT": (
        "DistilBertForMaskedLM", "DistilBertConfig", r"layer\.\d+",
        {"vocab_size": 99, "dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64},
    ),
    "GPT-NeoX": ("GPTNeoXForCausalLM", "GPTNeoXConfig", r"layers\.\d+", SMALL),
}  # fmt: skip


class FirstUse(TorchFunctionMode):
    """Records when each parameter is first used by an operation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._parameters = {id(p) for p in model.parameters()}
        self.used: dict[int, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        open_values = [*args, *(kwargs or {}).values()]
        if getattr(func, "__name__", "") != "__get__":
            while open_values:
                value = open_values.pop(0)
                if isinstance(value, list | tuple):
                    open_values[:0] = value
                elif isinstance(value, Tensor) and id(value) in self._parameters:
                    self.used.setdefault(id(value), len(self.used))
        return func(*args, **(kwargs or {}))


def row(name: str, model: nn.Module, loss_of: Callable[[nn.Module], Tensor], pattern: str, folder: Path) -> list[Any]:
    """A row of the table."""
    model.train()
    truth = FirstUse(model)
    with warnings.catch_warnings(), stabilitylab.record(model, run=re.sub(r"\W", "_", name), runs_dir=folder) as rec:
        warnings.simplefilter("ignore")
        with truth:
            loss = loss_of(model)
        loss.backward()
        exact = {id(p): p.grad.double().norm() ** 2 for p in model.parameters() if p.grad is not None}
        rec.step(loss=loss)
        layers = {layer.name: layer for layer in rec._layers}
    assert rec.path is not None
    with open_run(rec.path) as reader:
        rows, series = reader.layers(), reader.layer_series()
    error = 0.0
    for found in rows:
        squares = [exact[id(p)] for p in layers[found.name].parameters if id(p) in exact]
        if squares:
            want = float(sum(squares)) ** 0.5
            error = max(error, abs(float(series[found.layer_id][1][0]) - want) / max(want, 1e-12))
    never = len(truth.used)
    starts = [min(truth.used.get(id(p), never) for p in layers[found.name].parameters) for found in rows]
    starts = [start for start in starts if start < never]
    inversions = sum(a > b for i, a in enumerate(starts) for b in starts[i + 1 :])
    names = {id(p): n for n, p in model.named_parameters()}
    holding: dict[str, set[str]] = {}
    merged = 0
    for layer in layers.values():
        inside = set()
        for p in layer.parameters:
            match = re.search(pattern, names[id(p)])
            if match:
                inside.add(names[id(p)][: match.end()])
        merged += len(inside) > 1
        for block in inside:
            holding.setdefault(block, set()).add(layer.name)
    split = sum(len(names) > 1 for names in holding.values())
    share = max(layer.num_params for layer in layers.values()) / sum(x.num_params for x in layers.values())
    ends = rows[0].name, rows[-1].name
    return [name, len(holding), len(rows), merged, split, *ends, inversions, f"{share:.2f}", f"{error:.0e}"]


def images_loss(size: int) -> Callable[[nn.Module], Tensor]:
    def loss(model: nn.Module) -> Tensor:
        out = model(torch.randn(2, 3, size, size))
        parts = out if isinstance(out, tuple | list) else (out,)
        labels = torch.zeros(2, dtype=torch.long)
        return sum((nn.functional.cross_entropy(part.float(), labels) for part in parts), torch.zeros(()))

    return loss


def text_loss(model: nn.Module) -> Tensor:
    ids = torch.randint(1, 90, (2, 12))
    return model(input_ids=ids, labels=ids).loss  # type: ignore[no-any-return]


def cases() -> dict[str, Callable[[Path], list[Any]]]:
    import timm
    import torchvision
    import transformers

    def of_timm(name: str) -> Callable[[Path], list[Any]]:
        pattern, size, options = TIMM[name]
        return lambda folder: row(
            name, timm.create_model(name, num_classes=10, **options), images_loss(size), pattern, folder
        )

    def of_torchvision(name: str) -> Callable[[Path], list[Any]]:
        pattern, size = TORCHVISION[name]
        make = getattr(torchvision.models, name)
        return lambda folder: row(f"torchvision {name}", make(num_classes=10), images_loss(size), pattern, folder)

    def of_text(name: str) -> Callable[[Path], list[Any]]:
        model, config, pattern, options = TEXT[name]
        make = lambda: getattr(transformers, model)(getattr(transformers, config)(**options))  # noqa: E731
        return lambda folder: row(f"transformers {name}", make(), text_loss, pattern, folder)

    found = {name: of_timm(name) for name in TIMM}
    found |= {f"torchvision {name}": of_torchvision(name) for name in TORCHVISION}
    return found | {f"transformers {name}": of_text(name) for name in TEXT}


HEAD = ("model", "blocks", "layers", "merged", "split", "first", "last", "inversions", "largest share", "error")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--markdown", type=Path, help="write the table into this page")
    arguments = parser.parse_args()
    lines, bad = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases().items():
            if arguments.only not in name:
                continue
            torch.manual_seed(0)
            try:
                found = case(Path(folder))
            except Exception as error:
                bad.append(f"{name}: {type(error).__name__}: {error}")
                print(f"{name}: {type(error).__name__}: {str(error)[:150]}", file=sys.stderr, flush=True)
                continue
            lines.append("| " + " | ".join(map(str, found)) + " |")
            print(lines[-1], flush=True)
            if found[3] or found[4] or found[7] or float(found[9]) > 1e-4:
                bad.append(lines[-1])
    if arguments.markdown:
        page = arguments.markdown.read_text(encoding="utf-8") if arguments.markdown.exists() else ""
        table = "\n".join(["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD), *lines])
        before = page.split("<!-- table -->")[0]
        arguments.markdown.write_text(f"{before}<!-- table -->\n\n{table}\n", encoding="utf-8")
    print(f"{len(lines)} models, {len(bad)} with a fault")
    if bad:
        raise SystemExit("\n".join(bad))


if __name__ == "__main__":
    main()
