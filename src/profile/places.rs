//! Paths of source files as tables show them: as much of their ends as tells them apart.

use crate::format::printable;
use std::collections::{HashMap, HashSet};

/// How many of a path's last parts are shown, of each file of a table.
#[derive(Debug)]
pub(super) struct Places<'a>(HashMap<&'a str, usize>);

impl<'a> Places<'a> {
    pub(super) fn of(files: impl Iterator<Item = &'a String>) -> Self {
        // The file and its folder; of a crate's own folder its name.
        let parts = |file: &str| if end(file, 2).starts_with("src/") { 3 } else { 2 };
        let mut parts: HashMap<&str, usize> = files.map(|file| (file.as_str(), parts(file))).collect();
        loop {
            let mut shown: HashMap<&str, usize> = HashMap::new();
            for (file, parts) in &parts {
                *shown.entry(end(file, *parts)).or_default() += 1;
            }
            let alike: HashSet<&str> =
                shown.into_iter().filter(|(_, files)| *files > 1).map(|(end, _)| end).collect();
            let mut is_longer = false;
            for (file, parts) in &mut parts {
                let shown = end(file, *parts);
                if alike.contains(shown) && shown.len() < file.len() {
                    *parts += 1;
                    is_longer = true;
                }
            }
            if !is_longer {
                return Self(parts);
            }
        }
    }

    /// Returns what stands behind a function: the end of the path, and the line.
    pub(super) fn show(&self, file: Option<&str>, line: Option<u32>) -> String {
        let Some(file) = file else { return String::new() };
        let end = printable(end(file, self.0.get(file).copied().unwrap_or(2)));
        line.map_or_else(|| format!("  {end}"), |line| format!("  {end}:{line}"))
    }
}

/// The last parts of a path.
fn end(file: &str, parts: usize) -> &str {
    file.rmatch_indices('/').nth(parts - 1).map_or(file, |(at, _)| &file[at + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_much_of_a_path_is_shown_as_tells_it_apart() {
        let files = [
            "/x/registry/src/a-1.0.0/src/table/mod.rs",
            "/x/registry/src/b-2.0.0/src/table/mod.rs",
            "/x/app/src/lib.rs",
            "/x/app/src/router/mod.rs",
            "main.c",
            "/y/main.c",
        ]
        .map(str::to_owned);
        let places = Places::of(files.iter().chain(&files[..1]));
        let shown = files.each_ref().map(|file| places.show(Some(file), Some(12)));
        let expected = [
            "  a-1.0.0/src/table/mod.rs:12",
            "  b-2.0.0/src/table/mod.rs:12",
            "  app/src/lib.rs:12",
            "  router/mod.rs:12",
            "  main.c:12",
            "  y/main.c:12",
        ];
        assert_eq!(shown, expected);
        assert_eq!(places.show(Some("main.c"), None), "  main.c");
        assert_eq!(places.show(None, Some(1)), "");
    }
}
