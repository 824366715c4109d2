set -eu
head -n "$count" "$text" > "$ATOLL_OUTPUTS/beginning"
