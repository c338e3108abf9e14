#!/usr/bin/env bash
# `heaptrack_print --print-massif` writes "a massif compatible data file". massif's own reader, `ms_print`, takes none of
# them. The three lines that such a file begins with (`desc:`, `cmd:`, `time_unit:`) are its last ones. Who moves them to
# the front is told that the unit of time is a bad one: heaptrack writes `s`, and massif's are `i`, `ms` and `B`. Who writes
# `ms` there has a graph, of the right height, whose milliseconds are seconds.
#
# Seen with heaptrack 1.4.0 and valgrind 3.19.0, as Debian 12 has them, for a program that holds 30,000,000
# bytes (and 72,704 of libstdc++, which heaptrack brings along).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export PATH=$work/usr/bin:$PATH LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu
packages=()
command -v heaptrack > /dev/null || packages+=(heaptrack libheaptrack libunwind8 libboost-{filesystem,iostreams,program-options}1.74.0)
command -v ms_print > /dev/null || packages+=(valgrind)
if [ ${#packages[@]} -gt 0 ]; then
    apt-get update -qq
    apt-get download -qq "${packages[@]}"
    for package in *.deb; do dpkg -x "$package" .; done
fi
heaptrack --version
ms_print --version 2>&1 || true

cat > program.c <<'C'
#include <stdlib.h>
#include <time.h>
int main(void) {
    for (int i = 0; i < 30; i++)
        ((char *volatile)malloc(1000000))[0] = 1;
    struct timespec some = {.tv_nsec = 50000000};
    nanosleep(&some, NULL);
}
C
gcc -O0 -o program program.c
heaptrack -o recorded ./program > log 2>&1 || { cat log; exit 1; }
heaptrack_print -f recorded.* --print-massif massif.out > log
grep "^peak heap" log

echo "The file's first line and its last:"
first=$(head -1 massif.out)
last=$(tail -3 massif.out)
printf '%s\n…\n%s\n' "$first" "$last"
[ "$first" = "#-----------" ]
[ "$last" = "desc: heaptrack
cmd: ./program
time_unit: s" ]

refused() {
    local said
    if said=$(ms_print "$1" 2>&1 > /dev/null); then return 1; fi
    echo "ms_print: $said"
    [ "$said" = "$2" ]
}
refused massif.out "Line 2: missing 'cmd' line"
{ echo "$last"; head -n -3 massif.out; } > moved
refused moved "bad time_unit: s"
sed 's/^time_unit: s/time_unit: ms/' moved > renamed
ms_print renamed > graph
grep -m 1 -A 1 "^ *MB" graph
grep -m 1 "30,072,704" graph
