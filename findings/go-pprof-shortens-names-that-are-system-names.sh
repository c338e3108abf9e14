#!/usr/bin/env bash
# A pprof file has two names for a function: `name`, for people, and `system_name`, as the linker has it. Where
# both are the same, `go tool pprof` takes the name for a C++ one that nobody has demangled, and leaves out
# what is between `<` and `>`. Of Rust's `<a::Table as b::Grow>::more` only `::more` is left, and all functions of
# all traits look alike. Without a system name (0, the empty string) it is shown whole. Profilers that fill in both
# fields, since both are there, lose their names.
#
# Seen with Go 1.19.8, as Debian 12 has it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export PPROF_TMPDIR=$work
go=$(command -v go || true)
if [ -z "$go" ]; then
    apt-get update -qq
    apt-get download -qq golang-1.19-go
    dpkg -x golang-1.19-go_*.deb go
    export GOROOT=$work/go/usr/lib/go-1.19 GOTOOLCHAIN=local GOCACHE=$work/cache
    go=$GOROOT/bin/go
fi
"$go" version
python3 - <<'PYTHON'
def number(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])

def field(key, value):
    """A field of a protobuf message: a number, or bytes with their length."""
    if isinstance(value, int):
        return number(key << 3) + number(value)
    return number(key << 3 | 2) + number(len(value)) + value

for file, system_name in [("same.pb", 3), ("none.pb", 0)]:
    strings = ["", "space", "bytes", "<a::Table as b::Grow>::more"]
    profile = field(1, field(1, 1) + field(2, 2))
    profile += field(2, field(1, number(1)) + field(2, number(1000)))
    profile += field(4, field(1, 1) + field(4, field(1, 1)))
    profile += field(5, field(1, 1) + field(2, 3) + field(3, system_name))
    profile += b"".join(field(6, text.encode()) for text in strings)
    open(file, "wb").write(profile)
PYTHON
shown() {
    "$go" tool pprof -top "$1" 2>/dev/null | awk 'table { $1 = $2 = $3 = $4 = $5 = ""; sub(/^ +/, ""); print } /flat%/ { table = 1 }'
}
same=$(shown same.pb)
none=$(shown none.pb)
echo "with a system name that is the name: $same"
echo "without one:                         $none"
[ "$same" = "::more" ]
[ "$none" = "<a::Table as b::Grow>::more" ]
