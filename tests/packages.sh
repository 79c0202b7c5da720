#!/bin/sh
# Sees to the programs that tests talk to becket with, or says which are missing; never fails, as the
# tests that need them can be skipped. `packages.sh bench` adds what the benchmarks' peers are built
# with, `packages.sh fuzz` the compiler of the fuzz targets; `packages.sh --report` installs
# nothing.
set -u
PATH=$PATH:/usr/sbin:/sbin  # smtp-source lives there

missing=
need() {  # need PACKAGE COMMAND...: succeeds where the package is there
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
# In lib/linux, or in a folder named after the machine.
has_fuzzer() {
    ls "$(clang -print-resource-dir)"/lib/*/libclang_rt.fuzzer*
}
# Its programs are not in PATH.
has_postgresql() {
    ls /usr/lib/postgresql/*/bin/initdb || command -v initdb
}
look() {
    missing=
    need swaks command -v swaks
    need postfix command -v smtp-source
    need dovecot-lmtpd test -x /usr/lib/dovecot/lmtp
    need wrk command -v wrk
    need haproxy command -v haproxy
    need systemd command -v systemd-analyze
    need postgresql has_postgresql
    need redis-server command -v redis-server
    need curl command -v curl
    need chromium command -v chromium
    need chromium-driver command -v chromedriver
    need openssl command -v openssl
    need libpython3-testsuite "${PYTHON:-python3}" -c 'import test.test_asyncio'
    need libnet-ssleay-perl perl -MNet::SSLeay -e 1
    need pkg-config command -v pkg-config
    need libssl-dev pkg-config --exists openssl
    need libgnutls28-dev pkg-config --exists gnutls
    need libmbedtls-dev test -e /usr/include/mbedtls/ssl.h
    if [ "${1-}" = bench ]; then
        need libuv1-dev pkg-config --exists libuv
        need libevent-dev pkg-config --exists libevent
    fi
    if [ "${1-}" = fuzz ]; then
        need clang command -v clang
        version=$(clang -dumpversion 2>/dev/null || echo 14)
        need "libclang-rt-${version%%.*}-dev" has_fuzzer
    fi
}

look "$@"
[ -n "$missing" ] || exit 0

if [ "${1-}" != --report ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    # Only its smtp-source is wanted: no configuration, and no mail server running afterwards.
    echo 'postfix postfix/main_mailer_type select No configuration' | debconf-set-selections
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        trap 'rm -f $policy' EXIT
        trap 'exit 1' HUP INT TERM
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
    fi
    # --no-remove: a mail server that is already there must not be replaced.
    install() {
        apt-get install -y -qq --no-install-recommends --no-remove \
            -o DPkg::Lock::Timeout=60 "$@" </dev/null >/dev/null
    }
    apt-get update -qq -o Acquire::Retries=0 </dev/null
    # Together is quicker; one by one, so that one that fails stops no other.
    # shellcheck disable=SC2086
    install $missing || for package in $missing; do install "$package"; done
    look "$@"
fi

if [ -n "$missing" ]; then
    echo "Not installed:$missing"
    echo "  What needs them is skipped. On Debian or Ubuntu: sudo apt-get install$missing"
fi
exit 0
