"""Files of events: what each line and row becomes, and what is said of a bad one."""

import json
from pathlib import Path

import pytest
from vega_datasets import local_data

from gateway.cli.event_file import InvalidFile, Template, read_events


def bodies(path: Path, template: Template) -> list[str]:
    return [line.body.decode() for line in read_events(path, template)]


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refusal(path: Path, template: Template) -> str:
    with pytest.raises(InvalidFile) as raised:
        list(read_events(path, template))
    return str(raised.value).removeprefix(str(path))


def test_a_row_becomes_an_object_of_numbers_texts_and_nulls(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.csv",
        'symbol,price,zip,note,none\nMSFT,39.810,01234,"say ""hi"",\nthen go",\nß,-1e5,1.,+3,NaN\n',
    )
    assert bodies(path, Template("stocks")) == [
        '{"channel":"stocks","data":{"symbol":"MSFT","price":39.81,"zip":"01234",'
        '"note":"say \\"hi\\",\\nthen go","none":null}}',
        '{"channel":"stocks","data":{"symbol":"ß","price":-100000.0,"zip":"1.","note":"+3",'
        '"none":"NaN"}}',
    ]


def test_an_integer_of_any_size_is_exact(tmp_path: Path) -> None:
    big = "123456789012345678901234567890"
    row = written(tmp_path / "a.csv", f"n\n{big}\n")
    line = written(tmp_path / "a.ndjson", f'{{"n":{big}}}\n')
    body = f'{{"channel":"c","data":{{"n":{big}}}}}'
    assert bodies(row, Template("c")) == bodies(line, Template("c")) == [body]


def test_a_column_becomes_the_key(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "id,v\n007,1\n8,2\n1.50,3\n")
    lines = [json.loads(body) for body in bodies(path, Template("c", key_column="id"))]
    assert [line["key"] for line in lines] == ["007", "8", "1.50"]
    assert lines[1]["data"] == {"id": 8, "v": 2}


def test_the_end_of_each_row_is_known(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", b"\xef\xbb\xbfid\r\n1\r\n\r\n2\r\n")
    lines = list(read_events(path, Template("c")))
    assert [(line.number, line.end_bytes) for line in lines] == [(2, 10), (4, 15)]
    assert lines[0].body == b'{"channel":"c","data":{"id":1}}'


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", ": must begin with a line of column names"),
        ("a,\n", ":1: every column needs a name of its own"),
        ("a,a\n", ":1: every column needs a name of its own"),
        ("a,b\n1,2\n3\n", ":3: has 1 values for 2 columns"),
        ("a\n1\n\xff\n".encode("latin-1"), ":3: must be UTF-8"),
        ('a\n"1\n', ":2: must be CSV: unexpected end of data"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, text: str | bytes, rule: str) -> None:
    assert refusal(written(tmp_path / "a.csv", text), Template("c")) == rule


def test_a_number_beyond_a_double_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "a,b\n1,1e999\n")
    assert refusal(path, Template("c")).startswith(":2: b must be JSON: number")


def test_a_key_must_be_there(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "a,b\n1,\n")
    rule = ":2: has no text or number in b for a key"
    assert refusal(path, Template("c", key_column="b")) == rule
    assert refusal(path, Template("c", key_column="x")).endswith("in x for a key")


def test_a_line_of_a_batch_keeps_all_but_its_id(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.ndjson",
        '{"id":"1-0","channel":"a","type":"t","key":"k","data":123456789012345678901234567890}\n'
        '\n{"channel":"b","data":"text"}',
    )
    assert bodies(path, Template()) == [
        '{"channel":"a","type":"t","key":"k","data":123456789012345678901234567890}',
        '{"channel":"b","data":"text"}',
    ]


def test_with_a_channel_each_line_is_one_events_data(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"x": 1.10, "n": "a"}\n"text"\n[1, 2]\nnull\n')
    template = Template("c", type="t", key="k", idempotency_key="load")
    assert bodies(path, template) == [
        f'{{"channel":"c","data":{data},"type":"t","key":"k","idempotency_key":"load:{number}"}}'
        for number, data in enumerate(['{"x":1.1,"n":"a"}', '"text"', "[1,2]", "null"], 1)
    ]


def test_the_member_of_the_data_that_is_the_key(tmp_path: Path) -> None:
    own = written(tmp_path / "a.ndjson", '{"channel":"c","data":{"s":"A"}}\n')
    bare = written(tmp_path / "b.ndjson", '{"s":1.5}\n')
    assert bodies(own, Template(key_column="s"))[0].endswith('"key":"A"}')
    assert bodies(bare, Template("c", key_column="s"))[0].endswith('"key":"1.5"}')
    true = written(tmp_path / "c.ndjson", '{"s":true}\n')
    assert (
        refusal(true, Template("c", key_column="s")) == ":1: has no text or number in s for a key"
    )


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.ndjson", '{"channel":"a","data":1}\n{"data":1}\n')
    rule = ":2: must be an object with a channel, or give a CHANNEL"
    assert refusal(path, Template()) == rule
    assert refusal(written(path, "{"), Template()).startswith(":1: must be JSON: ")
    assert refusal(written(path, b'"\xff"'), Template("c")).startswith(":1: must be JSON: ")


def test_a_file_must_be_readable_and_of_a_known_kind(tmp_path: Path) -> None:
    missing = tmp_path / "missing.csv"
    assert refusal(missing, Template("c")) == ": cannot be read: No such file or directory"
    rows = ": rows of a CSV file need a CHANNEL to be published to"
    assert refusal(missing, Template()) == rows
    assert refusal(tmp_path / "a.txt", Template("c")) == ": must end in .ndjson, .jsonl, .csv"


def test_a_public_data_set_is_read_without_a_loss() -> None:
    path = Path(local_data.stocks.filepath)
    template = Template("stocks", key_column="symbol")
    frame = local_data.stocks()
    lines = [json.loads(body) for body in bodies(path, template)]
    assert len(lines) == len(frame) == 560
    assert [line["data"]["price"] for line in lines] == list(frame["price"])
    assert [line["key"] for line in lines] == list(frame["symbol"])
