#!/usr/bin/env bash
# Checks and measures the PyTorch backend on an NVIDIA GPU: golden values, the parity suite against the CPU, the benchmark.
#
#   bash benchmarks/gpu.sh OUT_DIR [ORIGINAL_DIR]
#
# PYTHON  the interpreter that has PyTorch with CUDA (default: python3)
# WHEELS  a folder of wheels, on a machine without network
#
# It takes less than 10 minutes. Every part has a log in OUT_DIR, and goes on where another one failed. Exit codes: 0 all
# parts passed, 1 some failed or did not end in time, 2 there is nothing to run on.
set -uo pipefail

[ "$#" -ge 1 ] || { sed -n '2,10p' "${BASH_SOURCE[0]}" >&2; exit 2; }
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
original=${2:+$(cd "$2" && pwd)} || exit 2
python=${PYTHON:-python3}
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
    echo "$python: found no PyTorch with a GPU; expected one where torch.cuda.is_available(). Set PYTHON." >&2
    exit 2
}

# The environment sees the packages of PYTHON; pip adds only those that it lacks.
if ! [ -e "$out/environment/done" ]; then
    "$python" -m venv --system-site-packages "$out/environment" || exit 2
    # An environment made from another one sees the packages of the system alone: name those of PYTHON too.
    "$out/environment/bin/python" -c \
        'import sys, sysconfig; open(sysconfig.get_path("purelib") + "/parent.pth", "w").write(sys.argv[1])' \
        "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || exit 2
    pip=("$out/environment/bin/python" -m pip install --quiet)
    [ -z "${WHEELS:-}" ] || pip+=(--no-index --find-links "$WHEELS")
    "${pip[@]}" hatchling && "${pip[@]}" --no-build-isolation '.[pytorch]' pytest pytest-xdist hypothesis || {
        echo "The packages of pyproject.toml could not be installed. Without network, set WHEELS." >&2
        exit 2
    }
    touch "$out/environment/done"
fi
py=$out/environment/bin/python
export MEDSEGDIFF_BACKENDS=pytorch MEDSEGDIFF_DEVICE=cuda:0

failed=0
part() { # name, seconds that it may take, command
    local name=$1 limit=$2 began=$SECONDS state=passed
    shift 2
    echo "$name: log in $out/$name.log"
    timeout --signal=INT "$limit" "$@" >"$out/$name.log" 2>&1 || { state="failed (exit code $?)"; failed=1; }
    echo "$name: $state after $((SECONDS - began)) s" | tee -a "$out/parts.txt"
    [ "$state" = passed ] || tail -n 15 "$out/$name.log"
}

: >"$out/parts.txt"
part doctor 30 "$py" -m medsegdiff doctor
part golden 120 "$py" -m pytest -q -p no:cacheprovider -p no:xdist \
    tests/networks/test_network_golden.py tests/training/test_train_golden.py tests/diffusion/test_diffusion_golden.py
part parity 120 "$py" -m parity run weights forward/new gradients/new steps/new sampling/ddim \
    --backends pytorch,pytorch@cuda:0 --threads "$(nproc)" --out_dir "$out/parity" --resume
peer=(${original:+--peer "$original"})
measure=("$py" -m benchmarks run --device cuda:0 --backends pytorch --arithmetics float32 tf32 bf16 --resume)
part training 140 "${measure[@]}" "${peer[@]}" --what training --sizes 64 128 256 --batch 4 \
    --repeats 3 --seconds 15 --out_dir "$out/training"
part evaluation 70 "${measure[@]}" "${peer[@]}" --what evaluation --sizes 256 --batch 16 \
    --repeats 3 --seconds 15 --out_dir "$out/evaluation"
part cases 110 "${measure[@]}" "${peer[@]}" --what cases --sizes 64 128 256 --batch 4 \
    --repeats 2 --seconds 15 --out_dir "$out/cases"

cat "$out/parts.txt"
for name in training evaluation cases; do
    sed -n '/^## Targets/,/^## Outputs/p' "$out/$name/README.md" 2>/dev/null
done
exit "$failed"
