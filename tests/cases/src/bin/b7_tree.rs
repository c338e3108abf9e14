//! A snapshot from elsewhere (serde) with a deep family is shown, in a size that grows as the family does.
#[global_allocator]
static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
fn main() {
    let n: usize = std::env::args().nth(1).map_or(33_000, |a| a.parse().unwrap());
    let mut v: serde_json::Value = serde_json::to_value(dogtag::Snapshot::default()).unwrap();
    let row0 = serde_json::to_value(dogtag::Row::default()).unwrap();
    let rows: Vec<_> = (0..n)
        .map(|i| {
            let mut r = row0.clone();
            r["name"] = format!("q{i}").into();
            if i > 0 {
                r["parent"] = (i - 1).into();
            }
            r
        })
        .collect();
    v["rows"] = serde_json::Value::Array(rows);
    let snap: dogtag::Snapshot = serde_json::from_value(v).unwrap();
    struct Count(usize);
    impl std::fmt::Write for Count {
        fn write_str(&mut self, s: &str) -> std::fmt::Result {
            self.0 += s.len();
            Ok(())
        }
    }
    use std::fmt::Write;
    let mut c = Count(0);
    let t = std::time::Instant::now();
    write!(c, "{snap:#}").unwrap();
    println!("{n} rows: {} bytes in {:?}", c.0, t.elapsed());
}
