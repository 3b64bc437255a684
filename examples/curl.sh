#!/usr/bin/env bash
# usage: curl.sh [FILE]
#
# Encrypts FILE and uploads it as a bundle. Then downloads the bundle, verifies and decrypts it, and
# compares the result with FILE. Needs only curl and openssl. The default FILE is test_bundle.jsonl
# in the directory of this script. The bundle has the format of `openssl enc`, so fetch-bundle.py,
# which reads the AES Crypt format, cannot decrypt it.
#
# environment:
#   SIGNING_KEY   key of the bundle's HMAC: long and random, for example from `openssl rand -hex 32`
#   AES_KEY       password that encrypts the file: long and random, as above
#   HISTORY_URL   address of the server (default: http://localhost:5558)
#   HISTORY_TOKEN upload token, if the server needs one

set -euo pipefail
export LC_ALL=C # treat keys as bytes, whatever the user's locale is
umask 077

die() {
    printf 'curl.sh: %s\n' "$1" >&2
    exit 1
}

# hex: print the bytes from stdin as hex digits
hex() {
    od -An -v -tx1 | tr -d ' \n'
}

# sign FILE: print the HMAC-SHA256 of FILE under $key in hex (RFC 2104: H(K^opad, H(K^ipad, FILE))).
# `openssl dgst -hmac KEY` is shorter, but shows the key to every user who can run ps. printf does
# not, because it is built into bash and starts no process.
sign() {
    local block inner='' outer='' byte i
    block=$(printf %s "$key" | hex)
    if ((${#block} > 128)); then
        block=$(printf %s "$key" | openssl dgst -sha256 -binary | hex)
    fi
    while ((${#block} < 128)); do block+=00; done
    for ((i = 0; i < 128; i += 2)); do
        printf -v byte '\\0%03o' $((0x${block:i:2} ^ 0x36)) && inner+=$byte
        printf -v byte '\\0%03o' $((0x${block:i:2} ^ 0x5c)) && outer+=$byte
    done
    {
        printf %b "$outer"
        { printf %b "$inner" && cat -- "$1"; } | openssl dgst -sha256 -binary
    } | openssl dgst -sha256 -binary | hex
}

# request NAME CURL-ARGUMENT...: write the body of a 200 response to $work/NAME. The request headers
# come from stdin, so ps does not show them. Every wait has a timeout. Redirects are not followed,
# even if ~/.curlrc enables them: a redirect could send the key to another address.
request() {
    local body=$work/$1 status code=0
    shift
    : >"$body"
    status=$(curl "$meter" --no-location --globoff --proto '=http,https' --connect-timeout 10 \
        --speed-limit 1 --speed-time 60 --header @- --output "$body" --write-out '%{http_code}' \
        "$@") || code=$?
    # A server can refuse an upload before it has read all of it. The upload then breaks too, but
    # the server's reason is the better message, so check the status first.
    case $status in
        000 | 1?? | 200) ;; # 000 and 1xx: there is no final response, so $code tells the error
        *) die "$(refusal "$status" "$body")" ;;
    esac
    case $code in
        0) ;;
        1 | 3) die "HISTORY_URL ($url) is not an http:// or https:// address: correct it." ;;
        5 | 6 | 7) die "Cannot reach $url: check that the server runs, and HISTORY_URL." ;;
        18 | 52 | 55 | 56) die "The connection to $url broke: try again." ;;
        23) die "Cannot write to $work: check the disk, or set TMPDIR." ;;
        28) die "$url was silent for a minute, or did not connect in 10 s: try again later." ;;
        *) die "curl failed on $url with exit status $code: see EXIT CODES in man curl." ;;
    esac
}

# refusal STATUS FILE: print advice and the `detail` of the problem+json (RFC 9457) in FILE. Reads
# at most 64 KiB and prints only printable ASCII, because the text comes from the server.
refusal() {
    local advice detail
    case $1 in
        3??) advice='This script does not follow redirects: set HISTORY_URL to the new address' ;;
        401) advice='The upload token or the proof is wrong: check HISTORY_TOKEN, and proxies' ;;
        404) advice='The server does not know this bundle or path: check HISTORY_URL' ;;
        413) advice="The bundle is over the server's limit: try a smaller file" ;;
        422) advice='The bundle was damaged in transit: try again' ;;
        429) advice='The server has had too many uploads with this token: try again later' ;;
        503) advice='The server cannot handle a bundle right now: try again in a minute' ;;
        5??) advice='The server failed: try again later' ;;
        *) advice='The server refused the request: read its reason, and check HISTORY_URL' ;;
    esac
    detail=$(head -c 65536 "$2" | tr -cd ' -~' |
        sed -nE 's/.*"detail" *: *"(([^"\\]|\\.)*)".*/\1/p' | sed 's/\\\(.\)/\1/g' | cut -c 1-300)
    printf '%s' "$advice (HTTP $1${detail:+: $detail})"
}

if [[ ${1-} == -h || ${1-} == --help ]]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit
elif (($# > 1)) || [[ ${1-} == -?* ]]; then
    printf 'usage: curl.sh [FILE]\n' >&2
    exit 2
fi
history=${1-$(dirname -- "$0")/test_bundle.jsonl}
url=${HISTORY_URL:-http://localhost:5558}
while [[ $url == */ ]]; do url=${url%/}; done

missing=
for name in SIGNING_KEY AES_KEY; do
    value=${!name-}
    [[ -n ${value//[[:blank:]]/} ]] || missing+="${missing:+, }$name"
done
[[ -z $missing ]] || die "Export a value for $missing first (see --help)."

# HTTP removes whitespace around a header value, so whitespace there cannot be part of the key.
key=$SIGNING_KEY
while [[ $key == [[:blank:]]* ]]; do key=${key#?}; done
while [[ $key == *[[:blank:]] ]]; do key=${key%?}; done
if [[ ${key//$'\t'/} == *[[:cntrl:]]* ]]; then
    die 'SIGNING_KEY has a control character, which HTTP forbids: use another key.'
fi

authorization=
if [[ -n ${HISTORY_TOKEN-} ]]; then
    if [[ $HISTORY_TOKEN == *[^!-~]* ]]; then
        die 'HISTORY_TOKEN is not printable ASCII without spaces: correct it.'
    fi
    authorization="Authorization: Bearer $HISTORY_TOKEN"$'\n'
fi

for tool in curl openssl; do
    command -v "$tool" >/dev/null || die "$tool is not installed: install it."
done
[[ -f $history && -r $history ]] ||
    die "Cannot read $history: check the file's name and permissions."
[[ -s $history ]] || die "$history is empty: name a file that contains messages."

work=$(mktemp -d "${TMPDIR:-/tmp}/history.XXXXXX" 2>/dev/null) ||
    die "Cannot write to ${TMPDIR:-/tmp}: set TMPDIR to a directory with free space."
trap 'rm -rf -- "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
meter=--silent
[[ ! -t 2 ]] || meter=--progress-bar
cipher=(-aes-256-cbc -pbkdf2 -md sha256 -pass env:AES_KEY)

openssl enc -e "${cipher[@]}" -in "$history" -out "$work/bundle" 2>/dev/null ||
    die "openssl cannot encrypt $history: check the disk, and that openssl is 1.1.1 or later."
hmac=$(sign "$work/bundle")

# --upload-file streams the file. --data-binary would first read it into memory.
printf '%sX-HMAC: %s\n' "$authorization" "$hmac" |
    request id --request POST --upload-file "$work/bundle" "$url/upload"
id=$(head -c 64 "$work/id" | tr -cd ' -~')
hex4='[0-9a-f]{4}'
[[ $id =~ ^$hex4$hex4-$hex4-$hex4-$hex4-$hex4$hex4$hex4$ ]] ||
    die "$url answered without a bundle's id: check HISTORY_URL."
printf 'Bundle id: %s\nHMAC: %s\n' "$id" "$hmac"

printf 'X-HMAC: %s\nX-SIGNING-KEY: %s\n' "$hmac" "$key" | request download "$url/files/$id"
[[ $(sign "$work/download") == "$hmac" ]] ||
    die 'The downloaded bytes do not match the HMAC of the upload: try again.'

openssl enc -d "${cipher[@]}" -in "$work/download" -out "$work/history" 2>/dev/null ||
    die "openssl cannot decrypt the bundle into $work: check the disk."
cmp -s -- "$history" "$work/history" || die "$history changed after the upload: try again."
printf 'Downloaded, verified and decrypted: the result is identical to %s\n' "$history"
