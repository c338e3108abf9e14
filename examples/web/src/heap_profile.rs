//! Which code holds the memory: profiles for `go tool pprof` and alike, also of some seconds, and what
//! the page's flame graph shows.

#[cfg(test)]
mod tests;

use crate::monitor::Monitor;
use crate::{Refused, refuse};
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use dogtag::profile::{self, Profile, Profiler};
use std::collections::HashMap;
use std::time::Duration;

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
/// stacks: what the page's flame graph shows.
pub async fn tree(uri: Uri) -> Result<Response, Refused> {
    blocking(move || Monitor::answer(&uri.to_string())).await
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
