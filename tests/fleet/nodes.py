"""Two agents and some that are silent, behind a stand-in of the API server that forwards ports; what `fgm export --all-nodes` makes of them.

The agents are `fgm view` over recorded folders, which serves the API that an agent does. Cgroup ids are the same on both nodes, so
that whatever mixes them is seen. What is right is told by pyarrow, from the files of the folders and from each node's own export. Called by check.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import subprocess
import threading

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

RANGE = ["--from", "2023-11-14T20:00:00Z", "--to", "2023-11-15T04:00:00Z"]
ORDER = [(key, "ascending") for key in ("node", "cgroup_id", "ts", "ktime_ns", "cause")]
SILENT = {"charlie": "Pending", "delta": "connection refused", "echo": "no agent"}


class ApiServer:
    """Lists pods and nodes. `agents` are addresses by node; None: nobody listens there."""

    def __init__(self, agents, phases, bare):
        self.agents, self.phases, self.bare = agents, phases, bare
        self.exports = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def kubeconfig(self, path):
        server = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        named = {"clusters": {"cluster": {"server": server}}, "users": {"user": {"token": "t"}}, "contexts": {"context": {"cluster": "c", "user": "c"}}}
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "c", **{kind: [{"name": "c", **of}] for kind, of in named.items()}}))
        return path

    def _answer(self, connection):
        with connection:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                piece = connection.recv(4096)
                if not piece:
                    return
                head += piece
            path = head.split(b" ")[1].decode()
            if "/portforward" in path:
                node = re.search(r"/pods/fgm-(\w+)/portforward", path)[1]
                return self._forward(connection, head.decode(), self.agents[node])
            if path.startswith("/api/v1/nodes"):
                items = [{"metadata": {"name": name}} for name in [*self.agents, *self.bare]]
            else:
                items = [{"metadata": {"name": f"fgm-{node}"}, "spec": {"nodeName": node, "containers": []}, "status": {"phase": self.phases.get(node, "Running")}} for node in self.agents]
            body = json.dumps({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items}).encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    def _forward(self, connection, head, agent):
        """As a kubelet does it (v4.channel.k8s.io): channel 0 has the bytes, channel 1 what went wrong, each begins with the port."""
        key = re.search(r"(?i)sec-websocket-key: (\S+)", head)[1] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        connection.sendall(f"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: {accept}\r\nsec-websocket-protocol: v4.channel.k8s.io\r\n\r\n".encode())

        def send(kind, data):
            length = bytes([len(data)]) if len(data) < 126 else b"\x7e" + struct.pack(">H", len(data))
            connection.sendall(bytes([0x80 | kind]) + length + data)

        stream = connection.makefile("rb")

        def receive():
            first, length = stream.read(2)
            length &= 0x7F
            if length == 126:
                length = struct.unpack(">H", stream.read(2))[0]
            mask, data = stream.read(4), stream.read(length)
            return first & 0xF, bytes(b ^ mask[i % 4] for i, b in enumerate(data))

        for channel in (0, 1):
            send(2, bytes([channel]) + struct.pack("<H", 8050))
        asked = b""
        if agent is None:
            send(2, b"\x01failed to connect to localhost:8050 inside namespace: connection refused")
        else:
            while not asked.endswith(b"\r\n\r\n"):
                kind, data = receive()
                asked += data[1:] if kind == 2 and data[:1] == b"\0" else b""
            self.exports += asked.startswith(b"GET /api/export")
            with socket.create_connection(agent) as there:
                there.sendall(asked.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
                while piece := there.recv(16_384):
                    send(2, b"\0" + piece)
        send(8, b"")
        # what is not read when a socket is closed resets the connection
        while connection.recv(4096):
            pass


def plain(table):
    """Without dictionaries and in one order, so that tables can be compared."""
    columns = [c.cast(pa.string()) if pa.types.is_dictionary(c.type) else c for c in table.columns]
    return pa.table(columns, names=table.column_names).sort_by(ORDER)


def recorded_rows(folder):
    """What the folder's files of samples have; all of it is in v1/."""
    return [plain(pq.ParquetFile(path).read()) for path in sorted(folder.glob("v1/table=samples/**/*.parquet"))]


def told(file, key):
    return json.loads(pq.read_metadata(file).metadata[f"fgm.{key}".encode()])


def run(fgm, recorded, parent, check):
    nodes, agents, children = ["alfa", "bravo"], {}, []
    for node in nodes:
        subprocess.run([recorded, parent / node, node], check=True, capture_output=True, timeout=120)
        child = subprocess.Popen([fgm, "view", parent / node, "--listen", "127.0.0.1:0", "--json"], stdout=subprocess.PIPE, text=True)
        children.append(child)
        host, port = json.loads(child.stdout.readline())["url"].removeprefix("http://").rstrip("/").split(":")
        agents[node] = (host, int(port))
    try:
        questions(fgm, parent, nodes, agents, check)
    finally:
        for child in children:
            child.terminate()
            child.wait(20)


def questions(fgm, parent, nodes, agents, check):
    cluster = ApiServer(agents | {"charlie": None, "delta": None}, {"charlie": "Pending"}, ["echo"])
    all_nodes = ["--all-nodes", "--kubeconfig", cluster.kubeconfig(parent / "kubeconfig")]

    def export(name, *words, of=all_nodes):
        out = parent / name
        out.unlink(missing_ok=True)
        return subprocess.run([str(w) for w in [fgm, "export", *of, *words, "-o", out]], capture_output=True, text=True, timeout=120), out

    done, whole = export("all.parquet", *RANGE, "--json")
    check(done.returncode == 0, f"all nodes: exit code {done.returncode}")
    rows = plain(pq.read_table(whole))
    check(pq.read_table(whole)["cgroup_id"].to_pylist() == sorted(rows["cgroup_id"].to_pylist()), "all nodes: sorted as any export")
    stored = pa.concat_tables([table for node in nodes for table in recorded_rows(parent / node)], promote_options="default").select(rows.column_names).sort_by(ORDER)
    check(rows.num_rows > 0 and rows.equals(stored), f"all nodes: each row of both folders is there once, value by value ({rows.num_rows} of {stored.num_rows})")
    own = {node: export(f"{node}.parquet", *RANGE, of=["--data", parent / node])[1] for node in nodes}
    each = {node: pq.read_table(file) for node, file in own.items()}
    check(rows.equals(plain(pa.concat_tables(each.values(), promote_options="default"))), "all nodes: the rows are those of each node's own export")
    for key, name in (("events", "event_id"), ("processes", "pid"), ("cgroups", "cgroup_id")):
        of_all = sorted((item["node"], str(item[name]), str(item.get("ts_us"))) for item in told(whole, key))
        of_each = sorted((node, str(item[name]), str(item.get("ts_us"))) for node, file in own.items() for item in told(file, key))
        check(of_all and of_all == of_each, f"all nodes: {key} of both, each with its node ({len(of_all)})")
    events = [event["ts_us"] for event in told(whole, "events")]
    check(events == sorted(events), "all nodes: events by time")
    provenance = told(whole, "provenance")
    check([(one["node"], one["rows"]) for one in provenance["nodes"]] == [(node, table.num_rows) for node, table in each.items()] and provenance["rows"] == rows.num_rows, "all nodes: how many rows are of which")
    why = {one["node"]: one["why"] for one in provenance["unanswered"]}
    check(list(why) == list(SILENT) and all(word in why[node] for node, word in SILENT.items()), f"who was silent stands in the file: {why}")
    check(json.loads(done.stdout)["unanswered"] == provenance["unanswered"] and all(f"node {node}" in done.stderr for node in SILENT), "who was silent is said")

    narrow = [*RANGE, "-c", "cart", "-n", "shop", "-m", "memory_current"]
    done, file = export("cart.parquet", *narrow)
    wanted = [export(f"cart-{node}.parquet", *narrow, of=["--data", parent / node])[1] for node in nodes]
    check(done.returncode == 0 and plain(pq.read_table(file)).equals(plain(pa.concat_tables([pq.read_table(f) for f in wanted]))), "all nodes: one container and one column")

    done, file = export("all.csv", *RANGE)
    check(done.returncode == 0 and pyarrow.csv.read_csv(file).group_by("node").aggregate([([], "count_all")]).sort_by("node")["count_all"].to_pylist() == [t.num_rows for t in each.values()], "all nodes as CSV")
    done, file = export("all.json", *RANGE)
    check(done.returncode == 0 and len(json.loads(file.read_text())) == rows.num_rows, "all nodes as JSON")
    done, page = export("all.html", *RANGE)
    text = page.read_text()
    embedded = parent / "embedded.parquet"
    embedded.write_bytes(base64.b64decode(re.search(r'id="fgm-parquet">([^<]*)<', text)[1]))
    document = json.loads(re.search(r'id="fgm-data">([^<]*)<', text)[1])
    check(plain(pq.read_table(embedded)).equals(rows) and {c["node"] for c in document["cgroups"]} == set(nodes), "the report has both nodes' rows")
    check(document["provenance"]["unanswered"] == provenance["unanswered"], "the report says who was silent")

    before = cluster.exports
    ids = json.loads(subprocess.run([fgm, "incidents", "--data", parent / "bravo", "--json"], capture_output=True, text=True, timeout=60).stdout)["incidents"]
    done, file = export("incident.parquet", "--incident", ids[0]["id"])
    _, wanted = export("own.parquet", "--incident", ids[0]["id"], of=["--data", parent / "bravo"])
    check(done.returncode == 0 and pq.read_table(file).equals(pq.read_table(wanted)) and told(file, "incident") == told(wanted, "incident"), "an incident is that of the node which has it")
    check(cluster.exports == before + 1, "and that node alone makes an export of it")
    done, file = export("latest.html", "--incident", "latest")
    check(done.returncode == 0 and ids[0]["id"] in file.read_text(), "the latest of all")

    before = cluster.exports
    for words, code, said in (
        ([*RANGE, "-m", "memory_curent"], 2, "memory_curent"), ([], 2, "neither an incident nor a time range"), ([*RANGE, "--data", "/"], 2, "--all-nodes"),
        (["--incident", "x", "--before", "never"], 2, "length of time"), (["--incident", "nobody-1"], 3, "no incident nobody-1"), (["--from", "2024-01-01T00:00:00Z", "--to", "2024-01-02T00:00:00Z"], 3, "no sample"),
    ):
        done, file = export("wrong.parquet", *words)
        check(done.returncode == code and said in done.stderr and not file.exists(), f"{' '.join(words[-2:])}: exit code {done.returncode}, {said} {done.stderr if said not in done.stderr else ''}")
    check(cluster.exports == before + 2, "a wrong question is asked of nobody")
    check(not list(parent.glob("*.tmp")) and not list(parent.glob(".fgm-*")), "nothing is left behind")
    nobody = ApiServer({"delta": None}, {}, [])
    done, file = export("none.parquet", *RANGE, of=["--all-nodes", "--kubeconfig", nobody.kubeconfig(parent / "nobody")])
    check(done.returncode == 1 and "none answered" in done.stderr and not file.exists(), "no answer at all is a failure")
