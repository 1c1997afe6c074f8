#!/usr/bin/env bash
# Everything that only a GPU can prove, in ten minutes, in order of importance.
#
#   bash dev/gpu.sh                     all phases; results in $OUT (out/gpu unless it is set)
#   bash dev/gpu.sh kernels sampling    some of: correctness kernels sampling training weights
#   bash dev/gpu.sh --dry               every phase on the CPU with tiny sizes: does the script run?
#
# No phase stops the next. A job that hangs or kills its CUDA context ends its process; the phase
# then starts again behind that job. Wheels in deps/wheels/ are unpacked and put on PYTHONPATH, for
# machines without a network (pip download --no-deps -d deps/wheels ftfy wcwidth).
# TRAIN="--dataset toy" says what train.py is to train in the phase weights.
# LIMITS="340 60 80 80" sets the seconds of the first four phases, TOTAL=620 those of everything.
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3} OUT=${OUT:-out/gpu} TOTAL=${TOTAL:-620} dry="" chosen=""
for word in "$@"; do
    if [ "$word" = --dry ]; then dry=--dry; else chosen="$chosen $word"; fi
done
if [ -n "$dry" ]; then  # on a busy machine, too
    LIMITS=${LIMITS:-400 200 200 200} TOTAL=1200 dry="--dry --hang 200"
fi
read -r -a limits <<< "${LIMITS:-340 60 80 80}"
mkdir -p "$OUT"
rm -f "$OUT/results.jsonl" "$OUT/log.txt" "$OUT/table.txt" "$OUT"/tests.jsonl*
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

shopt -s nullglob
for wheel in deps/wheels/*.whl; do
    "$PYTHON" -m zipfile -e "$wheel" "$scratch/wheels" || echo "$wheel could not be unpacked"
done
export PYTHONPATH="$scratch/wheels:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export GPU_SCRATCH="$scratch" OUT
if [ -n "$dry" ]; then
    export CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=1
    if "$PYTHON" -c "import triton" 2>/dev/null; then  # the kernels, in Triton's interpreter
        export TRITON_INTERPRET=1 MLD_KERNELS=triton
    fi
fi

phase() {  # name, seconds
    case " ${chosen:-$1} " in *" $1 "*) ;; *) return ;; esac
    local end=$((SECONDS + $2)) code left tries
    for tries in 1 2 3 4; do
        left=$((end - SECONDS))
        [ "$left" -gt 5 ] || break
        echo "== $1: $left s" | tee -a "$OUT/log.txt"
        timeout -k 5 "$left" "$PYTHON" -m dev.gpu "$1" --seconds "$left" $dry \
            < /dev/null >> "$OUT/log.txt" 2>&1
        code=$?
        [ "$code" -eq 0 ] && return
        echo "== $1 ended with $code (124: out of time)" | tee -a "$OUT/log.txt"
        [ "$code" -eq 124 ] || [ "$code" -eq 137 ] && return
    done
}

phase correctness "${limits[0]}"
phase kernels "${limits[1]}"
phase sampling "${limits[2]}"
phase training "${limits[3]}"
phase weights $((TOTAL - SECONDS - 10))
"$PYTHON" -m dev.gpu table 2>&1 | tee "$OUT/table.txt"
