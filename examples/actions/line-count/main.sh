set -eu
wc -l < "$text" > "$ATOLL_OUTPUTS/lines"
