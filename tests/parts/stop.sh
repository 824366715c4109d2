# For the scripts beside it: ends a process that one of them has started.

# Gone, or dead and not yet reaped.
is_over() {
    local state
    state=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -c1) || return 0
    [ -z "$state" ] || [ "$state" = Z ]
}

# stop FILE TEXT: the process whose number the file holds, if the text stands in its command line: a number that came to
# another process since is left alone.
stop() {
    local pid
    [ -s "$1" ] || return 0
    pid=$(cat "$1")
    grep -qz "$2" "/proc/$pid/cmdline" 2>/dev/null || return 0
    kill "$pid" 2>/dev/null
    for _ in $(seq 100); do
        is_over "$pid" && return 0
        sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null
}
