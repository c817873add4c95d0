"""Pictures of training runs."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from torch_impl.curve import CurveError, draw, main, read_curves

METRICS = """epoch,step,train_loss,val_loss,val_pearson
0,1,3.0,,
0,2,,2.5,0.1
1,3,2.0,,
1,4,,1.5,0.6
"""


@pytest.fixture
def metrics(tmp_path) -> Path:
    path = tmp_path / "metrics.csv"
    path.write_text(METRICS)
    return path


def lines(picture: str) -> list[list[tuple[float, float]]]:
    root = ElementTree.fromstring(picture)
    found = root.iter("{http://www.w3.org/2000/svg}polyline")
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.attrib["points"].split())] for line in found
    ]


def test_each_row_gives_points_to_the_curves_that_it_has_numbers_of(metrics):
    assert read_curves(metrics) == {
        "train_loss": [(1, 3.0), (3, 2.0)],
        "val_loss": [(2, 2.5), (4, 1.5)],
        "val_pearson": [(2, 0.1), (4, 0.6)],
    }


def test_curves_fall_and_rise_in_the_picture_as_their_values_do(metrics, tmp_path):
    assert main(str(metrics), str(tmp_path / "curve.svg")) == 0
    training, validation, pearson = lines((tmp_path / "curve.svg").read_text())
    # Down the page is up in numbers.
    assert training[0][1] < validation[0][1] < training[1][1] < validation[1][1]
    assert pearson[0][1] > pearson[1][1]
    assert training[0][0] < validation[0][0] < training[1][0] < validation[1][0]


def test_a_value_that_is_not_finite_interrupts_its_curve():
    curve = [(1, 1.0), (2, 2.0), (3, float("nan")), (4, 3.0), (5, 1.0)]
    assert [len(line) for line in lines(draw({"a": curve}, [("one", ["a"])]))] == [2, 2]


def test_a_name_is_text_whatever_it_is():
    picture = draw({"<b>&": [(1, 1.0), (2, 2.0)]}, [("<i>", ["<b>&"])])
    assert "<b>" not in picture
    assert "<i>" not in picture
    assert lines(picture)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows with a step"),
        ("a,b\n1,2\n", "has no rows with a step"),
        ("step,val_loss\n1,high\n", "line 2: val_loss is 'high'"),
        ("step,train_loss\n1,2\n", "there is no val_loss to draw"),
        ("step,train_loss,val_loss,val_pearson\n1,2,3,nan\n", "there is no val_pearson to draw"),
    ],
)
def test_a_file_without_curves_is_named_and_nothing_is_written(tmp_path, capsys, text, message):
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    assert main(str(path), str(tmp_path / "curve.svg")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "curve.svg").exists()


def test_files_that_cannot_be_read_or_written_are_named(metrics, tmp_path, capsys):
    with pytest.raises(CurveError, match=r"cannot read .*absent\.csv"):
        read_curves(tmp_path / "absent.csv")
    assert main(str(metrics), str(tmp_path / "absent" / "curve.svg")) == 2
    assert "cannot be written" in capsys.readouterr().err
