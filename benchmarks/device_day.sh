#!/usr/bin/env bash
# The first quarter of an hour on a GPU: is it right, how fast is it, which shapes are faster.
#
#     bash benchmarks/device_day.sh OUT            on a device; at most twelve minutes
#     bash benchmarks/device_day.sh OUT rehearsal  a little of each part, on the emulated CUDA
#
# Everything is written to OUT as it comes: log files, JSON, pictures. The file OUT/verdict has a line
# for each part; the first ones are there within a minute.
set -uo pipefail
out=$(mkdir -p "${1:?usage: device_day.sh OUT [rehearsal]}" && cd "$1" && pwd)
rehearsal=${2:-}
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD:$PWD/kernels:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}" MPLBACKEND=Agg
[ -n "$rehearsal" ] || export FASTOPT_TEST_GPU=1
start=$SECONDS
: > "$out/verdict"

# part NAME SECONDS COMMAND...: runs it in so many seconds at most, with its words in NAME.log.
part() {
    local name=$1 limit=$2 begin=$SECONDS status
    shift 2
    timeout --kill-after=10 "$limit" "$@" > "$out/$name.log" 2>&1
    status=$?
    case $status in
        0) said="good" ;;
        124 | 137) said="NOT FINISHED in $limit s" ;;
        *) said="WRONG (status $status): $(tail -n 1 "$out/$name.log")" ;;
    esac
    printf '%4d s  %-12s %s (%d s)\n' $((SECONDS - start)) "$name" "$said" $((SECONDS - begin)) |
        tee -a "$out/verdict"
    return $status
}

gpu() { # on a device as it is, in a rehearsal on the emulated CUDA
    if [ -n "$rehearsal" ]; then python -m helpers.cuda.emulation.run "$@"; else python "$@"; fi
}

tests() { pytest -q -p no:cacheprovider -n 0 --junit-xml "$out/$1.xml" "${@:2}"; }
export -f tests gpu
export out rehearsal

part about 30 python -m fastopt info
part compiles 60 bash -c 'gpu benchmarks/device_check.py'
part first 60 bash -c 'tests first -m gpu -x tests/cuda/test_text.py -k "every_rule_ends_in_the_bits and adam"'
if [ -n "$rehearsal" ]; then
    part correct 60 bash -c 'tests correct -m gpu tests/cuda/test_device.py -k "193 or scale"'
    part benchmark 60 bash -c 'tests benchmark tests/house/test_gpu_benchmark.py'
else
    part correct 270 bash -c 'tests correct -m "gpu and not exhaustive" tests/cuda'
    part benchmark 240 python benchmarks/gpu.py --json "$out/gpu.json" --picture "$out/gpu.png"
    part tuning 120 python benchmarks/gpu.py --tune --json "$out/tuning.json"
fi
cat "$out/verdict"
! grep -q -e WRONG -e NOT "$out/verdict"
