"""A data folder is shipped into an S3 server and read back: nothing lost, nothing twice, whatever the server answers.

`check.py --fgm BINARY --recorded BINARY` makes a folder, ships it with `fgm ship` to moto behind a proxy of ours, which fails as real
servers do (500s, answers that are lost, silence, uploads cut in the middle, a clock that is off, credentials that have expired, a bucket that is gone),
and asks the bucket what it asks the folder. The proxy counts requests itself. `nodes` asks agents of a cluster instead. Prints `N passed, N failed` at the end.
"""

import argparse
import http.client
import http.server
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

import cost
import engines
import nodes

BUCKET = "evidence"
FAULTS = 5  # requests that go wrong before a server recovers
RANGE = ["--from", "2023-11-14T20:00:00Z", "--to", "2023-11-15T04:00:00Z"]
passed = failed = 0


def check(good, what):
    global passed, failed
    passed, failed = passed + bool(good), failed + (not good)
    print(f"{'ok' if good else 'FAILED'}: {what}", flush=True)


def xml(code):
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made up</Message></Error>".encode()


class Proxy(http.server.BaseHTTPRequestHandler):
    """Between fgm and moto. `fault` is what becomes of the next requests, `left` how many of them."""

    protocol_version = "HTTP/1.1"
    upstream = None
    lock = threading.Lock()
    fault, left, seen = None, 0, []

    def log_message(self, *_):
        pass

    def _answer(self, status, body, headers=()):
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                self.send_header(name, value)
        length = next((v for n, v in headers if n.lower() == "content-length"), len(body)) if self.command == "HEAD" else len(body)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _forward(self, body):
        c = http.client.HTTPConnection(*self.upstream, timeout=20)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "transfer-encoding")}
        c.request(self.command, self.path, body, headers)
        r = c.getresponse()
        out = r.status, r.read(), r.getheaders()
        c.close()
        return out

    def _any(self):
        cls = type(self)
        with cls.lock:
            fault = None
            if cls.left > 0:
                cls.left -= 1
                fault = cls.fault
            cls.seen.append((self.command, self.path, self.headers.get("Range")))
        length = int(self.headers.get("Content-Length") or 0)
        if fault == "cut" and length:
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = self.rfile.read(length)
        match fault:
            case None:
                self._answer(*self._forward(body))
            case "500" | "cut":
                self._answer(500, xml("InternalError"))
            case "lost":
                self._forward(body)
                self._answer(500, xml("InternalError"))
            case "silent":
                self._forward(body) if length else None
                time.sleep(3)
                self.close_connection = True
            case "skew":
                self._answer(403, xml("RequestTimeTooSkewed"))
            case "expired":
                self._answer(400, xml("ExpiredToken"))
            case "gone":
                self._answer(404, xml("NoSuchBucket"))

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any


class Threading(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def s3(port, method, path):
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    c.request(method, path, headers={"Authorization": "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request"})
    r = c.getresponse()
    out = r.status, r.read()
    c.close()
    return out


def objects(port, prefix):
    """All objects of the server below a prefix, by the names behind it."""
    import xml.etree.ElementTree as tree

    out, token = {}, ""
    space = "{http://s3.amazonaws.com/doc/2006-03-01/}"
    while True:
        status, body = s3(port, "GET", f"/{BUCKET}?list-type=2&prefix={prefix}/{token}")
        assert status == 200, body
        root = tree.fromstring(body)
        for item in root.iter(f"{space}Contents"):
            name = item.find(f"{space}Key").text
            out[name[len(prefix) + 1 :]] = s3(port, "GET", f"/{BUCKET}/{name}")[1]
        more = root.find(f"{space}NextContinuationToken")
        if more is None:
            return out
        token = f"&continuation-token={more.text}"


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("v1/**/*.parquet")}


class Run:
    def __init__(self, fgm, proxy_port, moto_port, folder):
        self.fgm, self.moto_port, self.recorded = fgm, moto_port, folder
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "FGM_", "HTTP", "http"))} | {
            "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy_port}", "FGM_SHIP_TIMEOUT_S": "2",
        }

    def __call__(self, *args):
        return subprocess.run([self.fgm, *map(str, args)], env=self.env, capture_output=True, text=True, timeout=60)

    def folder(self, parent):
        folder = pathlib.Path(tempfile.mkdtemp(dir=parent)) / "data"
        shutil.copytree(self.recorded, folder)
        return folder

    def arrived(self, folder, prefix, what):
        there = objects(self.moto_port, prefix)
        bundles = [n for n in there if n.startswith("bundles/")]
        v1 = {n: b for n, b in there.items() if not n.startswith("bundles/")}
        check(v1 == files(folder) and len(bundles) == 1, f"{what}: each file is there once, byte for byte, and the bundle ({len(there)} objects)")


def faults(run, parent):
    words = {"500": "InternalError", "lost": "InternalError", "silent": "timed out", "cut": "", "skew": "clock", "expired": "renew", "gone": "make it"}
    for fault, word in words.items():
        folder = run.folder(parent)
        # beyond what the client itself tries again
        Proxy.fault, Proxy.left = fault, FAULTS if fault != "silent" else 4
        tries, said = 0, ""
        while tries < 15:
            tries += 1
            done = run("ship", folder, f"s3://{BUCKET}/{fault}")
            said += done.stderr
            if done.returncode == 0:
                break
        check(done.returncode == 0 and Proxy.left == 0, f"{fault}: arrives after {tries} tries")
        check(fault == "cut" or tries > 1, f"{fault}: it failed before")
        check(word in said, f"{fault}: the reason is told ({word}): {said.strip()[-300:] if word not in said else ''}")
        run.arrived(folder, fault, fault)


def kills(run, parent):
    folder, alive = run.folder(parent), 0
    dice = random.Random(7)
    for _ in range(12):
        child = subprocess.Popen([run.fgm, "ship", folder, f"s3://{BUCKET}/kills"], env=run.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(dice.uniform(0.01, 0.25))
        alive += child.poll() is None
        child.kill()
        child.wait(10)
        if dice.random() < 0.3:
            (folder / "shipped.json").unlink(missing_ok=True)
    done = run("ship", folder, f"s3://{BUCKET}/kills")
    check(done.returncode == 0, f"kill -9: goes on after {alive} kills: {done.stderr}")
    check(alive > 0, "kill -9: it was killed at work")
    run.arrived(folder, "kills", "kill -9")


def took(text):
    return json.loads(text).pop("requests")


def views(run, url, folder):
    """The viewer's answers over a bucket are those over its folder, and nothing is fetched twice."""
    span = f"from={RANGE[1]}&to={RANGE[3]}"
    asked = ["incidents", "events?" + span, f"containers?{span}", f"filters?{span}", f"timeseries?metric=memory_current,cpu_stat_usage_usec&{span}",
             f"export?format=csv&{span}", "export?incident=latest&format=parquet"]
    answers, stopped = [], []
    Proxy.seen.clear()
    for place in ([folder], [url, *RANGE]):
        child = subprocess.Popen([run.fgm, "view", *place, "--listen", "127.0.0.1:0", "--json"], env=run.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = child.stdout.readline()
        if not line:
            check(False, f"view {place[0]}: {child.communicate(timeout=10)[1]}")
            return
        address = json.loads(line)["url"].removeprefix("http://").rstrip("/")
        got = []
        for path in asked:
            connection = http.client.HTTPConnection(address, timeout=60)
            connection.request("GET", "/api/" + path)
            response = connection.getresponse()
            got.append((response.status, response.read()))
        answers.append(got)
        child.terminate()
        stopped.append((child.wait(20), child.stderr.read()))
    for path, here, far in zip(asked, *answers):
        check(here == far and far[0] == 200, f"view: {path.split('?')[0]} of the bucket is the folder's {here[1][:200] if here != far else ''} {far[1][:200] if here != far else ''}")
    gets = len([p for m, p, _ in Proxy.seen if m == "GET" and "list-type=2" not in p])
    check(0 < gets <= 2 * len(files(folder)), f"view: {gets} GET of {len(files(folder))} files for all questions")
    check(stopped[1][0] == 0 and "bytes read" in stopped[1][1], f"view: at its end it says what it took: {stopped[1]}")
    wrong = run("view", folder, "--node", "a")
    check(wrong.returncode == 2 and "--node is for a bucket" in wrong.stderr, f"view of a folder has no --node: {wrong.stderr.strip()}")
    wrong = run("view", url)
    check(wrong.returncode == 2 and "which time" in wrong.stderr, f"view of a bucket wants a time: {wrong.stderr.strip()}")
    wrong = run("view", url, "--range", "1h")
    check(wrong.returncode == 3 and "that time" in wrong.stderr, f"view of a time without rows: {wrong.stderr.strip()}")


def reads(run, parent):
    folder, url = run.folder(parent), f"s3://{BUCKET}/read"
    Proxy.seen.clear()
    done = run("ship", folder, url, "--json")
    puts = sum(m == "PUT" for m, _, _ in Proxy.seen)
    paper = sum(cost.parts(len(b))[0] for b in files(folder).values()) + 1
    check(puts == paper, f"{puts} PUT, on paper {paper}")
    check(done.returncode == 0, f"ships: {done.stderr}")
    status = json.loads(done.stdout)
    check(status["files"] == len(files(folder)) and status["bundles"] == 1 and status["backlog"]["files"] == 0, f"told: {status}")
    again = json.loads(run("ship", folder, url, "--json").stdout)
    check((again["files"], again["bundles"]) == (0, 0), "a second time there is nothing to do")

    Proxy.seen.clear()
    far = run("incidents", url, "--json")
    here = json.loads(run("incidents", "--data", folder, "--json").stdout)
    check(far.returncode == 0, f"incidents: {far.stderr}")
    answer = json.loads(far.stdout)
    requests = answer.pop("requests")
    check(answer == here, "incidents: the bucket's are the folder's")
    lists = [p for m, p, _ in Proxy.seen if "list-type=2" in p]
    gets = [p for m, p, r in Proxy.seen if m == "GET" and "list-type=2" not in p]
    check((len(lists), len(gets)) == (requests["lists"], requests["gets"]), f"the requests told are those made: {requests}, {len(lists)} LIST, {len(gets)} GET")
    of_incidents = [n for n in files(folder) if "table=incidents" in n]
    check(len(gets) <= 2 * len(of_incidents), f"incidents: {len(gets)} GET of {len(of_incidents)} files")
    check("LIST" in far.stderr and "bytes read" in far.stderr, "it is said on stderr")
    check(all(r for m, p, r in Proxy.seen if m == "GET" and "list-type=2" not in p), "only ranges are read")

    events = run("events", url, *RANGE, "--json")
    own = [json.loads(line) for line in events.stdout.splitlines()]
    whose = {(e.pop("cluster"), e.pop("node")) for e in own}
    here = [json.loads(line) for line in run("events", "--data", folder, *RANGE, "--json").stdout.splitlines()]
    check(own and own == here and len(whose) == 1, f"events: the bucket's are the folder's, of {whose} {events.stderr}")
    Proxy.seen.clear()
    none = run("events", url, "--from", "2023-11-20T00:00:00Z", "--to", "2023-11-20T03:00:00Z")
    check(none.returncode == 3 and not [p for m, p, _ in Proxy.seen if "list-type=2" not in p], "another day's question reads nothing")

    for kind in ("parquet", "csv", "json"):
        out = [parent / f"far.{kind}", parent / f"here.{kind}"]
        for what in (["--incident", "latest"], [*RANGE, "-m", "memory_current,pids_current"]):
            a = run("export", url, *what, "-o", out[0])
            b = run("export", "--data", folder, *what, "-o", out[1])
            same = a.returncode == b.returncode == 0 and out[0].read_bytes() == out[1].read_bytes()
            check(same, f"export {what[:2]} as {kind}: the bytes are the same {a.stderr if not same else ''}")
    page = run("export", url, "--incident", "latest", "-o", parent / "far.html", "--json")
    check(page.returncode == 0 and took(page.stdout)["gets"] > 0 and b"PAR1" not in page.stdout.encode(), f"a report can be made {page.stderr}")

    inspected = run("inspect", url, "--json")
    told = json.loads(inspected.stdout)
    rows = {t: v["rows"] for t, v in told["tables"].items()}
    local = json.loads(run("inspect", folder, "--json").stdout)
    of_folder = {}
    for f in local["files"]:
        if f["kind"] == "parquet" and "/v1/" in f["path"]:
            of_folder[f["table"]] = of_folder.get(f["table"], 0) + f["rows"]
    check(rows == of_folder and not told["problems"], f"inspect: rows of each table {rows}")
    ledger = {t: (a["due"], a["written"]) for t, a in told["ledger"].items()}
    check(ledger == {t: (a["due"], a["written"]) for t, a in local["ledger"].items()}, "inspect: the ledger is the folder's")

    for what in ("trend", "changepoint"):
        a, b = (run("analyze", what, *place, *RANGE, "-m", "memory_current,pids_current", "--json") for place in ([url], ["--data", folder]))
        check(a.returncode == 0 and a.stdout == b.stdout and json.loads(a.stdout)["series"], f"analyze {what}: the bucket's answer is the folder's {a.stderr}")
    views(run, url, folder)

    # an incident whose hour is not there yet is known by its bundle alone
    only, env = run.folder(parent), run.env
    run.env = env | {"FGM_SHIP_WHAT": "incidents"}
    check(run("ship", only, f"s3://{BUCKET}/bundles-only").returncode == 0, "incidents alone can be shipped")
    run.env = env
    names = sorted({n.split("/")[0] + "/" + n.split("/")[1] for n in objects(run.moto_port, "bundles-only")})
    check(names == ["bundles/cluster=default", "v1/table=incidents"], f"what is there then: {names}")
    out = parent / "bundle.parquet"
    done = run("export", f"s3://{BUCKET}/bundles-only", "--incident", "latest", "-o", out)
    check(done.returncode == 0 and out.read_bytes() == next(b for n, b in objects(run.moto_port, "bundles-only").items() if n.startswith("bundles/")), f"the bundle is its export {done.stderr}")

    Proxy.fault, Proxy.left = "500", 10**6
    broken = run("incidents", url, "--json")
    Proxy.left = 0
    check(broken.returncode == 1 and not broken.stdout and "InternalError" in broken.stderr, f"what cannot be read is no empty answer: {broken.stderr.strip()[-200:]}")


def questions(run, parent):
    folder, bucket = run.folder(parent), parent / "bucket"
    bucket.mkdir()
    done = run("ship", folder, f"file://{bucket}")
    check(done.returncode == 0, f"a folder is a bucket too: {done.stderr}")
    here, far = run("incidents", "--data", folder, "--json"), run("incidents", f"file://{bucket}", "--json")
    there = json.loads(far.stdout)
    there.pop("requests")
    check(there == json.loads(here.stdout), "and is read as one")
    page = (pathlib.Path(__file__).parents[2] / "docs/fleet.md").read_text()
    check(cost.table(cost.KNOBS) in page, "the table of costs is what cost.py makes")
    engines.compare(bucket / "v1", pathlib.Path(__file__).parents[2] / "docs/fleet.md", check, run.is_all)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--fgm", required=True)
    args.add_argument("--recorded", required=True)
    args.add_argument("--all", action="store_true", help="the ten questions to ClickHouse and Spark as well")
    args = args.parse_args()
    moto_port, proxy_port = free_port(), free_port()
    moto = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(moto_port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 40
        while True:
            try:
                if s3(moto_port, "PUT", f"/{BUCKET}")[0] == 200:
                    break
            except OSError:
                pass
            if time.monotonic() > until or moto.poll() is not None:
                sys.exit("moto does not answer\n0 passed, 1 failed")
            time.sleep(0.2)
        Proxy.upstream = ("127.0.0.1", moto_port)
        server = Threading(("127.0.0.1", proxy_port), Proxy)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with tempfile.TemporaryDirectory() as parent:
            parent = pathlib.Path(parent)
            recorded = parent / "recorded"
            print(subprocess.run([args.recorded, recorded], check=True, capture_output=True, text=True, timeout=120).stdout.strip())
            run = Run(args.fgm, proxy_port, moto_port, recorded)
            run.is_all = args.all
            start = time.monotonic()
            (parent / "nodes").mkdir()
            nodes.run(args.fgm, args.recorded, parent / "nodes", check)
            print(f"nodes: {time.monotonic() - start:.1f} s")
            for part in (reads, questions, faults, kills):
                start = time.monotonic()
                part(run, parent)
                print(f"{part.__name__}: {time.monotonic() - start:.1f} s")
        server.shutdown()
    finally:
        moto.terminate()
        moto.wait(20)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
