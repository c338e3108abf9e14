//! What services hold, by the functions of the call stacks: what a flame graph shows.

use super::json::{Json, Object, objects};
use super::taken::milliseconds;
use crate::profile::{Frame, Profile, ProfileRow};

/// Returns the tree of a profile, of all services or of the rows of one, as JSON: all functions, or the
/// program's own and what they call directly.
///
/// The nodes are in a list, each followed by its children: parsers bound how deep JSON may be.
pub(super) fn json(profile: &Profile, service: Option<&str>, only_own: bool) -> String {
    let mut text = String::new();
    Object::append(&mut text, |object| {
        object.field("time", &milliseconds(profile.taken));
        object.field("interval", &profile.interval);
        object.field("dropped", &profile.dropped);
        object.field("service", &service);
        object.field("nodes", &Node::tree(profile, service, only_own).flat());
    });
    text
}

/// One function, called as its parents say, or a whole service.
#[derive(Debug, Default)]
struct Node {
    figures: Figures,
    children: Vec<Node>,
}

#[derive(Debug, Default)]
struct Figures {
    name: String,
    /// Whether it is of the program's own crates.
    own: bool,
    bytes: i64,
    objects: i64,
    samples: u64,
    /// Of the bytes.
    standard_error: f64,
    depth: usize,
}

objects! {
    Figures { name, own, bytes, objects, samples, standard_error, depth };
}

impl Node {
    /// Adds the rows up, which are all of the service if one is given.
    fn tree(profile: &Profile, service: Option<&str>, only_own: bool) -> Self {
        let mut root = Self::default();
        root.figures.name = service.unwrap_or("all services").to_owned();
        for row in &profile.rows {
            root.add(row);
            let mut node = &mut root;
            if service.is_none() {
                node = node.child(&row.service, false);
                node.add(row);
            }
            let frames = profile.frames(row);
            if frames.is_empty() {
                node.child(row.origin.label(), false).add(row);
            }
            for frame in if only_own { own(frames) } else { frames }.iter().rev() {
                node = node.child(&frame.function, frame.is_own);
                node.add(row);
            }
        }
        root.finish();
        root
    }

    fn child(&mut self, name: &str, own: bool) -> &mut Self {
        let place = self.children.iter().position(|child| child.figures.name == name).unwrap_or_else(|| {
            let depth = self.figures.depth + 1;
            let figures = Figures { name: name.to_owned(), own, depth, ..Figures::default() };
            self.children.push(Self { figures, children: Vec::new() });
            self.children.len() - 1
        });
        &mut self.children[place]
    }

    fn add(&mut self, row: &ProfileRow) {
        self.figures.bytes += row.bytes;
        self.figures.objects += row.objects;
        self.figures.samples += row.samples;
        // A variance, until the sum is complete.
        self.figures.standard_error += row.standard_error * row.standard_error;
    }

    fn finish(&mut self) {
        self.figures.standard_error = self.figures.standard_error.sqrt();
        self.children.sort_by(|a, b| {
            let (a, b) = (&a.figures, &b.figures);
            b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name))
        });
        self.children.iter_mut().for_each(Self::finish);
    }

    fn flat(self) -> Vec<Figures> {
        let mut nodes = vec![self.figures];
        nodes.extend(self.children.into_iter().flat_map(Self::flat));
        nodes
    }
}

/// The program's own frames, and those that these call directly; all, where there are none.
fn own(frames: Vec<&Frame>) -> Vec<&Frame> {
    if !frames.iter().any(|frame| frame.is_own) {
        return frames;
    }
    let caller_is_own = |i: usize| frames.get(i + 1).is_some_and(|caller| caller.is_own);
    let kept = frames.iter().enumerate().filter(|(i, frame)| frame.is_own || caller_is_own(*i));
    kept.map(|(_, frame)| *frame).collect()
}
