"""The questions of docs/fleet.md, asked of one bucket by engines that share no code: their answers must be equal.

`engines.py --v1 FOLDER --questions docs/fleet.md [--all]`: DuckDB and DataFusion, with `--all` ClickHouse (chdb) and Spark as well. The tables are
defined by the statements of that page. Prints `N passed, N failed` at the end; `check.py` calls `compare`.
"""

import argparse
import datetime
import decimal
import json
import os
import pathlib
import re
import sys

TABLES = ["samples", "events", "incidents", "processes", "node", "ledger"]
# Of the recorded folder these have an answer for sure.
ANSWERED = {1, 2, 3, 4, 5, 7, 8, 9, 10}


def read(page):
    """The definition of `samples` by engine, and the questions by their number."""
    blocks = re.findall(r"```sql\n-- (\w+)(.*?)\n(.*?)```", pathlib.Path(page).read_text(), re.S)
    definitions = {name: sql.strip().rstrip(";") for name, _, sql in blocks if not name.isdigit()}
    questions = {int(name): sql.strip().rstrip(";") for name, _, sql in blocks if name.isdigit()}
    return definitions, questions


def plain(value):
    """A value as every engine would have it: numbers as numbers, instants in µs."""
    match value:
        case datetime.datetime():
            value = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
            return round((value - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) / datetime.timedelta(microseconds=1))
        case decimal.Decimal():
            return int(value) if value == int(value) else float(value)
        case float():
            return None if value != value else float(f"{value:.9g}")
        case bytes():
            return value.decode()
    return value


def of(definition, v1, table):
    return re.sub(r"table=samples", f"table={table}", definition.replace("VIEW samples", f"VIEW {table}").replace("TABLE samples", f"TABLE {table}")).replace("'v1/", f"'{v1}/")


def duckdb(v1, definition, questions):
    import duckdb as engine

    c = engine.connect()
    c.execute("SET TimeZone = 'UTC'")
    for table in TABLES:
        c.execute(of(definition, v1, table))
    return {n: [tuple(row.values()) for row in c.sql(sql).to_arrow_table().to_pylist()] for n, sql in questions.items()}


def datafusion(v1, definition, questions):
    import datafusion as engine

    c = engine.SessionContext()
    for name in ("listing_table_ignore_subdirectory", "listing_table_factory_infer_partitions"):
        c.sql(f"SET datafusion.execution.{name} = false").collect()
    for table in TABLES:
        c.sql(of(definition, v1, table)).collect()
    return {n: [tuple(row.values()) for batch in c.sql(sql).collect() for row in batch.to_pylist()] for n, sql in questions.items()}


def clickhouse(v1, definition, questions):
    from chdb import session

    s = session.Session()
    s.query("CREATE DATABASE IF NOT EXISTS f ENGINE = Atomic")
    for table in TABLES:
        s.query(of(definition, v1, table).replace("VIEW ", "VIEW f.", 1))
    out = {}
    for n, sql in questions.items():
        sql = re.sub(r"\b(FROM|JOIN) (" + "|".join(TABLES) + r")\b", r"\1 f.\2", sql)
        text = str(s.query(sql + " SETTINGS use_hive_partitioning = 0, output_format_json_quote_64bit_integers = 0", "JSONCompact"))
        told = json.loads(text)
        instants = [i for i, m in enumerate(told["meta"]) if "DateTime" in m["type"]]
        rows = []
        for row in told["data"]:
            for i in instants:
                row[i] = datetime.datetime.fromisoformat(row[i])
            rows.append(tuple(row))
        out[n] = rows
    return out


def spark(v1, definition, questions):
    os.environ["TZ"] = "UTC"
    from pyspark.sql import SparkSession

    s = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").config("spark.sql.session.timeZone", "UTC").config("spark.driver.host", "127.0.0.1").getOrCreate()
    for table in TABLES:
        s.sql(of(definition, v1, table))
    out = {n: [tuple(r) for r in s.sql(sql).collect()] for n, sql in questions.items()}
    s.stop()
    return out


def compare(v1, page, check, is_all=False):
    """Calls `check(good, what)` for each question and engine."""
    definitions, questions = read(page)
    check(sorted(questions) == list(range(1, 11)), f"ten questions: {sorted(questions)}")
    engines = [duckdb, datafusion, *([clickhouse, spark] if is_all else [])]
    wanted = None
    for engine in engines:
        answers = engine(v1, definitions[engine.__name__], questions)
        answers = {n: [tuple(map(plain, row)) for row in rows] for n, rows in answers.items()}
        if wanted is None:
            wanted = answers
            for n in sorted(ANSWERED):
                check(answers[n], f"question {n} has an answer: {len(answers[n])} rows")
            continue
        for n in sorted(questions):
            same = answers[n] == wanted[n]
            first = next(((a, b) for a, b in zip(answers[n], wanted[n]) if a != b), (len(answers[n]), len(wanted[n])))
            check(same, f"question {n}: {engine.__name__} answers as DuckDB does" + ("" if same else f": {first}"))


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--v1", required=True)
    args.add_argument("--questions", required=True)
    args.add_argument("--all", action="store_true")
    args = args.parse_args()
    counts = [0, 0]

    def check(good, what):
        counts[not good] += 1
        print(f"{'ok' if good else 'FAILED'}: {what}", flush=True)

    compare(args.v1, args.questions, check, args.all)
    print(f"{counts[0]} passed, {counts[1]} failed")
    return 1 if counts[1] else 0


if __name__ == "__main__":
    sys.exit(main())
