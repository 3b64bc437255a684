#!/usr/bin/env bash
# usage: curl.sh [FILE]
#
# Encrypts FILE (default: test_bundle.jsonl beside this script), uploads it, fetches it again,
# verifies, decrypts and compares it, with nothing but curl and openssl. The bundle's format is
# that of `openssl enc`: fetch-bundle.py, which reads AES Crypt's, cannot open it.
#
# environment:
#   SIGNING_KEY   signs the bundle; long and random, such as `openssl rand -hex 32` prints
#   AES_KEY       encrypts it; likewise
#   HISTORY_URL   the server (default: http://localhost:5558)

set -euo pipefail
export LC_ALL=C # keys are bytes, not characters of some language
umask 077

die() {
    printf 'curl.sh: %s\n' "$1" >&2
    exit 1
}

# hex: the bytes on stdin as hex digits
hex() {
    od -An -v -tx1 | tr -d ' \n'
}

# sign FILE: its HMAC-SHA256 under $key in hex, as RFC 2104 makes it: H(K^opad, H(K^ipad, FILE)).
# `openssl dgst -hmac KEY` is shorter, but tells the key to everyone who can run ps. printf does
# not, for it is a part of bash and no program.
sign() {
    local block inner='' outer='' digit i
    block=$(printf %s "$key" | hex)
    if ((${#block} > 128)); then
        block=$(printf %s "$key" | openssl dgst -sha256 -binary | hex)
    fi
    while ((${#block} < 128)); do block+=00; done
    for ((i = 0; i < 128; i += 2)); do
        printf -v digit '\\0%03o' $((0x${block:i:2} ^ 0x36)) && inner+=$digit
        printf -v digit '\\0%03o' $((0x${block:i:2} ^ 0x5c)) && outer+=$digit
    done
    {
        printf %b "$outer"
        { printf %b "$inner" && cat -- "$1"; } | openssl dgst -sha256 -binary
    } | openssl dgst -sha256 -binary | hex
}

# request NAME CURL-ARGUMENT...: leaves the body of a 200 in $work/NAME. The headers come on stdin,
# out of sight of ps. Every wait has its end, and no redirect is followed, not even for a ~/.curlrc.
request() {
    local answer=$work/$1 status code=0
    shift
    : >"$answer"
    status=$(curl "$meter" --no-location --globoff --proto '=http,https' --connect-timeout 10 \
        --speed-limit 1 --speed-time 60 --header @- --output "$answer" --write-out '%{http_code}' \
        "$@") || code=$?
    # A server may refuse before it has read all; its word then counts more than the broken upload.
    case $status in
        000 | 1?? | 200) ;; # 1xx: the server was about to answer, and did not
        *) die "$(refusal "$status" "$answer")" ;;
    esac
    case $code in
        0) ;;
        1 | 3) die "HISTORY_URL ($url) is no http:// or https:// address: correct it." ;;
        5 | 6 | 7) die "Cannot reach $url: is it up, and HISTORY_URL right?" ;;
        18 | 52 | 55 | 56) die "The connection to $url broke: try again." ;;
        23) die "Cannot write to $work: check its disk, or set TMPDIR." ;;
        28) die "$url was silent for a minute, or did not connect in 10 s: try again later." ;;
        *) die "curl failed on $url with exit status $code: see EXIT CODES in man curl." ;;
    esac
}

# refusal STATUS FILE: advice, with the `detail` of a problem+json (RFC 9457). Only printable
# characters of the server's words, and no more than 64 KiB of them are looked at.
refusal() {
    local advice detail
    case $1 in
        3??) advice="No redirect is followed: set HISTORY_URL to the server's new address" ;;
        401) advice='The proof does not hold: look for a proxy that changes headers or bodies' ;;
        404) advice='The server does not know this bundle or path: check HISTORY_URL' ;;
        413) advice="The bundle is over the server's limit: try a smaller file" ;;
        422) advice='The bundle was damaged on its way: try again' ;;
        503) advice='The server can take or give no bundle right now: try again in a minute' ;;
        5??) advice='The server failed: try again later' ;;
        *) advice='The server refused: see its reason, and check HISTORY_URL' ;;
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
[[ -z $missing ]] || die "Unset or empty: $missing: export a value first (see --help)."

# HTTP drops white space around a header's value, so it cannot be part of the key.
key=$SIGNING_KEY
while [[ $key == [[:blank:]]* ]]; do key=${key#?}; done
while [[ $key == *[[:blank:]] ]]; do key=${key%?}; done
if [[ ${key//$'\t'/} == *[[:cntrl:]]* ]]; then
    die 'SIGNING_KEY has a control character in it: HTTP needs a key without.'
fi

for tool in curl openssl; do
    command -v "$tool" >/dev/null || die "$tool is not installed: install it."
done
[[ -f $history && -r $history ]] || die "Cannot read $history: check the file's name and rights."
[[ -s $history ]] || die "$history is empty: name a file with messages in it."

work=$(mktemp -d "${TMPDIR:-/tmp}/history.XXXXXX" 2>/dev/null) ||
    die "Cannot write to ${TMPDIR:-/tmp}: set TMPDIR to where there is room."
trap 'rm -rf -- "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
meter=--silent
[[ ! -t 2 ]] || meter=--progress-bar
cipher=(-aes-256-cbc -pbkdf2 -md sha256 -pass env:AES_KEY)

openssl enc -e "${cipher[@]}" -in "$history" -out "$work/bundle" 2>/dev/null ||
    die "openssl cannot encrypt $history into $work: check the disk, and that it is 1.1.1 or later."
hmac=$(sign "$work/bundle")

# -T streams the file; --data-binary would first read it into memory.
printf 'X-HMAC: %s\n' "$hmac" | request id --request POST --upload-file "$work/bundle" "$url/upload"
id=$(head -c 64 "$work/id" | tr -cd ' -~')
hex4='[0-9a-f]{4}'
[[ $id =~ ^$hex4$hex4-$hex4-$hex4-$hex4-$hex4$hex4$hex4$ ]] ||
    die "$url answered without a bundle's id: check HISTORY_URL."
printf 'Bundle id: %s\nHMAC: %s\n' "$id" "$hmac"

printf 'X-HMAC: %s\nX-SIGNING-KEY: %s\n' "$hmac" "$key" | request fetched "$url/files/$id"
[[ $(sign "$work/fetched") == "$hmac" ]] || die 'What arrived is not what was signed: try again.'

openssl enc -d "${cipher[@]}" -in "$work/fetched" -out "$work/history" 2>/dev/null ||
    die "openssl cannot decrypt the bundle into $work: check the disk."
cmp -s -- "$history" "$work/history" || die "$history changed since it was uploaded: try again."
printf 'Fetched, verified and decrypted: it is what was uploaded.\n'
