//! A flame graph: what is held by the functions that asked for it, and by those that called them.

use super::Escaped;
use crate::pprof::{Profile, Stack};
use crate::size::bytes;
use std::collections::BTreeMap;
use std::fmt::{self, Display};

/// What is narrower than this share is left out.
const NARROWEST: f64 = 0.001;

/// Functions that are drawn below one another.
const DEEPEST: usize = 80;

const ROW: usize = 20;

/// The services, and below them what they called.
pub struct Flame {
    root: Node,
}

#[derive(Default)]
struct Node {
    bytes: u64,
    children: BTreeMap<String, Node>,
}

impl Flame {
    /// Adds up the stacks of a profile by one of their figures.
    pub fn of(profile: &Profile, figure: impl Fn(&Stack) -> i64) -> Self {
        let mut root = Node::default();
        for stack in &profile.stacks {
            let Ok(bytes @ 1..) = u64::try_from(figure(stack)) else { continue };
            root.bytes = root.bytes.saturating_add(bytes);
            let mut node = &mut root;
            for name in [&stack.service].into_iter().chain(&stack.functions).take(DEEPEST) {
                node = node.children.entry(name.clone()).or_default();
                node.bytes = node.bytes.saturating_add(bytes);
            }
        }
        Self { root }
    }
}

impl Node {
    fn depth(&self, least: u64) -> usize {
        let shown = self.children.values().filter(|child| child.bytes >= least);
        shown.map(|child| 1 + child.depth(least)).max().unwrap_or(0)
    }

    /// The largest first.
    fn sorted(&self) -> Vec<(&String, &Self)> {
        let mut children: Vec<_> = self.children.iter().collect();
        children.sort_by_key(|(_, child)| std::cmp::Reverse(child.bytes));
        children
    }
}

impl Display for Flame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.root.bytes;
        if whole == 0 {
            return f.write_str("<p class=\"soft\">Nothing was.</p>\n");
        }
        let least = (whole as f64 * NARROWEST) as u64;
        let height = (1 + self.root.depth(least)) * ROW;
        write!(
            f,
            "<div class=\"wide\"><svg class=\"flame\" height=\"{height}\" role=\"img\" \
             aria-label=\"flame graph: services, and below them the functions that they called\">"
        )?;
        cell(f, "all services", "root", 0, 0.0, &self.root, whole)?;
        // Without recursion: what is read may be of any depth.
        let mut open = vec![(&self.root, 0, 0.0)];
        while let Some((node, depth, mut x)) = open.pop() {
            for (name, child) in node.sorted().into_iter().filter(|(_, child)| child.bytes >= least) {
                let class = if depth == 0 { "service" } else { "" };
                cell(f, name, class, depth + 1, x, child, whole)?;
                open.push((child, depth + 1, x));
                x += child.bytes as f64 / whole as f64;
            }
        }
        f.write_str("</svg></div>\n")
    }
}

/// Writes one function: an image of its own, so that its name ends where it ends.
fn cell(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    class: &str,
    depth: usize,
    x: f64,
    node: &Node,
    whole: u64,
) -> fmt::Result {
    let share = node.bytes as f64 / whole as f64;
    write!(
        f,
        "<svg class=\"{class}\" x=\"{:.3}%\" y=\"{}\" width=\"{:.3}%\" height=\"{ROW}\"><title>{}: {}, {:.1} %</title>\
         <rect width=\"100%\" height=\"100%\"/><text x=\"4\" y=\"14\">{}</text></svg>",
        100.0 * x,
        depth * ROW,
        100.0 * share,
        Escaped(name),
        bytes(node.bytes),
        100.0 * share,
        Escaped(name),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pprof;

    #[test]
    fn functions_are_below_their_callers_and_as_wide_as_they_hold() {
        let profile = Profile::read("x", &pprof::tests::file()).unwrap();
        let text = Flame::of(&profile, |stack| stack.live_bytes).to_string();
        assert!(text.contains("height=\"100\" role"), "{text}");
        assert!(text.contains("x=\"0.000%\" y=\"80\" width=\"7.692%\""), "{text}");
        assert!(text.contains("<title>re;ad: 65 B, 100.0 %</title>"), "{text}");
        let text = Flame::of(&profile, |_| 0).to_string();
        assert!(text.contains("Nothing was"), "{text}");
    }
}
