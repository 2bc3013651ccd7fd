"""Histories against loops over lists and the reference splits; every format, and every refusal with its line."""

import gzip
import os
from collections import Counter, defaultdict
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys import Cases, SequenceData, Sequences, Split
from recsys.files import item_text
from recsys.synthetic import synthetic_histories

REFERENCE = Path(__file__).parents[1] / "reference"
ROWS = st.lists(st.lists(st.integers(1, 9), max_size=7), max_size=6)


def from_rows(rows, times=None):
    """Data from lists, users 1, 2, ..."""
    users = [user for user, row in enumerate(rows, 1) for _ in row]
    items = [item for row in rows for item in row]
    columns = {"user": users, "item": items}
    if times is not None:
        columns["time"] = [time for row in times for time in row]
    return SequenceData.from_dataframe(columns, time=None if times is None else "time")


def lists(sequences):
    return [sequences[row].tolist() for row in range(len(sequences))]


# Rows


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(0, 8), st.data())
def test_rows_are_those_of_lists(rows, n, data):
    sequences = Sequences.from_lists(rows)
    assert len(sequences) == len(rows)
    assert sequences.lengths.tolist() == [len(row) for row in rows]
    assert lists(sequences) == rows
    assert lists(sequences.last(n)) == [row[-n:] if n else [] for row in rows]
    assert lists(sequences.drop_last(n)) == [row[: max(len(row) - n, 0)] for row in rows]
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=5)) if rows else []
    assert lists(sequences.take(np.array(chosen, np.int64))) == [rows[i] for i in chosen]
    starts = [data.draw(st.integers(0, len(rows[i]))) for i in chosen]
    ends = [data.draw(st.integers(start, len(rows[i]))) for i, start in zip(chosen, starts, strict=True)]
    assert lists(sequences.windows(np.array(chosen, np.int64), starts, ends)) == [
        rows[i][start:end] for i, start, end in zip(chosen, starts, ends, strict=True)
    ]
    for length in (None, 3):
        kept = [row if length is None else row[-length:] for row in rows]
        matrix, lengths = sequences.padded(length)
        width = max([1, *map(len, kept)])
        assert matrix.shape == (len(rows), width)
        assert matrix.tolist() == [row + [0] * (width - len(row)) for row in kept]
        assert lengths.tolist() == [len(row) for row in kept]


def test_a_row_is_a_view_and_rows_count_from_the_end():
    sequences = Sequences.from_lists([[1, 2], [3]])
    assert np.shares_memory(sequences[0], sequences.items)
    assert sequences[-1].tolist() == [3]
    with pytest.raises(IndexError):
        sequences[2]
    assert lists(sequences.take([True, False])) == [[1, 2]]


@pytest.mark.parametrize(
    ("items", "offsets", "message"),
    [
        ([1, 2], [0, 1], "rise from 0 to 2"),
        ([1, 2], [1, 2], "rise from 0 to 2"),
        ([1, 2], [0, 2, 1, 2], "rise from 0 to 2"),
        ([1, 2], [], "rise from 0 to 2"),
        ([[1, 2]], [0, 2], "items has the shape"),
        ([1.0, 2.0], [0, 2], "type float64"),
    ],
)
def test_refuses_rows_that_do_not_divide_the_items(items, offsets, message):
    with pytest.raises(ValueError, match=message):
        Sequences(np.array(items), np.array(offsets))


def test_refuses_windows_outside_their_row():
    sequences = Sequences.from_lists([[1, 2], [3, 4, 5]])
    with pytest.raises(IndexError, match="window 1 is items 0 to 3 of row 0, which has 2"):
        sequences.windows(np.array([1, 0]), 0, 3)
    with pytest.raises(IndexError, match=r"there are 2 rows; asked for rows 0\.\.2"):
        sequences.windows(np.array([0, 2]), 0, 1)
    with pytest.raises(ValueError, match="give at least 1"):
        sequences.padded(0)


# Reading


def write(folder, name, text):
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


FILES = {
    "a.seq.tsv": "2\t7 9 7\n10\t9 30\n",
    "a.seq.tsv.gz": "2\t7 9 7\r\n10\t9 30\r\n",
    "words.txt": "2 7 9 7\n10 9 30\n\n",
    "pairs.txt": "2 7\n2 9\n10 9\n\n2 7\n10 30\n",
    "a.inter": "user_id:token\titem_id:token\n2\t7\n10\t9\n2\t9\n10\t30\n2\t7\n",
    "timed.inter": "item_id:token\trating:float\tuser_id:token\ttimestamp:float\n"
    "7\t1\t2\t30\n30\t5\t10\t9.5\n9\t1\t10\t1\n7\t2\t2\t10\n9\t2\t2\t20\n",
    "a.csv": "user,item,time\n2,7,30\n10,30,9\n10,9,1\n2,7,10\n2,9,20\n",
    "bom.csv.gz": '\ufeff"user_id","item_id"\n"2",7\n2,9\n10,"9"\n10,30\n2,7\n',
    "a.tsv": "user_id\titem_id\ttimestamp\n2\t7\t2020-01-03\n2\t9\t2020-01-02\n10\t9\t2020-01-01\n"
    "10\t30\t2020-01-02\n2\t7\t2020-01-01\n",
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_reads_the_same_histories(tmp_path, name):
    data = SequenceData.read(write(tmp_path, name, FILES[name]))
    assert data.user_ids.tolist() == [2, 10]  # ascending as numbers
    assert data.item_ids.tolist() == [None, 7, 9, 30]
    assert lists(data.sequences) == [[1, 2, 1], [2, 3]]
    assert (data.num_users, data.num_items, data.num_interactions) == (2, 3, 5)
    times = {
        "timed.inter": [10, 20, 30, 1, 9.5],
        "a.csv": [10, 20, 30, 1, 9],
        "a.tsv": [
            datetime.fromisoformat(f"2020-01-0{day}T00:00:00+00:00").timestamp() for day in (1, 2, 3, 1, 2)
        ],
    }
    assert (None if data.times is None else data.times.tolist()) == times.get(name)


def test_equal_times_keep_the_order_of_the_file(tmp_path):
    rng = np.random.default_rng(0)
    users, items, times = rng.integers(0, 4, 200), rng.integers(0, 9, 200), rng.integers(0, 5, 200)
    lines = [f"{u},{i},{t}" for u, i, t in zip(users, items, times, strict=True)]
    data = SequenceData.read(write(tmp_path, "a.csv", "\n".join(["user,item,time", *lines])))
    histories = defaultdict(list)
    for row in sorted(range(200), key=lambda row: times[row]):  # sorted is stable
        histories[int(users[row])].append(int(items[row]))
    assert [data.decode(row).tolist() for row in map(data.sequences.__getitem__, range(4))] == [
        histories[user] for user in data.user_ids.tolist()
    ]


def test_ids_stay_what_they_are(tmp_path):
    data = SequenceData.read(write(tmp_path, "a.txt", "u1 007 7\nu2 B00X +7\n"))
    assert data.item_ids.tolist() == [None, "+7", "007", "7", "B00X"]
    assert data.user_ids.tolist() == ["u1", "u2"]
    assert data.encode(["7", "none", "B00X"]).tolist() == [3, 0, 4]
    assert data.decode([[4, 0]]).tolist() == [["B00X", None]]
    with pytest.raises(TypeError, match="ids here are like '\\+7', the first given is 7; give strings"):
        data.encode(np.array([7]))
    with pytest.raises(IndexError, match=r"codes are 0\.\.4, given 5\.\.5"):
        data.decode([5])
    for ids in (["007", "8"], ["+7", "8"], ["0x1F", "8"], ["9" * 20, "8"]):
        data = SequenceData.read(write(tmp_path, "b.txt", f"1 {' '.join(ids)}\n"))
        assert data.item_ids.tolist() == [None, *sorted(ids)]
    quotes = SequenceData.read(write(tmp_path, "b.inter", 'user_id:token\titem_id:token\n1\t"a\n1\tb"\n'))
    assert quotes.item_ids.tolist() == [None, '"a', 'b"']
    numbers = SequenceData.read(write(tmp_path, "b.txt", "1 -3 7\n"))
    assert numbers.encode(np.array([7, -3, 8])).tolist() == [2, 1, 0]


def test_txt_is_pairs_only_if_every_line_has_two_words(tmp_path):
    ambiguous = write(tmp_path, "a.txt", "1 5\n2 6\n")
    for format in ("auto", "words", "pairs"):
        data = SequenceData.read(ambiguous, format)
        assert lists(data.sequences) == [[1], [2]]
    with pytest.raises(ValueError, match=r"user '1' stands on lines 1 and 3 of .*a.txt.*format='pairs'"):
        SequenceData.read(write(tmp_path, "a.txt", "1 5\n2 6 7\n1 8\n"))
    with pytest.raises(ValueError, match=r"line 2 of .*a.txt is '2 6 7'; it must be a user and an item"):
        SequenceData.read(tmp_path / "a.txt", "pairs")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.seq.tsv", "1\t2 3\n2\t4  5\n", r"line 2 of .*a.seq.tsv is '2\\t4  5'; it must be a user, a tab"),
        ("a.seq.tsv", "1 2 3\n", r"line 1 of .*a.seq.tsv is '1 2 3'; it must be a user, a tab"),
        ("a.seq.tsv", "1\t2\n\t4\n", r"line 2 of"),
        ("a.seq.tsv", "1\t2\n2\t\n", r"line 2 of"),
        ("a.seq.tsv", "1\t2\n2\t3\t4\n", r"line 2 of"),
        ("a.seq.tsv", "1\t2\n\n2\t3\n1\t4\n", r"user '1' stands on lines 1 and 4 of"),
        ("a.seq.tsv", "", "there are no interactions"),
        ("a.txt", "1 2 3\n4\n", r"line 2 of .*a.txt is '4'; it must be a user and at least one item"),
        (
            "a.inter",
            "user:token\titem_id:token\n1\t2\n3\n",
            r"line 3 of .* has 1 columns, the heading 2: '3'",
        ),
        (
            "a.inter",
            "user_id:token\tthing:token\n",
            "no columns 'item_id' or 'item' for the item; it has user_id, ",
        ),
        ("a.csv", "user,item\n1,2\n\n3,\n", r"the item id is empty in line 4 of .*a.csv"),
        ("a.csv", "user,item\n1,2\n,2\n", r"the user id is empty in line 3 of .*a.csv"),
        ("a.csv", 'user,item\n"1\n1",2\n,2\n', r"the user id is empty in line 4 of .*a.csv"),
        ("a.csv", "user,item,time\n1,2,3\n1,2,\n", r"the time is missing in line 3 of .*a.csv"),
        ("a.csv", "user,item,time\n1,2,3\n1,2,soon\n", r"the time 'soon' in line 3 of .*a.csv is no number"),
        ("a.csv", "user,item,time\n1,2,3\n1,2,inf\n", r"the time in line 3 of .*a.csv is inf; give a finite"),
        ("a.csv", "user,item,user\n1,2,3\n", "has 2 columns 'user' for the user"),
        ("a.csv", "user,item\n", "there are no interactions"),
        ("a.csv", "", "no columns 'user_id' or 'user' for the user; it has none"),
        ("a.dat", "1 2", "the name does not tell the format"),
    ],
)
def test_refusals_name_file_and_line(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        SequenceData.read(write(tmp_path, name, text))


def test_refuses_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.csv does not exist"):
        SequenceData.read(tmp_path / "none.csv")
    with pytest.raises(FileNotFoundError, match=r"none.parquet does not exist"):
        SequenceData.read(tmp_path / "none.parquet")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        SequenceData.read(tmp_path, "pairs")
    whole = gzip.compress(b"1\t2 3\n" * 100)
    (tmp_path / "a.seq.tsv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged gzip file"):
        SequenceData.read(tmp_path / "a.seq.tsv.gz")
    (tmp_path / "a.txt").write_bytes(b"1 2\n3 \xff\n")
    with pytest.raises(ValueError, match=r"line 2 of .*a.txt is no UTF-8 text"):
        SequenceData.read(tmp_path / "a.txt")
    (tmp_path / "a.csv").write_bytes(b"user,item\n1,\xff\n")
    with pytest.raises(ValueError, match=r"line 2 of .*a.csv is no UTF-8 text"):
        SequenceData.read(tmp_path / "a.csv")
    (tmp_path / "a.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"a.parquet cannot be read as Parquet"):
        SequenceData.read(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="format 'json' is none of auto, seq"):
        SequenceData.read(tmp_path / "a.csv", "json")
    with pytest.raises(ValueError, match="user=, item= and time= name columns"):
        SequenceData.read(tmp_path / "a.txt", user="u")


def test_reads_parquet_and_named_columns(tmp_path):
    table = pa.table(
        {
            "who": pa.array(["b", "a", "b"]).dictionary_encode(),
            "what": pa.array([5, 5, 4], pa.int32()),
            "when": pa.array([datetime(2020, 1, 2), datetime(2020, 1, 1), datetime(2020, 1, 1)]),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    for data in (
        SequenceData.read(tmp_path / "a.parquet", user="who", item="what", time="when"),
        SequenceData.from_dataframe(table, "who", "what", "when"),
    ):
        assert data.user_ids.tolist() == ["a", "b"]
        assert data.item_ids.tolist() == [None, 4, 5]
        assert lists(data.sequences) == [[2], [1, 2]]
        assert np.diff(data.times).tolist() == [0, 86_400]
    with pytest.raises(
        ValueError, match=r"a.parquet has no columns 'user_id' or 'user' for the user; it has who"
    ):
        SequenceData.read(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"has 0 columns 'day' for the time; .*Name the column with time="):
        SequenceData.read(tmp_path / "a.parquet", user="who", item="what", time="day")


def test_takes_data_frames():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "user": ["y", "x", "y"],
            "item": [3, 2, 1],
            "time": pandas.to_datetime(["2020-01-02"] * 2 + ["2020-01-01"]),
        }
    )
    data = SequenceData.from_dataframe(frame, time="time")
    assert lists(data.sequences) == [[2], [1, 3]]
    assert lists(SequenceData.from_dataframe(frame).sequences) == [[2], [1, 3]]
    assert lists(SequenceData.from_dataframe(frame, time=None).sequences) == [[2], [3, 1]]
    categories = SequenceData.from_dataframe(frame.astype({"user": "category"}))
    assert categories.user_ids.tolist() == ["x", "y"]
    frame.loc[1, "user"] = None
    with pytest.raises(ValueError, match=r"the user id is missing in row 1 \(the first is 0\)"):
        SequenceData.from_dataframe(frame)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": [1, 2], "item": [1, None]}, "the item id is missing in row 1"),
        ({"user": [1, 2], "item": [1.5, 2.0]}, "the item id has the type double; give integers or strings"),
        ({"user": [1, "a"], "item": [1, 2]}, "user mixes types"),
        ({"user": [1, 2], "item": ["a", ""]}, "the item id is empty in row 1"),
        ({"user": [1, 2], "item": [1]}, "different lengths: {'user': 2, 'item': 1}"),
        ({"user": [1, 2]}, "the table has no columns 'item_id' or 'item' for the item; it has user"),
        ({"user": [], "item": []}, "there are no interactions"),
    ],
)
def test_refuses_tables(columns, message):
    with pytest.raises(ValueError, match=message):
        SequenceData.from_dataframe(columns)


def test_refuses_what_is_no_table():
    with pytest.raises(TypeError, match="list is no table"):
        SequenceData.from_dataframe([[1, 2]])


def test_refuses_times_that_are_no_times():
    columns = {"user": [1, 1], "item": [1, 2]}
    with pytest.raises(ValueError, match=r"the time in row 1 \(the first is 0\) is nan"):
        SequenceData.from_dataframe({**columns, "time": pa.array([1, float("nan")])}, time="time")
    with pytest.raises(ValueError, match="the time 'a' in row 1"):
        SequenceData.from_dataframe({**columns, "time": ["3", "a"]}, time="time")


def test_refuses_parts_that_do_not_fit():
    data = from_rows([[1, 2], [2, 3]], [[5, 6], [1, 1]])
    with pytest.raises(ValueError, match=r"item code 4 at place 1 is not in 1..3"):
        replace(data, sequences=Sequences(np.array([1, 4, 2, 3]), data.sequences.offsets))
    with pytest.raises(ValueError, match="user_ids has 1 entries, expected 2"):
        replace(data, user_ids=data.user_ids[:1])
    with pytest.raises(ValueError, match=r"time falls from 6 to 5 within the history of user 1"):
        replace(data, times=np.array([6, 5, 1, 1]))
    with pytest.raises(ValueError, match=r"time falls from 3 to 2 within the history of user 2"):
        replace(data, times=np.array([5, 6, 3, 2]))
    with pytest.raises(ValueError, match=r"time nan at place 1 is not finite"):
        replace(data, times=np.array([6, np.nan, 1, 1]))


# Descriptions of items


def test_joins_texts_by_id(tmp_path):
    data = from_rows([[10, 20, 30]])
    path = write(
        tmp_path, "a.items.tsv.gz", "20\tAlien\t1979\tHorror Sci-Fi\n30\tUp\t\t\n99\tM\t1931\tCrime\n"
    )
    expected = [None, None, "Alien (1979). Genres: Horror Sci-Fi", "Up"]
    assert data.join(items=path).texts == expected
    assert data.join(items=str(path)).texts == expected
    assert data.join(items={20: expected[2], 30: "Up", 10: None}).texts == expected
    typed = write(
        tmp_path,
        "a.item",
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "20\tAlien\t1979\tHorror Sci-Fi\n30\tUp\t\t\n",
    )
    assert data.join(items=typed).texts == expected
    table = pa.table(
        {
            "item": [20, 30],
            "title": ["Alien", "Up"],
            "year": [1979, None],
            "genres": [["Horror", "Sci-Fi"], []],
        }
    )
    assert data.join(items=table).texts == expected
    pq.write_table(table, tmp_path / "a.parquet")
    assert data.join(items=tmp_path / "a.parquet").texts == expected
    text = write(tmp_path, "a.csv", 'item_id,text\n20,"two\nlines, one comma"\n')
    assert data.join(items=text).texts == [None, None, "two\nlines, one comma", None]
    long = "".join(f'{i},"{"line" * 20}\n{i}"\n' for i in range(15_000))  # more than Arrow reads at a time
    text = write(tmp_path, "long.csv", "item_id,text\n" + long)
    assert data.join(items=text).texts[1:] == [f"{'line' * 20}\n{i}" for i in (10, 20, 30)]
    strings = from_rows([["020", "20"]]).join(items=path)
    assert strings.texts == [None, None, expected[2]]


def test_joins_attributes_by_id(tmp_path):
    data = from_rows([[10, 20, 30]])
    path = write(tmp_path, "a.attr.tsv.gz", "30\t7 5\n10\t\n20\t5\n99\t8\n")
    table = pa.table({"item": [30, 30, 20, 99], "attribute": [7, 5, 5, 8]})
    for source in (path, {30: [7, 5], 10: [], 20: [5], 99: [8]}, table):
        joined = data.join(attributes=source)
        assert joined.attribute_ids.tolist() == [5, 7, 8]
        assert lists(joined.attributes) == [[], [], [0], [1, 0]]
    named = data.join(attributes={10: ["red"], 30: ["blue", "red"]})
    assert named.attribute_ids.tolist() == ["blue", "red"]
    assert lists(named.attributes) == [[], [1], [], [0, 1]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.items.tsv", "10\tA\t1\n", r"line 1 of .*a.items.tsv has 3 columns"),
        ("a.items.tsv", "10\tA\t\t\n\n10\tB\t\t\n", r"line 3 of .*a.items.tsv tells of item 10 again"),
        ("a.items.tsv", "10\tA\t\t\n\tB\t\t\n", r"line 2 of .*a.items.tsv has no item id"),
        ("a.items.tsv", "11\tA\t\t\n", r"tell of none of the 3 items; its first id is 11, the data's 10"),
        ("a.csv", "item\n10\n", "neither a column 'text' nor a column 'title'"),
        ("a.txt", "10 A\n", "is no file of a known kind"),
    ],
)
def test_refuses_texts(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        from_rows([[10, 20, 30]]).join(items=write(tmp_path, name, text))


def test_refuses_attributes_and_other_descriptions(tmp_path):
    data = from_rows([[10, 20, 30]])
    with pytest.raises(ValueError, match=r"line 2 of .*a.attr.tsv is '10 4'; it must be an item, a tab"):
        data.join(attributes=write(tmp_path, "a.attr.tsv", "20\t1\n10 4\n"))
    with pytest.raises(ValueError, match=r"item '20' stands on lines 1 and 2"):
        data.join(attributes=write(tmp_path, "a.attr.tsv", "20\t1\n20\t4\n"))
    with pytest.raises(ValueError, match="tell of none of the 3 items; its first id is 'x', the data's 10"):
        data.join(attributes={"x": [1]})
    with pytest.raises(ValueError, match="item 10 has 3 for a text"):
        data.join(items={10: 3})
    with pytest.raises(ValueError, match="attributes mixes types"):
        data.join(attributes={10: [1, "a"]})
    with pytest.raises(TypeError, match="int is no table"):
        data.join(items=3)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("Alien", "1979", "Horror"), "Alien (1979). Genres: Horror"),
        (("Alien", "", "Horror"), "Alien. Genres: Horror"),
        (("", "", "Horror"), "Genres: Horror"),
        (("", "1979", ""), "1979"),
        ((" Alien ", "", ""), "Alien"),
        (("", "", ""), ""),
    ],
)
def test_a_sentence_leaves_out_what_is_unknown(parts, text):
    assert item_text(*parts) == text


# Filtering


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=8), min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_k_core_is_that_of_a_loop(rows, users, items):
    times = [list(range(10 * u, 10 * u + len(row))) for u, row in enumerate(rows)]
    data = from_rows(rows, times)
    data = data.join(items={i: f"text {i}" for i in range(1, 7)}, attributes={i: [i] for i in range(1, 7)})
    kept = {
        u: list(zip(row, time, strict=True)) for u, (row, time) in enumerate(zip(rows, times, strict=True), 1)
    }
    while True:
        count = Counter(item for row in kept.values() for item, _ in row)
        fewer = {u: [x for x in row if count[x[0]] >= items] for u, row in kept.items() if len(row) >= users}
        if fewer == kept:
            break
        kept = fewer
    kept = {u: row for u, row in kept.items() if row}
    if not kept:
        with pytest.raises(ValueError, match="leaves nothing"):
            data.k_core(users, items)
        return
    core = data.k_core(users, items)
    assert core.user_ids.tolist() == list(kept)
    assert [core.decode(core.sequences[row]).tolist() for row in range(core.num_users)] == [
        [item for item, _ in row] for row in kept.values()
    ]
    assert core.times.tolist() == [time for row in kept.values() for _, time in row]
    assert core.item_ids.tolist() == [None, *sorted({item for row in kept.values() for item, _ in row})]
    assert core.texts == [None, *(f"text {i}" for i in core.item_ids[1:])]
    assert [core.attribute_ids[row].tolist() for row in lists(core.attributes)] == [
        [],
        *([i] for i in core.item_ids[1:]),
    ]


def test_k_core_refuses_numbers_below_one():
    with pytest.raises(ValueError, match=r"k_core\(users=0, items=5\): give at least 1"):
        from_rows([[1]]).k_core(0)


# Splits


def padded(sequences, length, left=False):
    matrix = np.zeros((len(sequences), length), np.int64)
    for row, items in enumerate(lists(sequences.last(length))):
        matrix[row, (length - len(items) if left else 0) : length if left else len(items)] = items
    return matrix


@pytest.mark.parametrize(
    ("fixture", "short", "left"),
    [("recsys_protocol-split", "fewer", False), ("sracl-windows", "train", True)],
)
def test_leave_last_out_is_that_of_the_reference(fixture, short, left):
    reference = np.load(REFERENCE / f"{fixture}.npz")
    rows = np.split(reference["seq_flat"], np.cumsum(reference["seq_len"])[:-1])
    data = from_rows([row.tolist() for row in rows])
    split = data.split(short=short)
    split.check()

    def ids(codes):
        return np.array([0, *data.item_ids[1:]], np.int64)[codes]

    rows, ends = split.samples()
    prefixes = split.train.windows(rows, 0, ends)
    targets = split.train.items[split.train.offsets[rows] + ends]
    samples = Cases(prefixes, targets, rows)
    for name, cases in (("train", samples), ("valid", split.valid), ("test", split.test)):
        np.testing.assert_array_equal(data.user_ids[cases.users], reference[f"{name}_uid"])
        np.testing.assert_array_equal(ids(padded(cases.histories, 6, left)), reference[f"{name}_seq"])
        np.testing.assert_array_equal(ids(cases.targets), reference[f"{name}_target"])
        lengths = cases.histories.lengths
        if name == "train" or fixture == "recsys_protocol-split":  # else the reference counts what it cut off
            lengths = np.minimum(lengths, 6)
        np.testing.assert_array_equal(lengths, reference[f"{name}_len"])


def test_short_users():
    data = from_rows([[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]])
    fewer, train = data.split(), data.split(short="train")
    assert lists(fewer.train) == [[1], [1, 2], [1, 2], [1, 2]]
    assert (fewer.valid.users.tolist(), fewer.test.users.tolist()) == ([3], [2, 3])
    assert lists(train.train) == [[1], [1, 2], [1], [1, 2]]
    assert (train.valid.users.tolist(), train.test.users.tolist()) == ([2, 3], [2, 3])
    assert [a.tolist() for a in fewer.samples()] == [[1, 2, 3], [1, 1, 1]]
    assert train.statistics() == {
        "train_interactions": 6,
        "train_users": 4,
        "train_items": 2,
        "train_samples": 2,
        "valid_cases": 2,
        "test_cases": 2,
        "valid_unseen": 1,  # user 4 has item 3, which only held-out places hold
        "test_unseen": 2,
    }


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=7), min_size=1, max_size=6),
    st.integers(1, 19),
    st.integers(1, 10),
)
def test_global_time_is_that_of_a_loop(times, first, gap):
    times = [sorted(row) for row in times]
    rows = [[100 * u + i for i in range(len(row))] for u, row in enumerate(times)]
    data = from_rows(rows, times)
    cuts = (first, first + gap)
    train, valid, test = [], [], []
    for u, (row, when) in enumerate(zip(rows, times, strict=True)):
        train.append([item for item, t in zip(row, when, strict=True) if t < cuts[0]])
        for name, low, high in ((valid, *cuts), (test, cuts[1], np.inf)):
            place = next((i for i, t in enumerate(when) if t >= low), None)
            if place and when[place] < high:
                name.append((u, row[:place], row[place]))
    if not valid or not test:
        with pytest.raises(ValueError, match=r"give two rising times.*Times run from"):
            data.split("global-time", cuts=cuts)
        return
    split = data.split("global-time", cuts=cuts)
    split.check()
    assert [data.decode(row).tolist() for row in map(split.train.__getitem__, range(len(rows)))] == train
    for cases, expected in ((split.valid, valid), (split.test, test)):
        found = [
            (int(u), data.decode(cases.histories[i]).tolist(), data.item_ids[target])
            for i, (u, target) in enumerate(zip(cases.users, cases.targets, strict=True))
        ]
        assert found == expected
    seen = {item for row in train for item in row}
    assert split.statistics()["test_unseen"] == sum(target not in seen for _, _, target in test)


def test_fractions_cut_where_so_many_interactions_are_past():
    data = SequenceData.generate(users=200, items=64, seed=3)
    split = data.split("global-time", fractions=(0.7, 0.85))
    split.check()
    ordered = np.sort(data.times)
    n = data.num_interactions
    assert len(split.train.items) == int(0.7 * n)
    cuts = (ordered[int(0.7 * n)], ordered[int(0.85 * n)])
    again = data.split("global-time", cuts=cuts)
    assert again.test.targets.tolist() == split.test.targets.tolist()


def test_refuses_splits():
    data = from_rows([[1, 2, 3]])
    with pytest.raises(ValueError, match=r"these data have none; read them with a time column"):
        data.split("global-time")
    with pytest.raises(ValueError, match="kinds are 'leave-last-out' and 'global-time'"):
        data.split("random")
    with pytest.raises(ValueError, match="short is 'fewer' or 'train'"):
        data.split(short="drop")
    with pytest.raises(ValueError, match="cuts belong to kind='global-time'"):
        data.split(cuts=(1, 2))
    timed = from_rows([[1, 2, 3]], [[1, 2, 3]])
    with pytest.raises(ValueError, match=r"fractions are \(0.9, 0.8\)"):
        timed.split("global-time", fractions=(0.9, 0.8))
    with pytest.raises(ValueError, match=r"the cuts 3 and 2 give 2 training interactions"):
        timed.split("global-time", cuts=(3, 2))


# Checks


def tampered(split, **parts):
    return Split(
        **{"data": split.data, "train": split.train, "valid": split.valid, "test": split.test, **parts}
    )


def test_finds_leaks():
    data = from_rows([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
    split = data.split()
    split.check()
    full = data.sequences
    with pytest.raises(ValueError, match="target 4 of valid case 0, user 1, is a training item"):
        tampered(split, train=full).check()
    repeating = from_rows([[1, 2, 3, 4, 4], [5, 4, 3, 2, 1]])
    with pytest.raises(
        ValueError, match="target 4 of valid case 0, user 1, has training items outside its history"
    ):
        tampered(repeating.split(), train=repeating.sequences).check()
    other = Cases(split.test.histories, split.test.targets, split.test.users[::-1])
    with pytest.raises(ValueError, match="of test case 0, user 2, is a training item"):
        tampered(split, test=other).check()
    shifted = Cases(split.test.histories.drop_last(1), split.test.targets, split.test.users)
    with pytest.raises(ValueError, match=r"test case 0, user 1, does not follow its history \(2 such in 2\)"):
        tampered(split, test=shifted).check()
    whole = Cases(full, split.test.targets, split.test.users)
    with pytest.raises(ValueError, match="is not in the user's history"):
        tampered(split, test=whole).check()
    mixed = Cases(Sequences.from_lists([[2, 1, 3, 4], [5, 4, 3, 2]]), split.test.targets, split.test.users)
    with pytest.raises(ValueError, match="test case 0, user 1, has another history than the user"):
        tampered(split, test=mixed).check()
    with pytest.raises(ValueError, match="training has 1 rows, the data 2 users"):
        tampered(split, train=split.train.take([0])).check()


def test_finds_rows_that_stand_twice():
    data = from_rows([[1, 2, 1, 2], [2, 2]], [[1, 2, 3, 4], [1, 2]])
    data.check()
    from_rows([[1, 1]]).check()  # without times this may be two purchases
    with pytest.raises(ValueError, match=r"user 2 has item 2 at time 1 more than once \(1 such rows\)"):
        from_rows([[1, 2, 1, 2], [2, 1, 2]], [[1, 2, 3, 4], [1, 1, 1]]).check()


def test_repr_gives_sizes():
    data = SequenceData.generate(users=1200, items=40, seed=0)
    split = data.split("leave-last-out")
    sizes = f"SequenceData(1,200 users, {data.num_items} items, {data.num_interactions:,} interactions)"
    assert repr(data) == sizes
    assert sizes in repr(split)


def test_statistics():
    data = from_rows([[1, 2, 3], [1] * 21, list(range(1, 53)), [7]])
    n = [3, 21, 52, 1]
    assert data.statistics() == {
        "users": 4,
        "items": 52,
        "interactions": 77,
        "mean_length": 77 / 4,
        "density": 77 / (4 * 52),
        "min_length": 1,
        "median_length": 12,
        "p95_length": np.percentile(n, 95),
        "max_length": 52,
        "longer_than_20": 1,
        "longer_than_50": 1,
        "repeats": 20,
        "train_samples": 18 + 49,
    }


TABLE = {
    "amazon-beauty": (22_363, 12_101, 198_502, 8.88, 0.0734, 5, 6, 21, 204, 144, 1_019, 0, 131_413),
    "amazon-sports": (35_598, 18_357, 296_337, 8.32, 0.0453, 5, 6, 18, 296, 83, 1_119, 0, 189_543),
    "amazon-toys": (19_412, 11_924, 167_597, 8.63, 0.0724, 5, 6, 20, 550, 112, 808, 0, 109_361),
    "amazon-office": (4_905, 2_420, 53_258, 10.86, 0.4487, 5, 7, 29, 94, 25, 479, 0, 38_543),
    "yelp-a": (30_431, 20_033, 316_354, 10.40, 0.0519, 5, 7, 27, 350, 336, 2_398, 11_830, 225_061),
    "yelp-b": (19_936, 14_587, 207_952, 10.43, 0.0715, 5, 7, 27, 236, 180, 1_624, 7_125, 148_144),
    "taobao": (47_703, 53_324, 637_165, 13.36, 0.0250, 3, 12, 24, 168, 121, 3_612, 23_870, 494_056),
    "ml-100k": (943, 1_682, 100_000, 106.0, 6.3047, 20, 65, 311, 737, 551, 887, 0, 97_171),
}


@pytest.mark.parametrize("name", TABLE)
def test_real_data(name):
    folder = Path(os.environ.get("CONTRASTIVE_DATA", "")) / "recsys"
    path = folder / f"{name}.seq.tsv.gz"
    if "CONTRASTIVE_DATA" not in os.environ or not path.is_file():
        pytest.skip(f"CONTRASTIVE_DATA names no folder with recsys/{name}.seq.tsv.gz")
    items, attributes = (folder / f"{name}.{kind}.tsv.gz" for kind in ("items", "attr"))
    data = SequenceData.read(
        path,
        items=items if items.is_file() else None,
        attributes=attributes if attributes.is_file() else None,
    )
    found = data.statistics()
    values = (
        *(found[key] for key in ("users", "items", "interactions")),
        round(found["mean_length"], 1 if name == "ml-100k" else 2),
        round(100 * found["density"], 4),
        *(round(found[f"{key}_length"]) for key in ("min", "median", "p95", "max")),
        *(found[key] for key in ("longer_than_50", "longer_than_20", "repeats", "train_samples")),
    )
    assert values == TABLE[name]
    data.split().check()
    if name not in ("taobao", "ml-100k"):
        assert data.k_core().num_interactions == data.num_interactions
    if data.texts is not None:
        assert data.texts[data.encode([2])[0]] == "GoldenEye (1995). Genres: Action Adventure Thriller"
    if data.attributes is not None:
        assert (data.attributes.lengths[1:] == 0).sum() == (name == "yelp-a")


# Invented data


def test_the_same_seed_makes_the_same_data():
    first, again, other = (SequenceData.generate(users=50, items=40, seed=seed) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint
    assert first.texts == again.texts
    assert lists(first.attributes) == lists(again.attributes)
    assert first.fingerprint != other.fingerprint
    assert (first.num_users, first.num_items) == (50, 40)
    assert first.sequences.lengths.min() >= 5
    first.check()
    first.split().check()


def test_invented_histories_have_the_structure_that_is_told():
    users, items, clusters = 3_000, 160, 8
    made = synthetic_histories(users, items, 0, clusters, 12.0, 0.6)
    lengths = np.diff(made.offsets)
    assert abs(lengths.mean() - 12) < 0.5
    of_item = made.clusters[made.items - 1]
    owners = np.repeat(np.arange(users), lengths)
    visited = np.zeros((users, clusters), bool)
    visited[owners, of_item] = True
    assert visited.sum(1).max() == 2
    same = owners[1:] == owners[:-1]
    stays = (of_item[1:] == of_item[:-1])[same]
    assert abs(stays.mean() - 0.8) < 0.02  # follows .6, otherwise a fair coin between two
    # From an item lead three ways by either taste: six take the share that follows, and some of the rest.
    counts = np.zeros((items, items))
    np.add.at(counts, (made.items[:-1][same] - 1, made.items[1:][same] - 1), 1)
    top = np.sort(counts, axis=1)
    assert 0.6 < top[:, -6:].sum() / counts.sum() < 0.8
    for taste in (0, 1):  # three ways by one taste
        own = same & (made.tastes[owners[1:]] == taste)
        counts = np.zeros((items, items))
        np.add.at(counts, (made.items[:-1][own] - 1, made.items[1:][own] - 1), 1)
        assert 0.6 < np.sort(counts, axis=1)[:, -3:].sum() / counts.sum() < 0.75
    assert top[:, -3:].sum() / top.sum() < 0.58


def test_last_item_beats_popularity_on_invented_data():
    data = SequenceData.generate()
    split = data.split()
    rows, ends = split.samples()
    places = split.train.offsets[rows] + ends
    counts = np.zeros((data.num_items + 1, data.num_items + 1))
    np.add.at(counts, (split.train.items[places - 1], split.train.items[places]), 1)
    popularity = np.bincount(split.train.items, minlength=data.num_items + 1)
    last = split.test.histories.last(1).items

    def hits(scores):
        target = scores[np.arange(len(last)), split.test.targets]
        return ((scores >= target[:, None]).sum(1) <= 10).mean()

    assert hits(counts[last] + 1e-6 * popularity) > 3 * hits(np.tile(popularity, (len(last), 1)))


def test_texts_and_attributes_tell_the_cluster():
    made = synthetic_histories(10, 120, 0, 14, 8.0, 0.6)  # more clusters than themes
    for described in ([text.split("Genres: ")[1] for text in made.texts], [a[0] for a in made.attributes]):
        assert len(set(zip(described, made.clusters.tolist(), strict=True))) == 14
    assert len(set(made.texts)) == 120


@pytest.mark.parametrize(
    "wrong", [{"users": 0}, {"clusters": 1}, {"items": 31}, {"mean_length": 4}, {"follow": 1.1}]
)
def test_refuses_to_invent(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}"):
        SequenceData.generate(**wrong)


# Writing


@pytest.mark.parametrize("name", ["a.seq.tsv", "a.seq.tsv.gz"])
def test_what_is_written_is_read_again(tmp_path, name):
    data = SequenceData.generate(users=40, items=40)
    data.write(tmp_path / name)
    first = (tmp_path / name).read_bytes()
    again = SequenceData.read(tmp_path / name)
    assert [again.decode(row).tolist() for row in lists(again.sequences)] == [
        data.decode(row).tolist() for row in lists(data.sequences)
    ]
    data.write(tmp_path / name)
    assert (tmp_path / name).read_bytes() == first
    assert name == "a.seq.tsv" or first[4:8] == bytes(4)  # no date, which would change the bytes
    assert os.listdir(tmp_path) == [name]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.seq.tsv"
    from_rows([[1, 2]]).write(path)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        from_rows([[3, 4]]).write(path)
    assert path.read_text() == "1\t1 2\n"
    assert os.listdir(tmp_path) == [path.name]


def test_refuses_to_write(tmp_path):
    with pytest.raises(ValueError, match=r"the name must end in .seq.tsv or .seq.tsv.gz"):
        from_rows([[1]]).write(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="the id 'a b' holds blanks"):
        from_rows([["a b"]]).write(tmp_path / "a.seq.tsv")


def test_the_fingerprint_is_of_histories_times_and_ids():
    rows = [[1, 2], [2, 3]]
    prints = [
        data.fingerprint
        for data in (
            from_rows(rows),
            from_rows(rows, [[1, 2], [1, 2]]),
            from_rows(rows, [[1, 3], [1, 2]]),
            from_rows([["1", "2"], ["2", "3"]]),
            from_rows([[1, 2, 2], [3]]),
        )
    ]
    assert len(set(prints)) == 5
    assert from_rows(rows).join(items={1: "a"}).fingerprint == prints[0]
