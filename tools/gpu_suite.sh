#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Everything that needs a GPU, in one run on a machine with one: builds weft with the plug-in, measures what the
# device gives at most, runs the tests marked gpu, compute-sanitizer over some of them, and times encoding, pruned
# search, and the scan with its share of what the device gives.
#
#   tools/gpu_suite.sh OUT.json [--tokens N] [--peers WHEELS]
#
# N tokens in the largest scan and encoding, 100000000 by default. WHEELS is a folder with those of fast-plaid and
# xtr-warp-rs for this Python and its torch, and of what they import: then they are compared with weft and with plain
# torch on sets of 10^6 and 10^7 tokens, which takes a quarter of an hour more; without it weft is timed alone, on 10^6.
# The rows are in OUT.peers.jsonl, which bench/peers/report.py reads. bench/peers/run.py by itself asks more queries,
# for longer and for more results.
#
# Needs nvcc, cmake, ninja and a Python with weft's build and test requirements (scikit-build-core, pybind11,
# numpy, pytest, hypothesis). Installs nothing outside a temporary folder and leaves clocks and modes alone. Ends
# other than 0 if a step failed; a sanitizer that the machine refuses is "unsupported", which is no pass.
set -uo pipefail
out='' tokens=100000000 peers='' n_steps=17
while [ $# -gt 0 ]; do
  case "$1" in
    --tokens) tokens=$2 && shift ;;
    --peers) peers=$(realpath -m "$2") && shift ;;
    *) out=$(realpath -m "$1") ;;
  esac
  shift
done
if [ -z "$out" ]; then
  sed -n '3,20s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/steps"

# step NAME SECONDS COMMAND...: runs it, keeps what it said, its exit status and how long it took.
step() {
  local name=$1 limit=$2 begin=$SECONDS status=0
  shift 2
  echo "== $name" >&2
  timeout "$limit" bash -c '"$@"' step "$@" >"$work/steps/$name.log" 2>&1 || status=$?
  echo "$status $((SECONDS - begin))" >"$work/steps/$name.status"
  [ "$status" = 0 ] || tail -n 20 "$work/steps/$name.log" >&2
  return "$status"
}

# gpu_tests NAMES [PROGRAM...]: the tests marked gpu whose names match, run by the program.
gpu_tests() {
  local names=$1
  shift
  PYTHONPATH="$work/site" "$@" python3 -m pytest -m gpu tests/gpu -k "$names" -q -p no:cacheprovider
}

sanitize() {
  command -v compute-sanitizer >/dev/null || { echo "not supported: no compute-sanitizer"; return 1; }
  gpu_tests "equals_the_cpu or ties or a_grown_codec" compute-sanitizer --tool "$1" --error-exitcode 9 --target-processes all
}

bench() {
  local size
  for size in 1000000 10000000 "$tokens"; do
    for nbits in 4 8; do
      [ "$nbits" = 8 ] && [ "$size" = "$tokens" ] && continue
      "$work/scan" "$work/site/weft/libweft_cuda.so" "$size" "$nbits" || return 1
    done
  done
}

bench_pruned() {
  local size
  for size in 1000000 10000000 "$tokens"; do
    "$work/pruned" "$work/site/weft/libweft_cuda.so" "$size" 4 || return 1
  done
}

bench_encode() {
  local size
  for size in 10000000 "$tokens"; do
    "$work/encode" "$work/site/weft/libweft_cuda.so" "$size" 4 || return 1
  done
}

# Builds and searches of weft, with WHEELS of every engine, on the same sets; recall against exact search.
compare() {
  local size sizes=(1000000) engines=weft from=(--weft-python "$(command -v python3)") sets=()
  [ -z "$peers" ] || sizes+=(10000000) engines+=,torch,fast-plaid,xtr-warp-rs from=(--peers "$peers")
  export PYTHONPATH="$work/site"
  for size in "${sizes[@]}"; do
    sets+=("$work/sets/synthetic-$size")
    python3 bench/data.py synthetic "$size" --out "${sets[-1]}" --n-queries 500 || return 1
  done
  python3 bench/peers/run.py "${sets[@]}" --out "$work/peers" --environments "$work/environments" "${from[@]}" \
    --device cuda:0 --engines "$engines" --queries 500 --k 10 --batches 8,64,256 \
    --threads "$(nproc)" --rounds 2 --seconds 2 --build-limit 600 || return
  cp "$work/peers/rows.jsonl" "${out%.json}.peers.jsonl"
}

export work out tokens peers
export -f gpu_tests sanitize bench bench_pruned bench_encode compare

capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
architecture=${capability:-90}
[ "$architecture" = 90 ] && architecture=90a

step device 30 nvidia-smi --query-gpu=name,driver_version,memory.total,memory.free --format=csv,noheader
step toolkit 30 nvcc --version
if step build 300 python3 -m pip install -q --no-build-isolation --no-deps --no-index --target "$work/site" \
  -C build-dir="$work/objects" -C cmake.define.WEFT_CUDA=ON \
  -C cmake.define.CMAKE_CUDA_ARCHITECTURES="$architecture-real" .; then
  step info 60 env PYTHONPATH="$work/site" python3 -c \
    "import json, weft; print(json.dumps(weft.info())); assert len(weft.info()['devices']) > 1, 'no device'" &&
    step tests 300 gpu_tests cuda
  if step compile 120 nvcc -std=c++20 -O3 -arch="sm_$architecture" -o "$work/ceilings" bench/gpu/ceilings.cu &&
    step compile_scan 60 g++ -std=c++20 -O2 -Icsrc -o "$work/scan" bench/gpu/scan.cpp -ldl &&
    step compile_pruned 60 g++ -std=c++20 -O2 -Icsrc -o "$work/pruned" bench/gpu/pruned.cpp -ldl &&
    step compile_encode 60 g++ -std=c++20 -O2 -Icsrc -o "$work/encode" bench/gpu/encode.cpp -ldl; then
    step ceilings 60 "$work/ceilings"
    step scan 240 bench
    step pruned 240 bench_pruned
    step encode 240 bench_encode
  fi
  for tool in memcheck racecheck synccheck; do
    step "$tool" 240 sanitize "$tool"
  done
  step compare 2400 compare
fi

commit=$(git rev-parse HEAD 2>/dev/null || echo unknown)
python3 - "$work/steps" "$out" "$commit" "$work/peers/rows.jsonl" "$n_steps" <<'PYTHON'
import json
import sys
from pathlib import Path

sys.path[:0] = ["tools", "bench/gpu"]
from attest import source_hashes
from roofline import with_bound

folder, out, commit, peers, n_steps = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]
steps = {}
for path in sorted(folder.glob("*.status"), key=lambda path: path.stat().st_mtime):
    status, seconds = map(int, path.read_text().split())
    said = path.with_suffix(".log").read_text(errors="replace")
    refused = "not supported" in said.lower() and path.stem.endswith("check")
    state = "ok" if status == 0 else "unsupported" if refused else "failed"
    steps[path.stem] = {"state": state, "status": status, "seconds": seconds, "tail": said[-4000:]}


def rows(name):
    """The lines of JSON that a step printed."""
    said = (folder / f"{name}.log").read_text() if name in steps else ""
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def compared(path):
    """What was measured beside other engines, without the times of single queries."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k not in ("ms", "shares")} for line in lines]


ceilings = rows("ceilings")
result = {
    "ok": len(steps) == int(n_steps) and all(step["state"] != "failed" for step in steps.values()),
    "commit": commit,
    "sources": source_hashes(),
    "ceilings": ceilings,
    "scan": [with_bound(row, ceilings[0]) for row in rows("scan") if ceilings],
    "pruned": rows("pruned"),
    "encode": [with_bound(row, ceilings[0]) for row in rows("encode") if ceilings],
    "peers": compared(Path(peers)),
    "info": rows("info"),
    "steps": steps,
}
out.write_text(json.dumps(result, indent=1) + "\n")
print(f"{out}: {'ok' if result['ok'] else 'failed'}")
sys.exit(not result["ok"])
PYTHON
