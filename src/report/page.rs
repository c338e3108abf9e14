//! The page, its figures, and what else a server shows: answers for whatever server there is.

#[cfg(feature = "profile")]
use super::flame_graph;
use super::json::Object;
use super::taken::{Occasion, Parts, Report};
#[cfg(feature = "profile")]
use crate::format::beginning;
use crate::ledger::slots::UNATTRIBUTED;
#[cfg(feature = "profile")]
use crate::profile::{self, Profile, Profiler};
use crate::service::Scope;

/// Returns a page for browsers: who holds the memory, as it changes, with a chart, a table, what
/// grows, the balance, and a flame graph of each service if the profiler runs.
///
/// It needs nothing from elsewhere, and asks once a second for [`json()`](super::json()) at the address
/// `memory.json` beside its own; a click on a service asks for `profile.json`. [`get`] answers all of
/// them; [`serve`](super::serve()) serves them.
///
/// ```
/// let page = dogtag::report::page();
/// assert!(page.starts_with("<!DOCTYPE html>"));
/// ```
#[must_use]
pub fn page() -> String {
    let _scope = Scope::enter(&UNATTRIBUTED);
    include_str!("page.html").replacen("/* flame_graph.js */", include_str!("flame_graph.js"), 1)
}

/// Returns a [report](super::take) as a line of [JSON](Report::to_json), without a profile: what the
/// [`page`] draws.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() {
/// assert!(dogtag::report::json().contains(r#""totals":{"allocated_bytes":"#));
/// # }
/// ```
#[must_use]
pub fn json() -> String {
    Report::take(Occasion::Asked, Parts { profile: false, ..Parts::ALL }).to_json()
}

/// Holds what a server answers to a GET request: [`get`] returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// The status, such as 200.
    pub status: u16,
    /// The value of the header `content-type`.
    pub content_type: &'static str,
    /// The body.
    pub body: Vec<u8>,
}

/// Answers a GET request, for whatever server there is; it gets the request's path and query.
///
/// | path | answer |
/// | --- | --- |
/// | `/` or `…/memory` | the [`page`] |
/// | `…/memory.json` | the figures: [`json()`](super::json()) |
/// | `…/profile.json` | the tree of functions that hold what there is, of `?service=NAME` alone; with `functions=own` the program's own and what they call |
/// | `…/pprof/heap` | what is live, for `go tool pprof` (feature `profile`) |
/// | `…/pprof/allocs` | what was allocated since sampling began, for the same |
///
/// All else is 404, with a line of JSON that says why. Profiles are 503 unless the profiler runs. To look
/// names up for one takes a while: answer where no other request waits for it. The answers are to be
/// shown to people who may know all services' names.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() {
/// use dogtag::report;
///
/// let answer = report::get("/debug/memory.json");
/// assert_eq!((answer.status, answer.content_type), (200, "application/json"));
/// assert_eq!(report::get("/favicon.ico").status, 404);
/// # }
/// ```
#[must_use]
pub fn get(target: &str) -> Answer {
    let _scope = Scope::enter(&UNATTRIBUTED);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    answer(path, query).unwrap_or_else(|(status, why)| Answer::refusal(status, &why))
}

/// What is wrong with a request: a status and words.
type Refusal = (u16, String);

fn answer(path: &str, query: &str) -> Result<Answer, Refusal> {
    let is = |name: &str| path.strip_suffix(name).is_some_and(|before| before.ends_with('/'));
    if path == "/" || is("memory") {
        Ok(Answer::new("text/html; charset=utf-8", page()))
    } else if is("memory.json") {
        Ok(Answer::new("application/json", json()))
    } else if is("profile.json") {
        tree(query)
    } else if is("pprof/heap") || is("pprof/allocs") {
        pprof(path, query)
    } else {
        Err((404, "there is nothing here; try /memory".to_owned()))
    }
}

impl Answer {
    fn new(content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, content_type, body: body.into() }
    }

    pub(super) fn refusal(status: u16, why: &str) -> Self {
        let mut body = String::new();
        Object::append(&mut body, |object| object.field("error", why));
        Self { status, ..Self::new("application/json", body) }
    }
}

#[cfg(not(feature = "profile"))]
fn tree(_: &str) -> Result<Answer, Refusal> {
    Err((503, "the program was built without dogtag's feature `profile`".to_owned()))
}

#[cfg(not(feature = "profile"))]
fn pprof(_: &str, query: &str) -> Result<Answer, Refusal> {
    tree(query)
}

#[cfg(feature = "profile")]
fn tree(query: &str) -> Result<Answer, Refusal> {
    let only_own = match parameter(query, "functions")?.as_deref() {
        None | Some("all") => false,
        Some("own") => true,
        _ => return Err((400, "functions is all or own".to_owned())),
    };
    let service = parameter(query, "service")?;
    let mut profile = taken(profile::live)?;
    if let Some(name) = &service {
        let is_held = profile.services.iter().any(|service| service.name == *name);
        if !is_held && crate::Service::by_name(name).is_none() {
            let name = beginning(name, 100);
            return Err((404, format!("there is no service {name}; see /memory.json")));
        }
        // Names are looked up of what is left.
        profile.rows.retain(|row| row.service == *name);
    }
    Ok(Answer::new("application/json", flame_graph::json(&profile, service.as_deref(), only_own)))
}

#[cfg(feature = "profile")]
fn pprof(path: &str, query: &str) -> Result<Answer, Refusal> {
    if parameter(query, "seconds")?.is_some() {
        let why =
            "there is no waiting here; for what came in between, take two, and go tool pprof -diff_base";
        return Err((400, why.to_owned()));
    }
    let (live, allocated) = (taken(profile::live)?, taken(profile::allocated)?);
    let (first, other) = if path.ends_with("allocs") { (allocated, live) } else { (live, allocated) };
    let mut file = Vec::new();
    first.pprof().with(&other).write(&mut file).map_err(|error| (500, error.to_string()))?;
    Ok(Answer::new("application/octet-stream", file))
}

#[cfg(feature = "profile")]
fn taken(take: fn() -> Profile) -> Result<Profile, Refusal> {
    if Profiler::running().is_none() {
        return Err((503, "the heap profiler is off; Profiler::builder().start() starts it".to_owned()));
    }
    Ok(take())
}

/// Returns a parameter of a query, decoded.
#[cfg(feature = "profile")]
fn parameter(query: &str, name: &str) -> Result<Option<String>, Refusal> {
    let Some(value) = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')) else {
        return Ok(None);
    };
    let bad = || (400, format!("{name} is not UTF-8, or has a % that is no byte"));
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = after.get(..2).and_then(|digits| str::from_utf8(digits).ok()).ok_or_else(bad)?;
                rest = &after[2..];
                // No sign before the digits.
                let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                u8::from_str_radix(digits, 16).ok().filter(|_| is_hex).ok_or_else(bad)?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).map(Some).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn whatever_stands_before_the_names() {
        for prefix in ["", "/debug", "/a/b c"] {
            let page = get(&format!("{prefix}/memory"));
            assert_eq!((page.status, page.content_type), (200, "text/html; charset=utf-8"));
            let figures = get(&format!("{prefix}/memory.json?x=1"));
            assert_eq!((figures.status, figures.content_type), (200, "application/json"));
            let figures: Value = serde_json::from_slice(&figures.body).unwrap();
            assert!(figures["time"].is_u64() && figures.get("profile").is_none(), "{figures}");
        }
        for unknown in ["", "memory", "/memory.json/", "/xmemory", "/favicon.ico", "/../memory.txt"] {
            let refused = get(unknown);
            assert_eq!((refused.status, refused.content_type), (404, "application/json"), "{unknown}");
            let body: Value = serde_json::from_slice(&refused.body).unwrap();
            assert!(body["error"].as_str().unwrap().contains("/memory"), "{body}");
        }
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let page = page();
        assert!(page.contains("function drawFlame()") && !page.contains("flame_graph.js */"));
        assert!(!page.contains("src=") && !page.contains("@import") && !page.contains("url("), "{page}");
        // Under whatever path it is.
        assert!(page.contains("fetch(\"memory.json\"") && page.contains("fetch(`profile.json?"));
    }

    #[cfg(feature = "profile")]
    #[test]
    fn queries_are_decoded() {
        for (query, expected) in [
            ("", Ok(None)),
            ("services=a", Ok(None)),
            ("x=1&service=a+b%20c%25%C3%A9&y", Ok(Some("a b c%é"))),
            ("service=", Ok(Some(""))),
            ("service=%", Err(400)),
            ("service=%4", Err(400)),
            ("service=%+4", Err(400)),
            ("service=%é", Err(400)),
            ("service=%FF", Err(400)),
        ] {
            let found = parameter(query, "service").map_err(|(status, _)| status);
            assert_eq!(found, expected.map(|text: Option<&str>| text.map(str::to_owned)), "{query}");
        }
    }
}
