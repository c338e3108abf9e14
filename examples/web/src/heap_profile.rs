//! Which code holds the memory: profiles for `go tool pprof` and alike, and what the page's flame
//! graph shows.

#[cfg(test)]
mod tests;

use crate::{Refused, refuse};
use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use dogtag::profile::{self, Frame, Profile, ProfileRow, Profiler};
use serde::Serialize;
use serde_json::json;
use std::collections::HashMap;
use std::time::{Duration, UNIX_EPOCH};

/// Starts the profiler as the command line or else `DOGTAG_PROFILE` says; with its defaults if both
/// say nothing. The server runs without it if they cannot be understood.
pub fn start(settings: Option<String>) {
    let of_environment = || Some(std::env::var_os("DOGTAG_PROFILE")?.to_string_lossy().into_owned());
    let settings = settings.or_else(of_environment).unwrap_or_else(|| "1".to_owned());
    if let Err(error) = Profiler::from_settings(&settings) {
        eprintln!("web: no heap profile: {error}");
    }
}

type Asked = Result<Query<HashMap<String, String>>, QueryRejection>;

/// What is live, for pprof, and what was allocated beside it; of the next `?seconds=30`, if they are
/// given.
pub async fn heap(query: Asked) -> Result<Response, Refused> {
    pprof("heap", query, |[live, allocated], file| live.pprof().with(allocated).write(file)).await
}

/// What was allocated since the start, for pprof, and what is live beside it; of the next
/// `?seconds=30`, if they are given.
pub async fn allocs(query: Asked) -> Result<Response, Refused> {
    pprof("allocs", query, |[live, allocated], file| allocated.pprof().with(live).write(file)).await
}

async fn pprof(
    name: &'static str,
    query: Asked,
    write: fn(&[Profile; 2], &mut Vec<u8>) -> std::io::Result<()>,
) -> Result<Response, Refused> {
    let seconds = seconds(&parameters(query)?)?;
    is_on()?;
    let mut earlier = None;
    if let Some(seconds) = seconds {
        earlier = Some(blocking(both).await?);
        tokio::time::sleep(seconds).await;
    }
    let delta = if earlier.is_some() { "-delta" } else { "" };
    let file = blocking(move || {
        let mut profiles = both();
        if let Some(earlier) = earlier {
            for (profile, earlier) in profiles.iter_mut().zip(earlier) {
                *profile = profile.difference(&earlier);
            }
        }
        let mut file = Vec::new();
        write(&profiles, &mut file).map(|()| file)
    })
    .await?;
    let file = file.map_err(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let disposition = format!("attachment; filename=\"{name}{delta}.pb.gz\"");
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_DISPOSITION, disposition),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    Ok((headers, file).into_response())
}

fn both() -> [Profile; 2] {
    [profile::live(), profile::allocated()]
}

/// What a service holds (`?service=search`; without it, all services), by the functions of the call
/// stacks, outermost first: all of them, or with `functions=own` the program's own and what they call
/// directly. The nodes are a tree, each followed by its children: parsers bound how deep JSON may be.
pub async fn tree(query: Asked) -> Result<Response, Refused> {
    let parameters = parameters(query)?;
    let only_own = match parameters.get("functions").map(String::as_str) {
        None | Some("all") => false,
        Some("own") => true,
        _ => return Err(refuse(StatusCode::BAD_REQUEST, "functions is all or own")),
    };
    let service = parameters.get("service").cloned();
    is_on()?;
    let answer = blocking(move || {
        let mut profile = profile::live();
        if let Some(name) = &service {
            let is_held = profile.services.iter().any(|service| service.name == *name);
            if !is_held && dogtag::Service::by_name(name).is_none() {
                let why = format!("there is no service {name}; see /memory.json");
                return Err(refuse(StatusCode::NOT_FOUND, why));
            }
            // Names are looked up of what is left.
            profile.rows.retain(|row| row.service == *name);
        }
        let time = profile.taken.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(json!({
            "time": time.as_millis() as u64,
            "interval": profile.interval,
            "dropped": profile.dropped,
            "service": service,
            "nodes": Node::tree(&profile, service.as_deref(), only_own).flat(),
        }))
    });
    Ok(Json(answer.await??).into_response())
}

/// One function, called as its parents say, or a whole service.
#[derive(Debug, Default, Serialize)]
struct Node {
    name: String,
    /// Whether it is of the program's own crates.
    own: bool,
    bytes: i64,
    objects: i64,
    samples: u64,
    /// Of the bytes.
    standard_error: f64,
    depth: usize,
    #[serde(skip)]
    children: Vec<Node>,
}

impl Node {
    /// Adds the rows up, which are all of the service if one is given.
    fn tree(profile: &Profile, service: Option<&str>, only_own: bool) -> Self {
        let mut root = Self { name: service.unwrap_or("all services").to_owned(), ..Self::default() };
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
                node = node.child(&frame.function, is_own(frame));
                node.add(row);
            }
        }
        root.finish();
        root
    }

    fn child(&mut self, name: &str, own: bool) -> &mut Self {
        let place = self.children.iter().position(|child| child.name == name).unwrap_or_else(|| {
            let depth = self.depth + 1;
            self.children.push(Self { name: name.to_owned(), own, depth, ..Self::default() });
            self.children.len() - 1
        });
        &mut self.children[place]
    }

    fn add(&mut self, row: &ProfileRow) {
        self.bytes += row.bytes;
        self.objects += row.objects;
        self.samples += row.samples;
        // A variance, until the sum is complete.
        self.standard_error += row.standard_error * row.standard_error;
    }

    fn finish(&mut self) {
        self.standard_error = self.standard_error.sqrt();
        self.children.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        self.children.iter_mut().for_each(Self::finish);
    }

    fn flat(mut self) -> Vec<Self> {
        let children = std::mem::take(&mut self.children);
        let mut nodes = vec![self];
        nodes.extend(children.into_iter().flat_map(Self::flat));
        nodes
    }
}

/// Whether a function is this program's. (`Frame::is_own` tells it by the paths of the sources, which
/// release builds mostly do not have.)
fn is_own(frame: &Frame) -> bool {
    frame.function.trim_start_matches(['<', '&']).starts_with(concat!(env!("CARGO_CRATE_NAME"), "::"))
}

/// The program's own frames, and those that these call directly; all, where there are none.
fn own(frames: Vec<&Frame>) -> Vec<&Frame> {
    if !frames.iter().any(|frame| is_own(frame)) {
        return frames;
    }
    let caller_is_own = |i: usize| frames.get(i + 1).is_some_and(|caller| is_own(caller));
    let kept = frames.iter().enumerate().filter(|(i, frame)| is_own(frame) || caller_is_own(*i));
    kept.map(|(_, frame)| *frame).collect()
}

fn parameters(query: Asked) -> Result<HashMap<String, String>, Refused> {
    query.map(|Query(query)| query).map_err(|rejection| refuse(rejection.status(), rejection.body_text()))
}

fn seconds(parameters: &HashMap<String, String>) -> Result<Option<Duration>, Refused> {
    const MOST: u64 = 3600;

    let Some(text) = parameters.get("seconds") else { return Ok(None) };
    let seconds = text.parse().ok().filter(|seconds| (1..=MOST).contains(seconds));
    let seconds = seconds
        .ok_or_else(|| refuse(StatusCode::BAD_REQUEST, format!("seconds is a number from 1 to {MOST}")))?;
    Ok(Some(Duration::from_secs(seconds)))
}

fn is_on() -> Result<(), Refused> {
    let off = "the heap profiler is off; start the server with `--profile 1`";
    Profiler::running().map(drop).ok_or_else(|| refuse(StatusCode::SERVICE_UNAVAILABLE, off))
}

/// Runs what takes its time, such as looking names up, where no request waits for it.
async fn blocking<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> Result<R, Refused> {
    let failed = |_| refuse(StatusCode::INTERNAL_SERVER_ERROR, "the profile could not be taken");
    tokio::task::spawn_blocking(work).await.map_err(failed)
}
