#!/usr/bin/env bash
# Python's tracemalloc: `statistics(key, cumulative=True)` gives a line or a file the blocks "of all frames of the
# traceback", that is, what it allocated with all that it called. But a block counts once for each of these frames, not
# once for each line or file. A function that calls itself has its block at each depth; a file whose functions call
# one another has it, by `filename`, as often as they are deep, without any recursion. So a file has more memory "in it"
# than the process, and the order of the table is not that of the memory: of two files the one with a quarter of
# the bytes is above the other. `cum` of pprof's `-top` counts each sample once. (The sampling profiler of Python 3.15 did the same
# as tracemalloc while it was made, and that was mended as a bug: python/cpython#142374.)
#
# Seen with CPython 3.11.2, as Debian 12 has it: 1 MiB and 4 MiB are 6 MiB and 4 MiB, of 5 MiB together; 6 blocks and 1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat > deep.py <<'PYTHON'
def answer(): return body()
def body(): return table()
def table(): return row()
def row(): return cell()
def cell(): return text()
def text(): return bytes((1 << 20) - 33)
PYTHON
cat > flat.py <<'PYTHON'
def answer(): return bytes((4 << 20) - 33)
PYTHON
cat > recursive.py <<'PYTHON'
def nested(depth):
    return nested(depth - 1) if depth else bytes((1 << 20) - 33)
PYTHON
cat > program.py <<'PYTHON'
import os, tracemalloc
import deep, flat, recursive


def show(key, files, *calls):
    tracemalloc.start(25)
    held = [call() for call in calls]
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, f"*/{file}") for file in files])
    tracemalloc.stop()
    print(f"{key}: {sum(trace.size for trace in snapshot.traces)} bytes in {len(snapshot.traces)} blocks")
    for cumulative in [False, True]:
        for row in snapshot.statistics(key, cumulative):
            frame = row.traceback[0]
            if (file := os.path.basename(frame.filename)) in files:
                print(f"  cumulative={cumulative}: {file}:{frame.lineno} {row.size} in {row.count}")


# 33 bytes are the header of `bytes`.
show("filename", ["deep.py", "flat.py"], deep.answer, flat.answer)
show("lineno", ["recursive.py"], lambda: recursive.nested(9))
PYTHON
python3 --version
seen=$(python3 -X utf8 -B program.py)
echo "$seen"
[ "$seen" = 'filename: 5242880 bytes in 2 blocks
  cumulative=False: flat.py:0 4194304 in 1
  cumulative=False: deep.py:0 1048576 in 1
  cumulative=True: deep.py:0 6291456 in 6
  cumulative=True: flat.py:0 4194304 in 1
lineno: 1048576 bytes in 1 blocks
  cumulative=False: recursive.py:2 1048576 in 1
  cumulative=True: recursive.py:2 10485760 in 10' ]
