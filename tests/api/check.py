"""The API against its own description: requests that schemathesis makes up from /api/openapi.json, and checks of every answer.

`check.py --fgm BINARY --data FOLDER` serves the folder by `fgm view` on loopback and ends it. No answer may be a server error
(503 "not now" aside), a status or a media type that the description does not name, or break its schema. At most 40 s of
requests, the same ones in each run. Prints `N passed, N failed` at the end.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

# Streams have no end.
WITHOUT = "/api/live"
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,response_headers_conformance"
SECONDS = 40


def serve(binary, data):
    server = subprocess.Popen([binary, "view", data, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
    url = server.stdout.readline().strip().rstrip("/")
    if not url:
        server.wait(10)
        sys.exit("fgm view printed no address\n0 passed, 1 failed")
    return server, url


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--fgm", required=True)
    args.add_argument("--data", required=True)
    args = args.parse_args()
    server, url = serve(args.fgm, args.data)
    try:
        with tempfile.TemporaryDirectory() as folder:
            report = pathlib.Path(folder) / "report.json"
            run = subprocess.run(
                [pathlib.Path(sys.executable).parent / "schemathesis", "run", f"{url}/api/openapi.json", "--checks", CHECKS]
                + ["--exclude-path", WITHOUT, "--max-time", str(SECONDS), "--max-examples", "25", "--workers", "2"]
                + ["--request-timeout", "30", "--seed", "7", "--generation-database", "none", "--no-color", "--warnings", "off"]
                + ["--suppress-health-check", "all", "--report-json-path", str(report)],
                cwd=folder, timeout=SECONDS * 4, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            print(run.stdout)
        tested = re.search(r"Operations?:.*", run.stdout)
        cases = sum(int(n) for n in re.findall(r"(\d+) generated", run.stdout))
        alive = server.poll() is None
        print(f"{tested.group(0) if tested else 'no operations told'}; {cases} requests; the server {'answers' if alive else 'has ended'}")
        good = run.returncode == 0 and alive and cases > 100
        print(f"{cases if good else 0} passed, {0 if good else 1} failed")
        return 0 if good else 1
    finally:
        server.terminate()
        server.wait(20)


if __name__ == "__main__":
    sys.exit(main())
