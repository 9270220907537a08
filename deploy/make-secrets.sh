#!/usr/bin/env bash
# Make what compose.yaml takes from deploy/secrets, unless it is there: the key of the server, and a
# self-signed certificate. Argument: the host name. Replace the certificate by one of your site.
set -euo pipefail
name=${1:-localhost}
folder=${SECRETS:-$(dirname "${BASH_SOURCE[0]}")/secrets}
mkdir -p "$folder"
chmod 700 "$folder"                     # others cannot enter it
cd "$folder"
[[ -e api_key ]] || openssl rand -hex 24 >api_key
if [[ ! -e tls.crt ]]; then
    openssl req -x509 -newkey rsa:2048 -nodes -days 825 -subj "/CN=$name" \
        -addext "subjectAltName=DNS:$name,DNS:localhost,IP:127.0.0.1" \
        -keyout tls.key -out tls.crt 2>/dev/null
    echo "Made a self-signed certificate for $name: $folder/tls.crt"
elif openssl x509 -in tls.crt -noout -checkhost "$name" | grep -q 'does match'; then
    echo "The certificate stays: $folder/tls.crt"
else
    echo "The certificate $folder/tls.crt is not for $name; it stays. To make another one," \
        "remove tls.crt and tls.key there first" >&2
fi
chmod 644 api_key tls.crt tls.key       # the account of the containers, 10001, must read them
echo "The key of the server is in $folder/api_key"
