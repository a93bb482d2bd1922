#!/bin/sh
# Stream an answer with curl; -N shows each event as it comes.
#   sh stream_curl.sh [BASE_URL [KEY]]
set -eu
base_url=${1:-http://127.0.0.1:8000/v1}
key=${2:-none}
curl --fail-with-body --silent --show-error -N "$base_url/chat/completions" \
    -H "Authorization: Bearer $key" -H 'Content-Type: application/json' \
    -d '{"model": "tiny", "stream": true, "messages": [{"role": "user", "content": "What is 3+4?"}]}'
