#!/bin/sh
# Runs every fuzz target for so long: `run.sh BUILD SECONDS`, for `make fuzz`. A target begins with
# a copy of its seeds in tests/fuzz/corpus; what it adds to them, what it says and what it finds is
# in BUILD. One that finds something says how to see that again, and the others still run.
set -u
build=$1 seconds=$2
seeds=$(dirname "$0")/corpus
status=0

export BECKET_TEST_CERTIFICATES="$build/certificates"
[ -e "$BECKET_TEST_CERTIFICATES/stranger.crt" ] ||
    sh "$(dirname "$0")/../certificates.sh" "$BECKET_TEST_CERTIFICATES" || exit 1
mkdir -p "$build/findings"

# What was freed is remembered for a while, by default so much of it that it is slow.
export ASAN_OPTIONS="quarantine_size_mb=16:${ASAN_OPTIONS-}"

for target in hello tls_transport engine endpoint proxy smtp smtp_client; do
    program=$build/tests/fuzz/fuzz_$target corpus=$build/corpus/$target log=$build/$target.log
    rm -rf "$corpus" && mkdir -p "$corpus" && cp "$seeds/$target"/* "$corpus/" || exit 1
    # Inputs are short: what is long is slow, and says no more.
    if "$program" -max_total_time="$seconds" -max_len=700 -len_control=20 -timeout=15 \
        -artifact_prefix="$build/findings/$target-" "$corpus" >"$log" 2>&1; then
        echo "fuzz_$target: $(grep '^Done ' "$log")"
        continue
    fi
    status=1
    # All but its progress.
    grep -vE '^(#[0-9]+|INFO:|[[:space:]]*NEW_FUNC)' "$log"
    finding=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
    echo "fuzz_$target: FAILED. All it said is in $log"
    [ -n "$finding" ] || continue
    echo 'To see it again, with what goes on (fuzz_engine does not always do the same):'
    echo "  FUZZ_TRACE=1 BECKET_TEST_CERTIFICATES=$BECKET_TEST_CERTIFICATES $program $finding"
done
exit $status
