#!/bin/sh
# What needs two cards of one host, in stages that each end by themselves and leave files in OUT.
#
#   bench/two_cards.sh look     RESULT OUT              the cards, how they are linked, which tools are here
#   bench/two_cards.sh checks   RESULT OUT              all checks of several cards: OUT/checks.json
#   bench/two_cards.sh compare  RESULT OUT PUBLISHED    the same against another result: OUT/compared.json
#   bench/two_cards.sh suite    RESULT OUT              pytest tests/gpu with one and with two workers: OUT/suite-*.txt
#
# RESULT and PUBLISHED are results (bin/python, share/vllm-variants/manifest.json). Environment:
#   PYTHON    a Python >= 3.11 with this project's packages (and pytest, pytest-xdist for `suite`); python3
#   NATIVE    not empty: the driver may compile nothing for RESULT (verify --native)
#   SEED      the inputs' seed; 27
#   SECONDS_A_STAGE   a stage is ended after so many; 540
#   FILTER    which checks `suite` runs (pytest -k); the default has 24 of one card and all of several
#
# NVLink multicast stays off: the checks see to it, and this script for what else it starts.
set -eu

stage=${1:?a stage: look, checks, compare, suite}
result=$(readlink -f "${2:?a result}")
out=${3:?a folder for what comes of it}
mkdir -p "$out"
out=$(readlink -f "$out")
root=$(dirname -- "$(dirname -- "$(readlink -f -- "$0")")")
python=${PYTHON:-python3}
seed=${SEED:-27}
limit=${SECONDS_A_STAGE:-540}
filter=${FILTER:-"torch or cache or norm or quantisation or sampling or nccl or custom or tensor_parallel"}
export PYTHONPATH="$root/python${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1
export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NVSHMEM_DISABLE_NVLS=1

# Without typer and rich there is the command that needs neither; it knows no manifest.
plain() {
  ! "$python" -c 'import typer, rich, pynvml' 2>"$out/missing.txt"
}

fact() {
  "$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' \
    "$result/share/vllm-variants/manifest.json" "$1"
}

# verify NAME ARGUMENTS: stdout to OUT/NAME.json, stderr to OUT/NAME.txt and to the terminal; its own exit code.
verify() {
  name=$1
  shift
  began=$(date +%s)
  code=0
  timeout -k 20 "$limit" "$python" -m vllm_variants verify --result "$result" ${NATIVE:+--native} \
    --seed "$seed" --time "$((limit - 30))" --logs "$out/logs-$name" --json "$@" \
    >"$out/$name.json" 2>"$out/$name.txt" || code=$?
  cat "$out/$name.txt"
  echo "$name: exit code $code after $(($(date +%s) - began)) s"
  tail_logs "$out/logs-$name" "$code"
  return "$code"
}

# The same without a manifest: text to OUT/NAME.txt, outcomes as lines to OUT/NAME.jsonl.
verify_plainly() {
  name=$1
  shift
  rm -f "$out/$name.jsonl"
  code=0
  timeout -k 20 "$limit" "$python" -m vllm_variants.verify --python "$result/bin/python" --sm "$(fact sm)" \
    --release "$(fact release)" --facts "{\"inside\": [\"$result\"]}" ${NATIVE:+--native} \
    --seed "$seed" --time "$((limit - 30))" --logs "$out/logs-$name" --jsonl "$out/$name.jsonl" "$@" \
    >"$out/$name.txt" 2>&1 || code=$?
  cat "$out/$name.txt"
  tail_logs "$out/logs-$name" "$code"
  return "$code"
}

# several FUNCTION NAME ARGUMENTS: one of the two, for the checks of several cards.
several() {
  function=$1
  name=$2
  shift 2
  "$function" "$name" --only all_reduce --only nccl --only 'generate.tensor_parallel*' "$@"
}

# What failed checks wrote last, where something failed.
tail_logs() {
  [ "$2" -eq 0 ] && return
  for log in "$1"/*.log "$1"/*/*.log; do
    [ -s "$log" ] && echo "── $log" && tail -n 25 "$log"
  done || true
}

# suite WORKERS: the wall time of pytest with so many workers.
suite() {
  began=$(date +%s.%N)
  code=0
  cd "$root"
  timeout -k 20 "$limit" "$python" -m pytest -c pyproject.toml -p no:cacheprovider tests/gpu \
    --result "$result" --seed "$seed" -n "$1" -k "$filter" --durations 10 \
    >"$out/suite-$1.txt" 2>&1 || code=$?
  tail -n 25 "$out/suite-$1.txt"
  "$python" -c 'import sys, time; print(f"{sys.argv[1]} workers: {time.time() - float(sys.argv[2]):.1f} s wall, exit code {sys.argv[3]}")' \
    "$1" "$began" "$code" | tee -a "$out/suite-times.txt"
  return "$code"
}

case $stage in
  look)
    {
      nvidia-smi -L
      nvidia-smi topo -m || true
      "$python" --version
      "$python" -c 'import importlib.util as u; print({n: bool(u.find_spec(n)) for n in "typer rich pynvml pytest xdist".split()})'
      df -h /dev/shm "$out"
      "$result/bin/python" -c 'import torch; n = torch.cuda.device_count(); print(n, [[torch.cuda.can_device_access_peer(a, b) for b in range(n)] for a in range(n)], torch.cuda.nccl.version())'
    } 2>&1 | tee "$out/look.txt"
    ;;
  checks)
    if plain; then several verify_plainly checks; else several verify checks; fi
    ;;
  compare)
    published=$(readlink -f "${4:?the result to compare with}")
    if plain; then
      several verify_plainly compared --against "$published/bin/python"
    else
      several verify compared --compare "$published"
    fi
    ;;
  suite)
    failed=0
    suite 2 || failed=1
    suite 1 || failed=1
    exit "$failed"
    ;;
  *)
    echo "error: $stage is no stage: look, checks, compare, suite" >&2
    exit 2
    ;;
esac
