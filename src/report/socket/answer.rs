//! The protocol, version 1.
//!
//! A request is a line, `dogtag/1 WORD` with an argument behind some words. An answer is a line, `dogtag/1
//! ok LENGTH` or `dogtag/1 refused LENGTH`, and so many bytes: of a refusal its reason.
//!
//! | word | answer |
//! | --- | --- |
//! | `hello` | JSON: the program, its number, whether the profiler runs |
//! | `figures` | all services' figures, as [`figures`] writes them |
//! | `part FIRST-END,SLOT,…` | the figures of the services with these slots alone |
//! | `balance` | the balance as JSON |
//! | `report` | a report as a line of JSON |
//! | `heap` | a heap profile: gzipped protobuf, as pprof has it |
//! | `sample BYTES` | starts the profiler, if none runs; `on`, or `was on` |
//! | `stop` | stops the profiler |

use crate::balance::balance;
use crate::ledger::slots::{Record, denied, end};
use crate::ledger::{self, anomalies};
use crate::report::json::{Json, Object};
use crate::report::taken::{Occasion, Parts, Report, milliseconds, program};
use crate::service;
use crate::usage::Usage;
use std::mem::MaybeUninit;
use std::time::SystemTime;

/// What begins each line, and changes with the meaning of what follows.
const VERSION: &str = "dogtag/1";

/// Writes the answer to a request, which is a line without its end.
pub(super) fn answer_to(request: &[u8], answer: &mut Vec<u8>) {
    let body_at = begin(answer, "ok");
    if let Err(why) = fill(request, answer) {
        answer.clear();
        let body_at = begin(answer, "refused");
        answer.extend_from_slice(why.as_bytes());
        return finish(answer, body_at);
    }
    finish(answer, body_at);
}

/// Digits of a length.
const DIGITS: usize = 20;

/// Begins an answer, whose length is not known yet; returns where its body is.
fn begin(answer: &mut Vec<u8>, state: &str) -> usize {
    answer.extend_from_slice(format!("{VERSION} {state} {:DIGITS$}\n", "").as_bytes());
    answer.len()
}

fn finish(answer: &mut [u8], body_at: usize) {
    let length = format!("{:0DIGITS$}", answer.len() - body_at);
    answer[body_at - 1 - DIGITS..body_at - 1].copy_from_slice(length.as_bytes());
}

fn fill(request: &[u8], body: &mut Vec<u8>) -> Result<(), String> {
    let request = str::from_utf8(request).map_err(|_| "that is no request".to_owned())?;
    let mut words = request.split(' ');
    match words.next() {
        Some(VERSION) => {}
        _ => return Err(format!("this process speaks {VERSION}, of dogtag {}", env!("CARGO_PKG_VERSION"))),
    }
    let (word, argument) = (words.next().unwrap_or_default(), words.next());
    match (word, argument) {
        ("hello", None) => body.extend_from_slice(hello().as_bytes()),
        ("figures", None) => figures(body, |each| ledger::usages(each)),
        ("part", Some(slots)) => part(slots, body)?,
        ("balance", None) => {
            let mut text = String::new();
            balance().append_to(&mut text);
            body.extend_from_slice(text.as_bytes());
        }
        ("report", None) => {
            let parts = Parts { profile: false, ..Parts::ALL };
            body.extend_from_slice(Report::take(Occasion::Asked, parts).to_json().as_bytes());
        }
        ("heap", None) => heap(body)?,
        ("sample", Some(interval)) => body.extend_from_slice(sample(interval)?.as_bytes()),
        ("stop", None) => stop()?,
        _ => return Err(format!("there is no {word:?} in {VERSION}")),
    }
    Ok(())
}

fn hello() -> String {
    let mut text = String::new();
    Object::append(&mut text, |object| {
        object.field("program", &program());
        object.field("pid", &std::process::id());
        object.field("is_profiled", &is_profiled());
    });
    text
}

/// Appends the figures of some services: those with slots from the first number to the one before the
/// second, and of the slots behind these. Others may come with them.
///
/// Who watches many services, over many threads, asks for the ones that are seen, and for a part of the
/// others each time, since to add up all of them takes milliseconds.
fn part(slots: &str, body: &mut Vec<u8>) -> Result<(), String> {
    let numbers = || {
        let mut words = slots.split(',');
        let (first, end) = words.next()?.split_once('-')?;
        let others: Option<Vec<u32>> = words.map(|word| word.parse().ok()).collect();
        Some((first.parse().ok()?, end.parse().ok()?, others?))
    };
    let (first, end, others) = numbers().ok_or_else(|| format!("{slots:?} are no slots"))?;
    figures(body, |each| {
        for slot in others {
            ledger::usage_in(slot, &mut *each);
        }
        let (usage, _) = ledger::usages_between(first, end, each);
        Usage { denied: denied(), ..usage }
    });
    Ok(())
}

/// Appends the figures of services: numbers in little-endian order, of 64 bits but where it says so.
///
/// First the time in milliseconds since 1970, the processor time in nanoseconds that answers have taken so
/// far, the totals, the lost bytes and blocks, how many slots there are (32 bits), and the number of services
/// (32). Then of each service its slot (32) and generation, its parent's or `u32::MAX` and 0, its handle (32),
/// whether it is retired (8), its usage, its hard and soft limit or `u64::MAX`, and its name's length (16) and
/// bytes.
///
/// A usage is the bytes and blocks that were allocated, those that were freed, denied allocations, and the
/// peak. Of a part the totals are those of its slots, but for denied allocations.
fn figures(body: &mut Vec<u8>, add_up: impl FnOnce(&mut dyn FnMut(&'static Record, Usage)) -> Usage) {
    body.extend_from_slice(&milliseconds(SystemTime::now()).to_le_bytes());
    body.extend_from_slice(&own_processor_time().to_le_bytes());
    let totals_at = body.len();
    // Figures that are known at the end.
    body.extend_from_slice(&[0; 8 * 8 + 4 + 4]);
    let mut services = 0_u32;
    let totals = add_up(&mut |record, usage| {
        let name = record.name().as_bytes();
        let name = &name[..name.len().min(u16::MAX.into())];
        let (slot, generation) = record.identity();
        let (parent, parent_generation) = record.family().parent_identity().unwrap_or((u32::MAX, 0));
        let (hard, soft) = service::limits(record);
        body.extend_from_slice(&slot.to_le_bytes());
        body.extend_from_slice(&generation.to_le_bytes());
        body.extend_from_slice(&parent.to_le_bytes());
        body.extend_from_slice(&parent_generation.to_le_bytes());
        body.extend_from_slice(&record.handle().to_le_bytes());
        body.push(record.lifecycle().is_retired().into());
        numbers(&usage).iter().for_each(|number| body.extend_from_slice(&number.to_le_bytes()));
        [hard, soft]
            .iter()
            .for_each(|limit| body.extend_from_slice(&limit.unwrap_or(u64::MAX).to_le_bytes()));
        body.extend_from_slice(&(name.len() as u16).to_le_bytes());
        body.extend_from_slice(name);
        services += 1;
    });
    let (lost_blocks, lost_bytes) = anomalies::LOST.so_far();
    let sums = numbers(&totals).into_iter().chain([lost_bytes, lost_blocks]);
    let mut place = totals_at;
    for number in sums {
        body[place..place + 8].copy_from_slice(&number.to_le_bytes());
        place += 8;
    }
    body[place..place + 4].copy_from_slice(&end().to_le_bytes());
    body[place + 4..place + 8].copy_from_slice(&services.to_le_bytes());
}

const fn numbers(usage: &Usage) -> [u64; 6] {
    let Usage { allocated_bytes, allocated_blocks, freed_bytes, freed_blocks, denied, peak_bytes } = *usage;
    [allocated_bytes, allocated_blocks, freed_bytes, freed_blocks, denied, peak_bytes]
}

/// Nanoseconds that this thread has run.
fn own_processor_time() -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the place is valid for a result, and filled if the call returns 0.
    let time = unsafe {
        match libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, time.as_mut_ptr()) {
            0 => time.assume_init(),
            _ => return 0,
        }
    };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

#[cfg(feature = "profile")]
mod profiler {
    use crate::profile::{self, ProfileError, Profiler};

    pub(super) fn is_profiled() -> bool {
        Profiler::running().is_some()
    }

    pub(super) fn heap(body: &mut Vec<u8>) -> Result<(), String> {
        if Profiler::running().is_none() {
            return Err("the heap profiler is off".to_owned());
        }
        let (live, allocated) = (profile::live(), profile::allocated());
        live.pprof().with(&allocated).write(body).map_err(|error| error.to_string())
    }

    pub(super) fn sample(interval: &str) -> Result<&'static str, String> {
        match Profiler::from_settings(&format!("interval={interval}")) {
            Ok(_) => Ok("on"),
            Err(ProfileError::Running) => Ok("was on"),
            Err(error) => Err(error.to_string()),
        }
    }

    pub(super) fn stop() -> Result<(), String> {
        Profiler::running().ok_or("the heap profiler is off")?.stop();
        Ok(())
    }
}

#[cfg(not(feature = "profile"))]
mod profiler {
    const NONE: &str = "the program was built without dogtag's feature `profile`";

    pub(super) fn is_profiled() -> bool {
        false
    }

    pub(super) fn heap(_: &mut Vec<u8>) -> Result<(), String> {
        Err(NONE.to_owned())
    }

    pub(super) fn sample(_: &str) -> Result<&'static str, String> {
        Err(NONE.to_owned())
    }

    pub(super) fn stop() -> Result<(), String> {
        Err(NONE.to_owned())
    }
}

use profiler::{heap, is_profiled, sample, stop};

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(request: &str) -> (String, Vec<u8>) {
        let mut answer = Vec::new();
        answer_to(request.as_bytes(), &mut answer);
        let end = answer.iter().position(|byte| *byte == b'\n').unwrap();
        let line = String::from_utf8(answer[..end].to_vec()).unwrap();
        let body = answer[end + 1..].to_vec();
        let (state, length) = line.rsplit_once(' ').unwrap();
        assert_eq!(length.parse::<usize>().unwrap(), body.len());
        (state.to_owned(), body)
    }

    #[test]
    fn requests_are_answered_or_refused() {
        for (request, state) in [
            ("dogtag/1 hello", "dogtag/1 ok"),
            ("dogtag/1 figures", "dogtag/1 ok"),
            ("dogtag/1 balance", "dogtag/1 ok"),
            ("dogtag/1 report", "dogtag/1 ok"),
            ("dogtag/1 hello you", "dogtag/1 refused"),
            ("dogtag/1 part 0-64", "dogtag/1 ok"),
            ("dogtag/1 part 0-0,4294967295,1", "dogtag/1 ok"),
            ("dogtag/1 part 4294967295-4294967295", "dogtag/1 ok"),
            ("dogtag/1 part", "dogtag/1 refused"),
            ("dogtag/1 part 7", "dogtag/1 refused"),
            ("dogtag/1 part 0-1,", "dogtag/1 refused"),
            ("dogtag/1 part 0-4294967296", "dogtag/1 refused"),
            ("dogtag/1 sample", "dogtag/1 refused"),
            ("dogtag/1 sample none", "dogtag/1 refused"),
            ("dogtag/1", "dogtag/1 refused"),
            ("dogtag/2 hello", "dogtag/1 refused"),
            ("GET / HTTP/1.1", "dogtag/1 refused"),
            ("", "dogtag/1 refused"),
        ] {
            assert_eq!(answer(request).0, state, "{request}");
        }
        let (_, why) = answer("dogtag/2 hello");
        assert!(String::from_utf8(why).unwrap().starts_with("this process speaks dogtag/1"));
        let mut refused = Vec::new();
        answer_to(b"\xff", &mut refused);
        assert!(refused.starts_with(b"dogtag/1 refused"));
    }

    #[test]
    fn figures_have_what_a_snapshot_has() {
        let kept = crate::Service::builder("figures-are-sent").hard_limit(1 << 20).register().unwrap();
        let (_, body) = answer("dogtag/1 figures");
        let number = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
        let found: Vec<usize> = services(&body).into_iter().filter(|at| is_named(&body, *at)).collect();
        let [at] = found[..] else { panic!("{found:?}") };
        assert_eq!((number(at + 77), number(at + 85)), (1 << 20, u64::MAX));
        assert_eq!(body[at + 24..at + 28], kept.handle().to_le_bytes());
        // Alone, and in its run.
        let slot = u32::from_le_bytes(body[at..at + 4].try_into().unwrap());
        let (_, alone) = answer(&format!("dogtag/1 part 0-0,{slot}"));
        let [at_alone] = services(&alone)[..] else { panic!("{alone:?}") };
        assert_eq!(alone[at_alone..at_alone + 77], body[at..at + 77]);
        let (_, run) = answer(&format!("dogtag/1 part {slot}-{}", slot + 1));
        let found = services(&run);
        assert!((1..=64).contains(&found.len()), "{found:?}");
        assert_eq!(found.into_iter().filter(|at| is_named(&run, *at)).count(), 1);
        // Behind all of them there is nothing.
        assert!(services(&answer("dogtag/1 part 4000000000-4000000064").1).is_empty());
    }

    /// Where each service of an answer begins.
    fn services(body: &[u8]) -> Vec<usize> {
        let services = u32::from_le_bytes(body[84..88].try_into().unwrap());
        let mut at = 88;
        let mut all = Vec::new();
        for _ in 0..services {
            all.push(at);
            at += 95 + usize::from(u16::from_le_bytes(body[at + 93..at + 95].try_into().unwrap()));
        }
        assert_eq!(at, body.len());
        all
    }

    fn is_named(body: &[u8], at: usize) -> bool {
        body[at + 95..].starts_with(b"figures-are-sent")
    }
}
