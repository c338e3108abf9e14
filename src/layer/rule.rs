//! The rule that chooses services for spans that name none.

use super::names::Names;
use crate::service::Service;
use std::fmt;
use tracing::span::Attributes;

/// How services are chosen for spans that name none.
pub(super) enum Rule {
    None,
    /// By so many of the first segments of the target.
    Target(usize),
    Name,
    By(Choice),
}

type Choice = Box<dyn Fn(&Attributes<'_>) -> Option<Service> + Send + Sync>;

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Target(usize::MAX) => f.write_str("Target"),
            Self::Target(segments) => f.debug_tuple("Target").field(segments).finish(),
            Self::Name => f.write_str("Name"),
            Self::By(_) => f.write_str("By(..)"),
        }
    }
}

impl Rule {
    /// Whether it chooses by what is the same for all spans of a callsite.
    pub(super) fn is_constant(&self) -> bool {
        matches!(self, Self::Target(_) | Self::Name)
    }

    /// Returns the service that the rule chooses.
    pub(super) fn choose(&self, attributes: &Attributes<'_>, names: &Names) -> Option<Service> {
        match self {
            Self::None => None,
            Self::Target(segments) => names.chosen(first_segments(attributes.metadata().target(), *segments)),
            Self::Name => names.chosen(attributes.metadata().name()),
            Self::By(choose) => choose(attributes),
        }
    }
}

/// Returns the beginning of a path, up to so many segments.
fn first_segments(path: &str, segments: usize) -> &str {
    match path.match_indices("::").nth(segments.saturating_sub(1)) {
        Some((end, _)) => &path[..end],
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::first_segments;

    #[test]
    fn a_path_is_cut_behind_a_segment() {
        for (segments, cut) in
            [(0, "a"), (1, "a"), (2, "a::bc"), (3, "a::bc::d"), (4, "a::bc::d"), (usize::MAX, "a::bc::d")]
        {
            assert_eq!(first_segments("a::bc::d", segments), cut);
        }
        for path in ["", "a", "a:b", "a-b"] {
            assert_eq!(first_segments(path, 1), path);
        }
        assert_eq!(first_segments("::a", 1), "");
        assert_eq!(first_segments("a::", 1), "a");
    }
}
