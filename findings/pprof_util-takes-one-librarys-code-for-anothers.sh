#!/usr/bin/env bash
# pprof_util 0.8.2 makes pprof files and flame graphs of jemalloc's heap dumps, for the crate jemalloc_pprof among others. It
# turns each address into one within its file (executable or library), and then looks by this number alone whether it
# has had that place before; it does not ask in which file. Two libraries have the same numbers, since all begin at 0.
# What the second one holds is the first one's: in the flame graph, with the first one's function; in the pprof
# file, with its mapping. In libraries that have nothing to do with each other some addresses meet; plugins
# that are built from one template are laid out alike, so the one that comes first has all and the other nothing.
#
# Seen: `north`, in one library, holds 1,000,000 bytes, and `south`, in another, 3,000,000. The flame graph
# has one function, `north` with 4,000,000, and the pprof file one location, in `north.so`; where `south` comes first in
# the dump, all is its own.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for name in north south; do
    echo "int of_$name; void $name(void) { of_$name++; of_$name++; of_$name++; }" > $name.c
    cc -shared -fPIC -O0 -o $name.so $name.c
done
mkdir src
cat > Cargo.toml <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"
[dependencies]
inferno = { version = "=0.12.4", default-features = false }
libloading = "=0.8.9"
mappings = "=0.7.2"
pprof_util = { version = "=0.8.2", features = ["flamegraph"] }
TOML
cat > src/main.rs <<'RUST'
use inferno::flamegraph::Options;
use libloading::os::unix::Library;

fn main() {
    // The dump that jemalloc would write: one block for each of two calls, one within each function.
    let mut heap = "heap_v2/1\n  t*: 2: 4000000 [0: 0]\n".to_owned();
    for (name, bytes) in [("north", 1_000_000), ("south", 3_000_000)] {
        let library = unsafe { Library::new(format!("./{name}.so")) }.unwrap();
        let function = unsafe { library.get::<extern "C" fn()>(name.as_bytes()) }.unwrap().as_raw_ptr();
        heap += &format!("@ {:#x}\n  t*: 1: {bytes} [0: 0]\n", function as usize + 8);
        std::mem::forget(library);
    }
    for names in [["north", "south"], ["south", "north"]] {
        let stacks: Vec<&str> = heap.split_inclusive("0: 0]\n").collect();
        let heap = if names[0] == "north" { heap.clone() } else { [stacks[0], stacks[2], stacks[1]].concat() };
        let profile = pprof_util::parse_jeheap(heap.as_bytes(), mappings::MAPPINGS.as_deref()).unwrap();
        println!("{} first:", names[0]);
        let svg = profile.to_flamegraph(&mut Options::default()).unwrap();
        for title in String::from_utf8(svg).unwrap().split("<title>").skip(1) {
            println!("  {}", title.split("</title>").next().unwrap());
        }
        std::fs::write(names[0], profile.to_pprof(("inuse_space", "bytes"), ("space", "bytes"), None)).unwrap();
    }
}
RUST
cat > read.py <<'PYTHON'
import gzip, os, sys


def fields(data):
    """The fields of a protobuf message: number, and integer or bytes."""
    at = 0

    def integer():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = integer()
        value = integer()
        if key & 7 == 2:
            value, at = data[at:at + value], at + value
        yield key >> 3, value


profile = list(fields(gzip.open(sys.argv[1]).read()))
strings = [value.decode() for key, value in profile if key == 6]
mappings = [dict(fields(value)) for key, value in profile if key == 3]
files = {mapping[1]: os.path.basename(strings[mapping[5]]) for mapping in mappings}
places = [dict(fields(value)) for key, value in profile if key == 4]
samples = sum(key == 2 for key, _ in profile)
print(f"  pprof: {samples} samples, locations in", ", ".join(files[place[2]] for place in places))
PYTHON
seen=$(cargo run --quiet --release; for name in north south; do python3 read.py $name; done)
echo "$seen"
[ "$seen" = 'north first:
  all (4,000,000 samples, 100%)
  north (4,000,000 samples, 100.00%)
south first:
  all (4,000,000 samples, 100%)
  south (4,000,000 samples, 100.00%)
  pprof: 2 samples, locations in north.so
  pprof: 2 samples, locations in south.so' ]
