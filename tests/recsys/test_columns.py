"""The columns of user, item and time: named, found, or refused; never a history in the order of a file by oversight."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys import RecommenderData, SequenceData


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def histories(data):
    return [data.decode(data.sequences[row]).tolist() for row in range(data.num_users)]


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "heading",
    [
        "user_id,item_id,timestamp",
        "userId,movieId,timestamp",
        "customer_id,product_id,ts",
        "reviewerID,asin,unixReviewTime",
        "User ID,Item ID,Timestamp",
        "USER,ITEM,TIMESTAMP",
        "visitor_id,sku,event_time",
        "uid,iid,time_ms",
        "user,item,unix_timestamp",
        "session_id,article,datetime",
        "user_id,book_id,created_at",
        "user,item,date",
    ],
)
@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "inter", "frame"])
def test_usual_names_are_found_and_time_orders(tmp_path, heading, kind):
    names = heading.split(",")
    rows = [(1, item, 1000 + item) for item in (5, 4, 3, 2, 1)]  # newest first
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    if kind == "frame":
        data = SequenceData.from_dataframe(columns)
    elif kind == "parquet":
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        data = SequenceData.read(tmp_path / "a.parquet")
    else:
        cut = "," if kind == "csv" else "\t"
        types = (":token", ":token", ":float") if kind == "inter" else ("",) * 3
        lines = [cut.join(name + end for name, end in zip(names, types, strict=True))]
        lines += [cut.join(map(str, row)) for row in rows]
        data = SequenceData.read(write(tmp_path / f"a.{kind}", "\n".join(lines) + "\n"))
    assert histories(data) == [[1, 2, 3, 4, 5]]
    assert data.columns == dict(zip(("user", "item", "time"), names, strict=True))
    assert data.order == f"by {names[2]}, equal times in the order of the source"


@pytest.mark.parametrize(
    ("heading", "message"),
    [
        (
            "user_id,customer_id,item_id",
            "several columns that may be the user: user_id, customer_id. Name one of them with .*--data.user= ",
        ),
        ("user_id,product_id,asin", "several columns that may be the item: product_id, asin. Name one"),
        ("user,item,timestamp,date", "several columns that may be the time: timestamp, date. Name one"),
        ("user,item,time,Time", "several columns that may be the time: time, Time"),
        ("user,item,day", r"a column that may be the time: day. Name the one with time= "),
        ("user,item,watchedAt", "a column that may be the time: watchedAt"),
        ("user,item,play_time,last_date", "columns that may be the time: play_time, last_date"),
        ("user,item,StartTimestamp", "a column that may be the time: StartTimestamp"),
    ],
)
def test_what_may_be_meant_twice_or_is_left_unread_is_refused(tmp_path, heading, message):
    path = write(tmp_path / "a.csv", heading + "\n" + ",".join("1234"[: heading.count(",") + 1]) + "\n")
    with pytest.raises(ValueError, match=message):
        SequenceData.read(path)
    columns = {name: [1] for name in heading.split(",")}
    with pytest.raises(ValueError, match=message):
        SequenceData.from_dataframe(columns)


def test_an_id_goes_before_a_name_and_the_item_before_its_parent(tmp_path):
    path = write(tmp_path / "a.csv", "user,user_id,item,product_id,session_id\nAnn,7,soap,3,1\n")
    data = SequenceData.read(path)
    assert data.columns == {"user": "user_id", "item": "product_id"}
    chosen = SequenceData.read(path, user="session_id", item="item")
    assert (chosen.user_ids.tolist(), chosen.item_ids.tolist()) == ([1], [None, "soap"])


def test_dates_under_another_name_are_not_passed_over(tmp_path):
    columns = {
        "user": [1, 1],
        "item": [2, 1],
        "seen": np.array(["2020-01-02", "2020-01-01"], "datetime64[s]"),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    text = write(tmp_path / "a.csv", "user,item,seen\n1,2,2020-01-02\n1,1,2020-01-01\n")
    for read in (
        lambda **more: SequenceData.read(tmp_path / "a.parquet", **more),
        lambda **more: SequenceData.read(text, **more),
        lambda **more: SequenceData.from_dataframe(columns, **more),
        lambda **more: SequenceData.from_dataframe(pa.table(columns), **more),
    ):
        with pytest.raises(ValueError, match="a column that may be the time: seen"):
            read()
        assert histories(read(time="seen")) == [[1, 2]]
        unread = read(time=None)
        assert histories(unread) == [[2, 1]]
        assert unread.order == "the order of the source, without times"
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match="a column that may be the time: seen"):
        SequenceData.from_dataframe(pandas.DataFrame(columns))


@pytest.mark.parametrize(
    "column", ["rating", "title", "quantity", "latitude", "sentiment", "updated", "rate"]
)
def test_other_columns_are_no_times(tmp_path, column):
    data = SequenceData.read(write(tmp_path / "a.csv", f"user,item,{column}\n1,2,3\n1,1,4\n"))
    assert (data.times, histories(data)) == (None, [[2, 1]])


UNREAD = {  # newest first, under names that say nothing
    "seconds": [1_577_923_200, 1_577_836_800],
    "milliseconds": [1_577_923_200_000, 1_577_836_800_000],
    "microseconds": [1_577_923_200_000_000, 1_577_836_800_000_000],
    "nanoseconds": [1_577_923_200_000_000_000, 1_577_836_800_000_000_000],
    "seconds with fractions": [1_577_923_200.25, 1_577_836_800.5],
    "numbers without signs": [20200102, 20200101],
    "with the time of day": [20200102093000, 20200101093000],
    "ISO": ["2020-01-02", "2020-01-01"],
    "ISO with zones": ["2020-01-02T00:00:00+01:00", "2020-01-01T00:00:00Z"],
    "slashes": ["2020/01/02", "2020/01/01"],
    "German": ["2.1.2020", "1.1.2020 12:30"],
    "American": ["1/2/2020", "1/1/20 1:30 PM"],
    "words": ["Jan 2, 2020", "1st January 2020"],
    "of Twitter": ["Thu Jan 02 10:00:00 +0000 2020", "Wed Jan 01 10:00:00 +0000 2020"],
    "of HTTP": ["Thu, 02 Jan 2020 10:00:00 GMT", "Wed, 01 Jan 2020 10:00:00 GMT"],
    "texts of numbers": ["1577923200", " 1577836800.0"],
    "a mark for missing": [*range(1_577_923_200, 1_577_923_180, -1), -1],
    "empty cells": [1_577_923_200, None, 1_577_836_800],
}
NOTHING = ("added", "seen", "x", "info")
NAMED = (
    "when",
    "created",
    "stamp",
    "dt",
    "When",
    "CREATED",
    "trans_dt",
    "moment",
    "event_dt",
    "week",
    "t_stamp",
)


@pytest.mark.parametrize("values", UNREAD.values(), ids=UNREAD)
def test_times_are_known_by_their_values(tmp_path, values):
    rows = len(values)
    columns = {"user": [1] * rows, "item": list(range(rows, 0, -1)), "rating": [4] * rows, "info": values}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    cells = ["" if value is None else f'"{value}"' if isinstance(value, str) else value for value in values]
    lines = [f"1,{rows - at},4,{cell}" for at, cell in enumerate(cells)]
    text = write(tmp_path / "a.csv", "\n".join(["user,item,rating,info", *lines]) + "\n")
    for read in (
        lambda **more: SequenceData.read(tmp_path / "a.parquet", **more),
        lambda **more: SequenceData.read(text, **more),
        lambda **more: SequenceData.from_dataframe(columns, **more),
        lambda **more: RecommenderData(str(text), **more).data,
    ):
        with pytest.raises(
            ValueError, match=r"time: info\. Name .*--data\.time=info on .*\(--data\.time=null\)"
        ):
            read()
        assert histories(read(time=None)) == [list(range(rows, 0, -1))]


@pytest.mark.parametrize("name", NAMED)
def test_times_are_known_by_their_names(tmp_path, name):
    path = write(tmp_path / "a.csv", f"user,item,{name}\n1,2,7\n1,1,5\n")
    with pytest.raises(ValueError, match=f"a column that may be the time: {name}. "):
        SequenceData.read(path)
    assert histories(SequenceData.read(path, time=name)) == [[1, 2]]


@pytest.mark.parametrize("name", ["when", "created", "stamp", *NOTHING])
@pytest.mark.parametrize(
    "values",
    [[1, 2, 3], [0, 1, 2], [41, 42, 43], [True, False, True]],
    ids=["from 1", "from 0", "on", "flags"],
)
def test_the_number_of_a_row_is_no_time(tmp_path, name, values):
    rows = "".join(f"1,{9 - at},{value}\n" for at, value in enumerate(values))
    text = write(tmp_path / "a.csv", f"user,item,{name}\n" + rows)
    columns = {"user": [1] * 3, "item": [9, 8, 7], name: values}
    for data in (SequenceData.read(text), SequenceData.from_dataframe(columns)):
        assert (data.times, histories(data)) == (None, [[9, 8, 7]])


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "order_id": [1_577_923_200, 1_577_836_800],
        "ean": [4_006_381_333_931, 4_006_381_333_932],
        "price": [19.99, 5.0],
        "version": ["1.12.20", "1.2.3"],
        "length": ["1:30:00", "0:45:00"],
        "year": [1995, 2020],
        "zip": [20001231, 19971101],
        "views": [3_000_000, 631_000_000],
        "title": ["May 2020", "12 monkeys"],
        "empty": [None, None],
        "kinds": [["a"], ["b"]],
    }.items(),
    ids=str,
)
def test_what_is_no_time_is_passed_over(tmp_path, name, values):
    columns = {"user": [1, 1], "item": [2, 1], name: values}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    rows = "".join(
        f"1,{item},{'' if value is None else value}\n" for item, value in zip((2, 1), values, strict=True)
    )
    reads = [SequenceData.read(tmp_path / "a.parquet"), SequenceData.from_dataframe(columns)]
    if name != "kinds":
        reads.append(SequenceData.read(write(tmp_path / "a.csv", f"user,item,{name}\n" + rows)))
    for data in reads:
        assert (data.times, histories(data)) == (None, [[2, 1]])


def test_a_column_of_another_library_is_read_by_its_own_way_to_arrow():
    class Series:
        def __init__(self, values):
            self.values = pa.array(values)

        def __len__(self):
            return len(self.values)

        def head(self, rows):
            return Series(self.values[:rows])

        def to_arrow(self):
            return self.values

    columns = {"user": Series([1, 1]), "item": Series([2, 1])}
    assert histories(SequenceData.from_dataframe(columns)) == [[2, 1]]
    with pytest.raises(ValueError, match="a column that may be the time: info"):
        SequenceData.from_dataframe(columns | {"info": Series([1_577_923_200, 1_577_836_800])})


# ---------------------------------------------------------------------- times

ISO = {
    "dates": ["2020-01-02", "2020-01-01"],
    "datetimes": ["2020-01-02 00:00:00", "2020-01-01 00:00:00"],
    "with T": ["2020-01-02T00:00:00", "2020-01-01T00:00:00"],
    "with Z": ["2020-01-02T00:00:00Z", "2020-01-01T00:00:00Z"],
    "with zones": ["2020-01-02T02:00:00+02:00", "2020-01-01T00:00:00+00:00"],
    "of both kinds": ["2020-01-02 00:00:00", "2020-01-01"],
    "with fractions": ["2020-01-02 00:00:00.000", "2020-01-01 00:00:00.000"],
    "numbers": ["1577923200", "1577836800"],
    "blanks": [" 1577923200", " 1577836800"],
    "floats": ["1577923200.0", "1.5778368e9"],
}


@pytest.mark.parametrize("name", ISO)
def test_times_that_are_written_out(tmp_path, name):
    texts = ISO[name]
    columns = {"user": [1, 1], "item": [2, 1], "time": texts}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    rows = "".join(f"1,{item},{text}\n" for item, text in zip((2, 1), texts, strict=True))
    for data in (
        SequenceData.read(write(tmp_path / "a.csv", "user,item,time\n" + rows)),
        SequenceData.read(tmp_path / "a.parquet"),
        SequenceData.from_dataframe(columns),
    ):
        assert histories(data) == [[1, 2]]
        assert data.times.tolist() == [1577836800, 1577923200]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            ["2020-01-02", "31.12.2020"],
            "the time '31.12.2020' in line 3 of .* is no number and no date as 2020-01-31",
        ),
        (["12/31/2020", "2020-01-02"], "the time '12/31/2020' in line 2"),
        (["12:30:00", "12:31:00"], "the time '12:30:00' in line 2"),
        (
            ["2020-01-02", "1577836800"],
            "the time '1577836800' in line 3 of .* is a number, and others are dates",
        ),
        (["2020-01-02T00:00:00Z", "2020-01-02T00:00:00"], "in line 3 of .* has no zone, and others have"),
        (["2020-01-02", ""], "the time is missing in line 3"),
    ],
)
def test_times_that_are_none_are_refused_with_their_line(tmp_path, texts, message):
    path = write(tmp_path / "a.csv", "user,item,time\n" + "".join(f"1,2,{text}\n" for text in texts))
    with pytest.raises(ValueError, match=message):
        SequenceData.read(path)


# ---------------------------------------------------------------------- files as they come


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.inter", "a.seq.tsv", "a.txt", "pairs.txt", "a.csv.gz"])
def test_newlines_and_encodings(tmp_path, ends, encoding, name):
    lines = {
        "a.tsv": ["user\titem", "u\té", "u\tb"],
        "a.inter": ["user_id:token\titem_id:token", "u\té", "u\tb"],
        "a.seq.tsv": ["u\té b"],
        "a.txt": ["u é b"],
        "pairs.txt": ["u é", "u b"],
    }.get(name, ["user,item", "u,é", "u,b"])
    content = "".join(line + ends for line in lines).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    data = SequenceData.read(tmp_path / name)
    assert (histories(data), data.user_ids.tolist()) == ([["é", "b"]], ["u"])


def test_lines_are_counted_whatever_ends_them(tmp_path):
    path = write(tmp_path / "a.csv", "user,item\r1,2\r\r1,\r")
    with pytest.raises(ValueError, match="the item id is empty in line 4 of"):
        SequenceData.read(path)
    for name, text in {"a.csv": "user,item\n1,2\n1,été\n", "a.txt": "1 2 3\n2 4\n3 été\n"}.items():
        with pytest.raises(
            ValueError, match=rf"line 3 of .*{name} is no UTF-8 text; .*iconv -f LATIN1 -t UTF-8"
        ):
            SequenceData.read(write(tmp_path / name, text, "latin-1"))
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\xd8\x00\xd8")
    with pytest.raises(ValueError, match=r"b.csv begins as UTF-16 does and is none"):
        SequenceData.read(tmp_path / "b.csv")


def test_latin_1_is_read_where_nobody_looks_and_refused_where_somebody_does(tmp_path):
    text = "user,item,title,time\n1,2,Amélie,5\n1,3,Léon,4\n"
    data = SequenceData.read(write(tmp_path / "a.csv", text, "latin-1"))
    assert histories(data) == [[3, 2]]
    unnamed = write(tmp_path / "b.csv", text.replace("time", "info").replace(",5", ",1577923200"), "latin-1")
    unnamed.write_bytes(unnamed.read_bytes().replace(b",4\n", b",1577836800\n"))
    with pytest.raises(ValueError, match="a column that may be the time: info"):
        SequenceData.read(unnamed)  # that other columns are no UTF-8 hides no times
    with pytest.raises(ValueError, match=r"line 2 of .*a.csv is no UTF-8 text; .*iconv"):
        SequenceData.read(tmp_path / "a.csv", user="title")
    with pytest.raises(ValueError, match=r"line 2 of .*a.csv is no UTF-8 text; .*iconv"):
        data.join(items=tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes((tmp_path / "a.csv").read_bytes().decode("latin-1").encode())
    assert data.join(items=tmp_path / "a.csv").texts == [None, "Amélie", "Léon"]


def test_blanks_around_ids_are_no_part_of_them(tmp_path):
    text = 'user_id, item_id, timestamp\n1, 10, 3\n1,10, 1\n 1 ,"11", 2\n1, "12", 4\n'
    data = SequenceData.read(write(tmp_path / "a.csv", text))
    assert data.item_ids.tolist() == [None, 10, 11, 12]
    assert histories(data) == [[10, 11, 10, 12]]
    named = SequenceData.read(tmp_path / "a.csv", item="item_id", time="timestamp")
    assert histories(named) == histories(data)


def test_semicolons_divide_where_no_commas_do(tmp_path):
    data = SequenceData.read(write(tmp_path / "a.csv", '"User-ID";"ISBN";"Rating"\n"1";"034X";"0"\n'))
    assert (data.columns, data.item_ids[1]) == ({"user": "User-ID", "item": "ISBN"}, "034X")


def test_commas_in_a_text_file_are_refused_unless_a_format_is_named(tmp_path):
    path = write(tmp_path / "a.txt", "1 10,11,12\n")
    with pytest.raises(ValueError, match=r"line 1 of .*a.txt is '1 10,11,12'; in a .txt file blanks stand"):
        SequenceData.read(path)
    assert SequenceData.read(path, "words").item_ids.tolist() == [None, "10,11,12"]


def test_a_folder_as_spark_writes_it_is_one_table(tmp_path):
    folder = tmp_path / "log.parquet"
    folder.mkdir()
    for part in (0, 1):
        table = pa.table({"user": [1, 2], "item": [9 - part, 5 + part], "time": [9 - part, part]})
        pq.write_table(table, folder / f"part-0000{part}.snappy.parquet")
    (folder / "_SUCCESS").touch()
    (folder / ".part-00000.crc").write_bytes(b"crc")
    data = SequenceData.read(folder)
    assert histories(data) == [[8, 9], [5, 6]]
    texts = tmp_path / "log.csv"
    texts.mkdir()
    write(texts / "part-0.csv", "user,item,time\n1,9,9\n2,5,0\n")
    write(texts / "part-1.csv", "user,item,time\n1,8,8.5\n2,6,1\n")
    assert histories(SequenceData.read(texts)) == [[8, 9], [5, 6]]
    write(texts / "part-1.csv", "user,item,time\n1,8,8\n2,,1\n")
    with pytest.raises(ValueError, match=r"the item id is empty in line 3 of .*part-1.csv"):
        SequenceData.read(texts)
    write(texts / "part-1.csv", "user,product,time\n1,8,8\n")
    with pytest.raises(ValueError, match=r"part-1.csv has other columns than the first file"):
        SequenceData.read(texts)
    (folder / "date=2020-01-01").mkdir()
    with pytest.raises(FileNotFoundError, match=r"is a folder with further folders, as date=2020-01-01"):
        SequenceData.read(folder)
    (tmp_path / "none.parquet").mkdir()
    with pytest.raises(FileNotFoundError, match=r"is a folder without files"):
        SequenceData.read(tmp_path / "none.parquet")


# ---------------------------------------------------------------------- from a configuration


def test_recommender_data_takes_what_reading_and_splitting_take(tmp_path):
    rows = "".join(f"{u},{10 * u + i},{5 - i}\n" for u in (1, 2, 3) for i in range(5))
    path = write(tmp_path / "a.dat", "who,what,moment\n" + rows)
    options = {"format": "csv", "user": "who", "item": "what"}
    data = RecommenderData(str(path), time="moment", **options)
    assert histories(data.data)[0] == [14, 13, 12, 11, 10]
    assert histories(RecommenderData(str(path), time=None, **options).data)[0] == [10, 11, 12, 13, 14]
    short = write(tmp_path / "b.csv", "user,item\n1,1\n1,2\n1,3\n")
    assert len(RecommenderData(str(short)).split.valid) == 0
    assert len(RecommenderData(str(short), short="train").split.valid) == 1
    by_time = RecommenderData(str(path), time="moment", split="global-time", cuts=(3, 4), **options)
    assert by_time.data.decode(by_time.split.test.targets).tolist() == [11, 21, 31]
    fractions = RecommenderData(
        str(path), time="moment", split="global-time", fractions=(0.4, 0.7), **options
    )
    assert len(fractions.split.train.items) == 6
    made = RecommenderData(synthetic={"users": 40, "items": 40, "mean_length": 7.5, "follow": 0.8})
    assert made.data.num_users == 40
    with pytest.raises(ValueError, match="synthetic has 'user'; it takes clusters, follow"):
        RecommenderData(synthetic={"user": 40})
    with pytest.raises(ValueError, match="time=None is of a file, and source is 'synthetic'"):
        RecommenderData(time=None)
