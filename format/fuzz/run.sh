#!/usr/bin/env bash
# Runs every fuzz target for SECONDS each (default 60) on the stable toolchain: the flags are those of `cargo fuzz --sanitizer none`.
# New inputs stay in target/corpus; only inputs that cover something the seeds do not are worth moving to corpus/.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-60}
target=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Clink-dead-code --cfg fuzzing"
export CARGO_TARGET_DIR=$PWD/target
cargo build --release --target "$target"
# One target a core: each has one thread.
fuzz() {
    local name=$1
    mkdir -p "target/corpus/$name" "artifacts/$name"
    echo "fuzzing $name for $seconds s"
    "target/$target/release/$name" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -print_final_stats=0 -verbosity=0 \
        -artifact_prefix="artifacts/$name/" "target/corpus/$name" "corpus/$name" || {
        echo "$name failed" >&2
        return 1
    }
}
export -f fuzz
export seconds target
basename -s .rs fuzz_targets/*.rs | xargs -P "$(nproc)" -I{} bash -c 'fuzz {}'
echo "no target failed"
