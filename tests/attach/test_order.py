"""Depth is the order of execution, and the layers off the main loss's path are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stabilitylab
from stabilitylab import RecordError
from stabilitylab.store.reader import open_run


def layers_of(path: Path) -> list[str]:
    with open_run(path) as reader:
        return [row.name for row in reader.layers()]


def events_of(path: Path, kind: str) -> list[str]:
    with open_run(path) as reader:
        return [event.detail for event in reader.events() if event.kind == kind]


class Experts(nn.Module):
    """Runs in an order that differs from that of registration; expert 1 is used from the third step on."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.temperature = nn.Parameter(torch.ones(()))
        self.pos_embed = nn.Parameter(torch.zeros(4))
        self.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.inputs = nn.Linear(3, 4)
        self.step = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x) + self.pos_embed
        self.step += 1
        for i in (2, 1, 0) if self.step > 2 else (2, 0):
            x = x + self.experts[i](x).tanh()
        return self.head(x) * self.temperature


def train(model: nn.Module, path: Path, steps: int = 4, **options: Any) -> Path:
    with stabilitylab.record(model, run="r", runs_dir=path, **options) as rec:
        for _ in range(steps):
            loss = model(torch.randn(5, 3)).square().mean()
            loss.backward()
            rec.step(loss=loss)
            model.zero_grad()
    assert rec.path is not None
    return rec.path


def test_layers_that_the_first_step_skips_take_their_place_when_they_run(tmp_path: Path) -> None:
    model = Experts()
    path = train(model, tmp_path)
    assert layers_of(path) == ["inputs", "tokens", "experts.2", "experts.1", "experts.0", "head", "temperature"]
    assert not any(m._forward_pre_hooks for m in model.modules())
    with open_run(path) as reader:
        assert reader.verify() == []
    assert layers_of(train(Experts(), tmp_path / "short", steps=2))[-2:] == ["temperature", "experts.1"]


class TiedLanguageModel(nn.Module):
    """The embedding is also the output projection, registered before it, behind the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.lm_head = nn.Linear(4, 7, bias=False)
        self.positions = nn.Embedding(5, 4)
        self.embed = nn.Embedding(7, 4)
        self.embed.weight = self.lm_head.weight
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.abs().long() % 7) + self.positions(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = h + block(h).tanh()
        return self.lm_head(h)  # type: ignore[no-any-return]


def test_tied_parameters_stand_where_they_are_first_used(tmp_path: Path) -> None:
    names = layers_of(train(TiedLanguageModel(), tmp_path))
    assert names[0] in ("embed", "lm_head")
    assert names[1:] == ["positions", "blocks.0", "blocks.1", "blocks.2"]


def test_a_compiled_model_is_compiled_once_and_keeps_its_order(tmp_path: Path) -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.b, self.a = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(self.a(x)).tanh())  # type: ignore[no-any-return]

    path = train(torch.compile(Net(), backend=counter), tmp_path)  # type: ignore[arg-type]
    assert layers_of(path) == ["a", "b", "head"]
    assert counter.frame_count == 1


class Probed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.body, self.head, self.classify = (nn.Linear(3, 3) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.teacher(x)
        features = self.body(x).tanh()
        main = (self.head(features) - target).square().mean()
        return main + self.classify(features.detach()).square().mean()


def test_a_probe_on_detached_features_is_off_the_path(tmp_path: Path) -> None:
    path = train(Probed(), tmp_path)
    assert layers_of(path) == ["teacher", "body", "head", "classify"]
    assert events_of(path, "off-path") == ["classify"]


def test_two_towers_that_meet_in_one_loss_are_both_on_the_path(tmp_path: Path) -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text, self.image = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(2))
            self.logit_scale = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.image(x) @ self.text(x).T * self.logit_scale.exp()  # type: ignore[no-any-return]

    path = train(Towers(), tmp_path)
    assert layers_of(path) == ["image.0", "image.1", "text.0", "text.1", "logit_scale"]
    assert events_of(path, "off-path") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first": "stem"}, "first='stem' is not a layer; the layers are"),
        ({"last": "frozen"}, "last='frozen' has no gradient: all its parameters are frozen"),
        ({"first": "body", "last": "body"}, "first= and last= are both 'body'"),
        ({"first": "teacher"}, "first='teacher' had no gradient in the first step; these layers had one: body"),
    ],
)
def test_ends_that_cannot_be(options: dict[str, str], message: str, tmp_path: Path) -> None:
    model = Probed()
    model.add_module("frozen", nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(RecordError, match=message):
        train(model, tmp_path, **options)


def test_the_ends_that_the_user_names_are_kept(tmp_path: Path) -> None:
    path = train(Probed(), tmp_path, first="body", last="head")
    assert (events_of(path, "first-layer"), events_of(path, "last-layer")) == (["body"], ["head"])


class Matrices(nn.Module):
    """A network of bare matrices, applied from the last to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.ParameterList([nn.Parameter(torch.randn(3, 3)) for _ in range(4)])
        self.ends = nn.ParameterDict({"scale": nn.Parameter(torch.ones(3)), "shift": nn.Parameter(torch.zeros(3))})

    def forward(self, x: Tensor) -> Tensor:
        for w in reversed(list(self.w)):
            x = torch.tanh(x @ w)
        return x * self.ends["scale"] + self.ends["shift"]


def test_each_parameter_of_a_list_is_a_layer(tmp_path: Path) -> None:
    assert layers_of(train(Matrices(), tmp_path)) == ["w.3", "w.2", "w.1", "w.0", "ends.scale", "ends.shift"]


class Queries(nn.Module):
    """Reads weights of modules that it never calls, as DETR does, and as tied heads do."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Embedding(5, 4)
        self.output = nn.Linear(4, 2)
        self.inputs = nn.Linear(3, 4)
        self.hidden = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(self.inputs(x).tanh()).tanh()[None] + self.queries.weight
        return nn.functional.linear(self.attention(x, x, x)[0], self.output.weight, self.output.bias)


def test_a_weight_that_is_read_without_a_call_stands_where_it_is_used(tmp_path: Path) -> None:
    assert layers_of(train(Queries(), tmp_path)) == ["inputs", "hidden", "queries", "attention", "output"]


def test_a_model_of_one_module_is_one_layer(tmp_path: Path) -> None:
    assert layers_of(train(nn.Linear(3, 2), tmp_path)) == ["linear"]


def test_a_scripted_model_is_recorded_in_the_order_of_registration(tmp_path: Path) -> None:
    model = torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    with pytest.warns(UserWarning, match="no layer ran while recording"):
        assert layers_of(train(model, tmp_path)) == ["0", "2"]


def test_lazy_modules_must_have_their_parameters(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="run one batch through it before record"):
        stabilitylab.record(nn.LazyLinear(4), run="r", runs_dir=tmp_path)
