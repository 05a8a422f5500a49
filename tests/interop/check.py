"""Reads what fgm writes with engines that share no code with it: pyarrow, DuckDB, Polars and pandas; with --all ClickHouse and Spark too.

    check.py --parquet incident.parquet --data DIR --questions docs/query.md [--all]

All read every table of the data folder; row counts and the sums of all integer columns must be equal, in `recent/` and in `v1/`, and
the facts that the schema promises must hold of each file. The queries of docs/query.md run over the folder. Prints one line for each failure, then `N passed, N failed`;
exit code 1 if any failed or nothing was checked. Needs: requirements.txt, and requirements-all.txt for --all.
"""

import argparse
import decimal
import glob
import json
import os
import re
import sys

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

COMMON = [
    "ts", "ktime_ns", "cluster", "node", "boot_id", "scope", "pod_uid", "container_id", "qos", "cgroup_id",
    "parent_cgroup_id", "cgroup_path", "namespace", "pod", "container",
]

passed = 0
failed = 0

# What only the table `metrics` has.
NARROW = [("labels", pa.map_(pa.string(), pa.string())), ("value", pa.float64())]


def check(what, ok, found=""):
    global passed, failed
    if ok:
        passed += 1
    else:
        failed += 1
        print(f"FAILED {what}: {found}")


def is_text(kind):
    return pa.types.is_string(kind) or (pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type))


def schema_facts(name, schema):
    """What every reader may rely on, of any of our files."""
    ts = schema.field("ts").type
    check(f"{name}: ts is TIMESTAMP(us, UTC)", ts == pa.timestamp("us", tz="UTC"), ts)
    check(f"{name}: begins with the common columns", schema.names[: len(COMMON)] == COMMON, schema.names[: len(COMMON)])
    for field in schema:
        kind = field.type
        ok = kind == ts or kind == pa.int64() or is_text(kind) or (field.name, kind) in NARROW
        check(f"{name}.{field.name}: signed 64-bit integer, text or time", ok, kind)
    dictionaries = [f.name for f in schema if pa.types.is_dictionary(f.type)]
    check(f"{name}: text is read as dictionaries", "cgroup_path" in dictionaries, dictionaries)


def file_facts(path):
    """What the writer promises of a file's inside."""
    name = os.path.basename(path)
    meta = pq.ParquetFile(path).metadata
    for g in range(meta.num_row_groups):
        group = meta.row_group(g)
        for c in range(group.num_columns):
            column = group.column(c)
            where = f"{name} group {g} {column.path_in_schema}"
            check(f"{where}: ZSTD", column.compression == "ZSTD", column.compression)
            if column.physical_type == "INT64":
                check(f"{where}: DELTA_BINARY_PACKED", "DELTA_BINARY_PACKED" in column.encodings, column.encodings)
                check(f"{where}: no dictionary of integers", not column.has_dictionary_page, column.encodings)
                check(f"{where}: where its pages are", column.has_offset_index)
            if column.path_in_schema in ("cgroup_id", "ts", "ktime_ns", "container_id", "pod_uid"):
                # a reader holds the statistics of all pages: those of 180 columns are more than the rows
                check(f"{where}: page index", column.has_offset_index and column.has_column_index)
    return meta


def sums_of_arrow(table):
    out = {}
    for field in table.schema:
        if field.type == pa.int64():
            # Sums of counters may exceed 64 bits: decimals do not wrap.
            total = pc.sum(table[field.name].cast(pa.decimal128(38, 0))).as_py()
            out[field.name] = None if total is None else int(total)
    return out


def sums_of_duckdb(db, source, columns):
    if not columns:
        return {}
    terms = ", ".join(f'sum("{c}"::HUGEINT)' for c in columns)
    row = db.execute(f"SELECT {terms} FROM {source}").fetchone()
    to_int = lambda v: None if v is None else int(decimal.Decimal(v))
    return dict(zip(columns, map(to_int, row)))


def equal(name, db, source, table):
    rows = db.execute(f"SELECT count(*) FROM {source}").fetchone()[0]
    check(f"{name}: as many rows in both", rows == table.num_rows, f"duckdb {rows}, pyarrow {table.num_rows}")
    arrow = sums_of_arrow(table)
    duck = sums_of_duckdb(db, source, list(arrow))
    for column, total in arrow.items():
        check(f"{name}.{column}: the same sum", duck[column] == total, f"duckdb {duck[column]}, pyarrow {total}")
    if name.endswith("metrics"):
        narrow(name, db, source, table)
    texts = {row[0]: row[1] for row in db.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}
    unsigned = [c for c, kind in texts.items() if kind.startswith("U") and kind.endswith("INTEGER")]
    check(f"{name}: no unsigned integers", not unsigned, unsigned)
    check(f"{name}: ts has a zone in duckdb", texts["ts"] == "TIMESTAMP WITH TIME ZONE", texts["ts"])
    duck_ts = db.execute(f"SELECT epoch_us(min(ts)), epoch_us(max(ts)) FROM {source}").fetchone()
    if table.num_rows:
        bounds = pc.min_max(table["ts"].cast(pa.int64())).as_py()
        check(f"{name}: the same times", duck_ts == (bounds["min"], bounds["max"]), f"{duck_ts} {bounds}")


def others_agree(name, files, table):
    """Polars and pandas: the same rows and the same sums of what is summed at all."""
    arrow = sums_of_arrow(table)
    lazy = pl.scan_parquet(files, missing_columns="insert")
    polars = lazy.select(pl.len().alias("n"), *[pl.col(c).cast(pl.Int128).sum() for c in arrow]).collect().row(0)
    check(f"{name}: as many rows in polars", polars[0] == table.num_rows, f"{polars[0]} {table.num_rows}")
    for column, total in zip(arrow, polars[1:]):
        check(f"{name}.{column}: the same sum in polars", total == (arrow[column] or 0), f"{total} {arrow[column]}")
    pandas = pd.concat([pd.read_parquet(f, dtype_backend="pyarrow") for f in files])
    check(f"{name}: as many rows in pandas", len(pandas) == table.num_rows, len(pandas))
    for column, total in arrow.items():
        found = sum(int(v) for v in pandas[column].dropna()) if column in pandas else 0
        check(f"{name}.{column}: the same sum in pandas", found == (total or 0), f"{found} {total}")


class ClickHouse:
    """chdb, the server as a library."""

    name = "clickhouse"

    def __init__(self):
        import chdb

        self.query = lambda sql: json.loads(str(chdb.query(sql, "JSONCompact")))["data"]

    def sums(self, files, columns):
        glob = "{" + ",".join(files) + "}" if len(files) > 1 else files[0]
        terms = ["toString(count())", "toString(toUnixTimestamp64Micro(min(ts)))", "toString(toUnixTimestamp64Micro(max(ts)))"]
        terms += [f"toString(sum(toInt128(`{c}`)))" for c in columns]
        row = self.query(f"SELECT {', '.join(terms)} FROM file('{glob}', Parquet)")[0]
        return [0 if v is None else int(v) for v in row]


class Spark:
    name = "spark"

    def __init__(self):
        from pyspark.sql import SparkSession

        settings = {"spark.ui.enabled": "false", "spark.sql.session.timeZone": "UTC", "spark.driver.bindAddress": "127.0.0.1",
                    "spark.driver.host": "127.0.0.1", "spark.sql.shuffle.partitions": "1"}
        builder = SparkSession.builder.master("local[2]").appName("fgm")
        for key, value in settings.items():
            builder = builder.config(key, value)
        self.session = builder.getOrCreate()
        self.session.sparkContext.setLogLevel("ERROR")

    def sums(self, files, columns):
        rows = self.session.read.parquet(*files)
        terms = ["count(*)", "unix_micros(min(ts))", "unix_micros(max(ts))"]
        terms += [f"sum(cast(`{c}` AS DECIMAL(38,0)))" for c in columns]
        row = rows.selectExpr(*terms).collect()[0]
        return [0 if v is None else int(v) for v in row]


def heavy_agree(name, files, table, engines):
    """ClickHouse and Spark: the same rows, times and sums."""
    arrow = sums_of_arrow(table)
    bounds = pc.min_max(table["ts"].cast(pa.int64())).as_py()
    wanted = [table.num_rows, bounds["min"] or 0, bounds["max"] or 0, *[v or 0 for v in arrow.values()]]
    for engine in engines:
        found = engine.sums(files, list(arrow))
        for what, f, w in zip(["rows", "first ts", "last ts", *arrow], found, wanted):
            check(f"{name}.{what}: the same in {engine.name}", f == w, f"{f} {w}")


def questions(db, page, folder):
    """Runs each query of the page as it stands there, over this folder."""
    blocks = re.findall(r"```sql\n(.*?)```", open(page).read(), re.S)
    check("the page has ten questions and the tables", len(blocks) >= 11, len(blocks))
    answered = 0
    for block in blocks:
        first = block.strip().splitlines()[0][:60]
        try:
            block = block.replace("'data/", f"'{folder}/")
            if first == "-- tables":
                db.execute(block)
            else:
                answered += db.sql(block).to_arrow_table().num_rows > 0
            check(f"{first}: runs", True)
        except duckdb.Error as e:
            check(f"{first}: runs", False, e)
    # nobody is throttled in the demo, and no loss may be told
    check("the questions have answers", answered >= 8, answered)
    killed = db.execute("SELECT count(*) FROM incidents WHERE kind = 'oom_kill'").fetchone()[0]
    check("the kill is an incident", killed > 0, killed)


def narrow(name, db, source, table):
    """The map and the numbers of `metrics`, row by row in both engines."""
    key = lambda row: (row[0], sorted((row[1] or {}).items()), row[2] is None, row[2] or 0.0)
    duck = db.execute(f"SELECT name, labels, value FROM {source}").fetchall()
    columns = [table[c].to_pylist() for c in ["name", "labels", "value"]]
    arrow = [(n, dict(labels), value) for n, labels, value in zip(*columns)]
    check(f"{name}: the same names, labels and values", sorted(map(key, duck)) == sorted(map(key, arrow)))
    found = db.execute(f"SELECT count(*) FROM {source} WHERE labels['node'] = '0'").fetchone()[0]
    expected = sum(1 for _, labels, _ in arrow if labels.get("node") == "0")
    check(f"{name}: rows are found by a label", found == expected, f"duckdb {found}, pyarrow {expected}")


def sorted_by_cgroup_and_time(name, table):
    keys = list(zip(table["cgroup_id"].to_pylist(), table["ts"].cast(pa.int64()).to_pylist()))
    comparable = [(k[0] is not None, k[0] or 0, k[1]) for k in keys]
    check(f"{name}: sorted by (cgroup_id, ts)", comparable == sorted(comparable))


def data_folder(db, folder, engines):
    tables = sorted(glob.glob(os.path.join(folder, "recent", "table=*")))
    merged = sorted(glob.glob(os.path.join(folder, "v1", "table=*")))
    check("the data folder has tables", bool(tables), folder)
    for path in tables + merged:
        name = os.path.basename(path).removeprefix("table=")
        name = name if path in tables else f"v1 {name}"
        files = sorted(glob.glob(os.path.join(path, "**", "*.parquet"), recursive=True))
        if not files:
            continue
        for file in files:
            file_facts(file)
            sorted_by_cgroup_and_time(os.path.basename(file), pq.read_table(file, columns=["cgroup_id", "ts"]))
        schema_facts(name, pq.read_schema(files[0]))
        table = ds.dataset(files, format="parquet").to_table()
        equal(name, db, f"read_parquet({files}, hive_partitioning = false)", table)
        others_agree(name, files, table)
        heavy_agree(name, files, table, engines)
    # The folder names are columns, in both.
    if tables:
        recent = os.path.join(folder, "recent")
        hive = f"read_parquet('{recent}/table=*/*.parquet', hive_partitioning=true, union_by_name=true)"
        duck = dict(db.execute(f'SELECT "table", count(*) FROM {hive} GROUP BY 1').fetchall())
        part = ds.partitioning(pa.schema([("table", pa.string())]), flavor="hive")
        arrow = {}
        for fragment in ds.dataset(recent, format="parquet", partitioning=part, exclude_invalid_files=False).get_fragments():
            key = ds.get_partition_keys(fragment.partition_expression)["table"]
            arrow[key] = arrow.get(key, 0) + fragment.count_rows()
        check("hive columns: the same tables and rows", duck == arrow and duck, f"duckdb {duck}, pyarrow {arrow}")


def exported(db, path):
    meta = file_facts(path)
    pairs = {k.decode(): v.decode() for k, v in (meta.metadata or {}).items()}
    for key in ["incident", "events", "processes", "lost", "provenance"]:
        try:
            json.loads(pairs[f"fgm.{key}"])
            check(f"fgm.{key} is JSON", True)
        except (KeyError, ValueError) as e:
            check(f"fgm.{key} is JSON", False, repr(e))
    table = pq.read_table(path)
    check("the exported file has rows", table.num_rows > 0)
    schema_facts("exported", table.schema)
    sorted_by_cgroup_and_time("exported", table)
    equal("exported", db, f"read_parquet('{path}')", table)
    provenance = json.loads(pairs.get("fgm.provenance", "{}"))
    check("provenance counts the rows", provenance.get("rows") == table.num_rows, provenance.get("rows"))
    of_duckdb = db.execute(
        f"SELECT count(*) FROM parquet_kv_metadata('{path}') WHERE decode(key) = 'fgm.incident'"
    ).fetchone()[0]
    check("duckdb sees the key-value metadata", of_duckdb == 1, of_duckdb)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--parquet", required=True, help="a file of `fgm export`")
    args.add_argument("--data", required=True, help="a data folder of the agent")
    args.add_argument("--questions", required=True, help="docs/query.md")
    args.add_argument("--all", action="store_true", help="ClickHouse and Spark as well")
    args = args.parse_args()
    engines = [ClickHouse(), Spark()] if args.all else []
    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'")
    data_folder(db, args.data, engines)
    exported(db, args.parquet)
    questions(db, args.questions, args.data)
    print("read by: pyarrow, duckdb, polars, pandas" + "".join(f", {e.name}" for e in engines))
    print(f"{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
