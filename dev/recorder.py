"""A plugin of pytest that writes down which test began and how it ended, as that happens: so names
are not lost when the time is up, a process dies or hangs.

    TEST_RECORD=FILE python -m pytest -p dev.recorder ...    a line of JSON for each beginning, end

A test that takes longer than TEST_PATIENCE seconds (60) ends its process, as only that ends a
kernel that hangs; where it hung is added to FILE.stacks. pytest-xdist starts another process then,
so give it -n1 at least.
"""
import faulthandler
import json
import os

FILE = os.environ.get("TEST_RECORD") and os.path.abspath(os.environ["TEST_RECORD"])
PATIENCE = float(os.environ.get("TEST_PATIENCE", "60"))
held = []  # the file of stacks, open as long as this process lives
runs = []  # not empty in a process that runs tests; empty in the one that waits for the others


def write(**row):
    with open(FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        runs.append(True)


def pytest_runtest_logstart(nodeid, location):
    if FILE:
        write(begun=nodeid)
        if not held:
            held.append(open(FILE + ".stacks", "a"))
        if runs:
            held[0].write(f"{nodeid}\n")
            held[0].flush()
            faulthandler.dump_traceback_later(PATIENCE, exit=True, file=held[0])


def pytest_runtest_logreport(report):
    if not FILE:
        return
    if report.when == "teardown":
        faulthandler.cancel_dump_traceback_later()
    if report.when == "call" or report.outcome != "passed":
        crash = getattr(report.longrepr, "reprcrash", None)
        said = str(crash.message if crash else report.longrepr or "")[:300]
        write(ended=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 2),
              said=said if report.failed else "")


def read(path, start=0):
    """From byte `start` on -> how many tests passed, [(name, what it said)] of those that failed,
    and the names of those that began and did not end."""
    try:
        with open(path, encoding="utf-8") as file:
            file.seek(start)
            rows = [json.loads(line) for line in file if line.endswith("}\n")]
    except FileNotFoundError:
        rows = []
    ended = {}
    for row in rows:  # the process that waits tells it, too, and of a process that died it alone
        if "ended" in row and ended.get(row["ended"], {}).get("outcome") != "failed":
            ended[row["ended"]] = row
    failed = [(name, row["said"]) for name, row in ended.items() if row["outcome"] == "failed"]
    begun = dict.fromkeys(row["begun"] for row in rows if "begun" in row)
    passed = sum(row["outcome"] == "passed" for row in ended.values())
    return passed, failed, [name for name in begun if name not in ended]
