# Stands for what a real gauge would give: levels that rise and fall, other ones for each river.
set -eu
awk -v river="$river" -v hours="$hours" 'BEGIN {
    for (letter = 1; letter <= length(river); letter++)
        seed = (seed * 131 + index("abcdefghijklmnopqrstuvwxyz", substr(river, letter, 1)) + 1) % 2147483647
    level = 2
    for (hour = 0; hour < hours; hour++) {
        seed = (seed * 16807) % 2147483647
        level += 0.3 * (seed / 2147483647 - 0.5) + 0.02 * (2 - level)
        printf "%s,%d,%.3f\n", river, hour, level
    }
}' > "$ATOLL_OUTPUTS/levels"
echo "$river: $hours hours, read in a container on kernel $(uname -r)"
