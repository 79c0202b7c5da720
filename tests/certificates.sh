#!/bin/sh
# Makes the certificates that tests use: `certificates.sh DIR`, with the openssl command. Quick, and
# nothing secret is kept in the repository. Everything is PEM:
#
#   ca.crt                       the authority that the tests trust
#   server.crt, server.key       its chain (leaf and intermediate): localhost, site.test, 127.0.0.1, ::1
#   server.pem                   the same with the key in one file
#   other.crt, other.key         for other.test
#   unnamed.crt, unnamed.key     its subject is localhost, but it has no names
#   rsa.crt, rsa.key             as server, with an RSA key
#   client.crt, client.key       a client's; its name is "a client"
#   expired.crt, expired.key     as server, but no longer valid
#   stranger.crt, stranger.key   for localhost, from an authority nobody trusts: its own
set -eu
mkdir -p "$1"
cd "$1"

# authority NAME SUBJECT: a key and a certificate of its own
authority() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
        -keyout "$1.key" -out "$1.crt" -subj "/CN=$2" -addext basicConstraints=critical,CA:TRUE \
        -addext keyUsage=critical,keyCertSign,cRLSign -addext subjectKeyIdentifier=hash
}

# leaf NAME SUBJECT ALTERNATIVES KEY-OPTIONS...: signed by the intermediate
leaf() {
    name=$1 subject=$2 alternatives=$3 days=${DAYS:-3650}
    shift 3
    openssl req -new -nodes "$@" -keyout "$name.key" -out "$name.csr" -subj "/CN=$subject"
    {
        echo "basicConstraints=CA:FALSE"
        echo "keyUsage=digitalSignature,keyEncipherment"
        echo "extendedKeyUsage=serverAuth,clientAuth"
        echo "subjectKeyIdentifier=hash"
        echo "authorityKeyIdentifier=keyid"
        [ -z "$alternatives" ] || echo "subjectAltName=$alternatives"
    } >extensions
    openssl x509 -req -in "$name.csr" -CA middle.crt -CAkey middle.key -days "$days" \
        -extfile extensions -out leaf.crt -set_serial "0x$(openssl rand -hex 8)"
    cat leaf.crt middle.crt >"$name.crt"
}

exec 3>&2 2>certificates.log
trap 'test $? = 0 || cat certificates.log >&3' EXIT
ec='-newkey ec -pkeyopt ec_paramgen_curve:P-256'
here=DNS:localhost,DNS:site.test,IP:127.0.0.1,IP:::1

authority ca 'tests'
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout middle.key \
    -out middle.csr -subj '/CN=tests, intermediate'
cat >extensions <<EXTENSIONS
basicConstraints=critical,CA:TRUE
keyUsage=critical,keyCertSign,cRLSign
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
EXTENSIONS
openssl x509 -req -in middle.csr -CA ca.crt -CAkey ca.key -days 3650 -extfile extensions \
    -out middle.crt -set_serial 2
# shellcheck disable=SC2086
{
    leaf server localhost $here $ec
    leaf other other.test DNS:other.test $ec
    leaf unnamed localhost '' $ec
    leaf rsa localhost $here -newkey rsa:2048
    leaf client 'a client' '' $ec
    DAYS=-1 leaf expired localhost $here $ec
}
cat server.crt server.key >server.pem
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -keyout stranger.key \
    -out stranger.crt -subj /CN=localhost -addext "subjectAltName=$here"
rm -f ./*.csr extensions leaf.crt
