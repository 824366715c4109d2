# The text is below /atoll/inputs, which is read-only. There is no network.
set -eu
lines=0 longest=0
while IFS= read -r line; do
    lines=$((lines + 1))
    [ "${#line}" -le "$longest" ] || longest=${#line}
done < "$text"
echo "$lines" > "$ATOLL_OUTPUTS/lines"
echo "$longest" > "$ATOLL_OUTPUTS/longest"
