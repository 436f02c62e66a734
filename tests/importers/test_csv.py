from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stabilitylab.errors import LogFormatError
from stabilitylab.importers.csv import import_csv, read_grads, read_scalars
from stabilitylab.store.reader import open_run


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_round_trip(tmp_path: Path) -> None:
    grads = write(
        tmp_path / "grads.csv",
        "\ufeffiteration,layer,grad_norm,grad_max\r\n1,first,2.5,1.5\r\n0,first,1e-3,\r\n\r\n"
        '0,"last, really",nan,3\r\n1,"last, really",Infinity,4\r\n',
    )
    scalars = write(
        tmp_path / "scalars.csv",
        "iteration,name,value,num_samples\n0,knn_top1,0.5,397\n1,knn_top1,0.75,\n0,loss,3.5,\n1,my metric,-2,\n",
    )
    run = import_csv(tmp_path / "runs", grads, scalars, "held")
    assert run == tmp_path / "runs" / "held"
    with open_run(run) as reader:
        assert [(row.name, row.depth, row.trainable) for row in reader.layers()] == [
            ("first", 0, True),
            ("last, really", 1, True),
        ]
        series = reader.layer_series("grad_norm")
        np.testing.assert_array_equal(series[0][0], [0, 1])
        np.testing.assert_allclose(series[0][1], [1e-3, 2.5], rtol=1e-6)
        np.testing.assert_array_equal(series[1][1], [np.nan, np.inf])
        np.testing.assert_allclose(reader.layer_series("grad_max")[0][1], [1.5])
        evals = reader.evals()["knn_top1"]
        assert evals["value"].tolist() == [0.5, 0.75]
        assert evals["num_samples"].tolist() == [397, 0]
        assert reader.table("iterations")["loss"].tolist() == [3.5]
        assert reader.table("scalars")["name"].tolist() == ["my metric"]
        assert reader.status == "finished"


def test_a_depth_column_orders_the_layers(tmp_path: Path) -> None:
    grads = write(tmp_path / "g.csv", "iteration,layer,grad_norm,depth\n0,head,1,7\n0,stem,1,2\n")
    with open_run(import_csv(tmp_path / "runs", grads)) as reader:
        assert [(row.name, row.depth) for row in reader.layers()] == [("stem", 2), ("head", 7)]


HEADER = "iteration,layer,grad_norm\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "{} is empty; it needs the columns iteration, layer, grad_norm"),
        (HEADER, "{} has a header and no rows"),
        (
            "step,layer,grad_norm\n0,a,1\n",
            "{} has no column iteration; it has step, layer, grad_norm; needed: iteration, layer, grad_norm",
        ),
        (HEADER + "0,a,1\n\n1,a,big\n", "{}, line 4: grad_norm 'big' is not a number"),
        (HEADER + "0,a,1\n1,a,\n", "{}, line 3: grad_norm '' is not a number"),
        (HEADER + '0,"a\nb",1\n1,"a\nb",big\n', "{}, line 5: grad_norm 'big' is not a number"),
        (HEADER + "0,a,-1\n", "{}, line 2: grad_norm -1 is negative, but a norm cannot be"),
        (HEADER + "-1,a,1\n", "{}, line 2: iteration '-1' is not a non-negative integer"),
        (HEADER + "0.5,a,1\n", "{}, line 2: iteration '0.5' is not a non-negative integer"),
        (HEADER + "nan,a,1\n", "{}, line 2: iteration 'nan' is not a non-negative integer"),
        (HEADER + "0,,1\n", "{}, line 2: the layer has no name"),
        (HEADER + "0,a,1,2\n", "{}, line 2: 4 cells, but the header has 3"),
        (
            HEADER + "0,a,1\n1,a,1\n0,a,2\n",
            "{}, line 4: iteration 0 of layer 'a' is already on line 2; remove one of the two",
        ),
        ("iteration,layer,grad_norm,depth\n0,a,1,0\n1,a,1,3\n", "{}, line 3: layer 'a' has depth 3 here and 0 before"),
        (
            "iteration,layer,grad_norm,depth\n0,a,1,0\n0,b,1,0\n",
            "{}: two layers share a depth; number the layers from input to output",
        ),
    ],
)  # fmt: skip
def test_faults_are_named_and_leave_nothing_behind(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "grads.csv", text)
    with pytest.raises(LogFormatError) as caught:
        import_csv(tmp_path / "runs", path)
    assert str(caught.value) == message.format(path)
    assert not (tmp_path / "runs").exists()


def test_faults_of_scalars(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", "iteration,name,value\n0,knn_top1,75\n")
    with pytest.raises(LogFormatError, match="line 2: knn_top1 75 is not a fraction between 0 and 1"):
        read_scalars(path)
    write(path, "iteration,name,value\n0,x,1\n0,x,2\n")
    with pytest.raises(LogFormatError, match="line 3: 'x' at iteration 0 is already on line 2"):
        read_scalars(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LogFormatError, match=r"cannot read .*absent\.csv: No such file or directory"):
        read_grads(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"iteration,layer,grad_norm\n\xff\xfe,a,1\n")
    with pytest.raises(LogFormatError, match=r"binary\.csv is not UTF-8 text"):
        read_grads(tmp_path / "binary.csv")
