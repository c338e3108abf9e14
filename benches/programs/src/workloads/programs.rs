//! What programs do that people run.

use super::{Services, passes};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::sync::mpsc::sync_channel;

/// A document of 5 MB is parsed and dropped; an operation is one byte of it.
pub fn json() -> f64 {
    passes(document(BYTES).len(), json_once())
}

const BYTES: usize = 5_000_000;

fn json_once() -> impl FnMut() {
    let document = document(BYTES);
    move || {
        black_box(serde_json::from_slice::<serde_json::Value>(black_box(&document)).unwrap());
    }
}

/// Words are counted in a hash map, then moved into a B-tree by frequency, and
/// both are dropped; an operation is one word.
pub fn strings() -> f64 {
    let text = text(400_000);
    passes(text.split(' ').count(), || {
        let mut places: HashMap<String, Vec<u32>> = HashMap::new();
        for (place, word) in text.split(' ').enumerate() {
            places.entry(word.to_owned()).or_default().push(place as u32);
        }
        let mut index: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for (word, places) in &places {
            let reversed = word.chars().rev().collect();
            index.insert(reversed, places.clone());
        }
        black_box((places, index));
    })
}

/// The places of each word of a text are collected in a hash map, which is dropped; an operation is one word.
pub fn words() -> f64 {
    passes(WORDS, words_once())
}

/// The words of a text are copied, sorted and dropped; an operation is one word.
pub fn sort() -> f64 {
    passes(WORDS, sort_once())
}

/// An index of strings and boxes of 48 bytes is filled in random order, half of it is replaced, and it is
/// dropped; an operation is one entry.
pub fn index() -> f64 {
    passes(ENTRIES, index_once())
}

const WORDS: usize = 400_000;
const ENTRIES: usize = 200_000;

/// One of these programs, to be run so many times.
pub fn once(name: &str) -> Option<Box<dyn FnMut()>> {
    Some(match name {
        "json" => Box::new(json_once()),
        "words" => Box::new(words_once()),
        "sort" => Box::new(sort_once()),
        "index" => Box::new(index_once()),
        _ => return None,
    })
}

fn words_once() -> impl FnMut() {
    let text = text(WORDS);
    move || {
        let mut places: HashMap<&str, (String, Vec<u32>)> = HashMap::new();
        for (place, word) in text.split(' ').enumerate() {
            places.entry(word).or_insert_with(|| (word.to_owned(), Vec::new())).1.push(place as u32);
        }
        black_box(places);
    }
}

fn sort_once() -> impl FnMut() {
    let text = text(WORDS);
    move || {
        let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        words.sort_unstable();
        black_box(words);
    }
}

fn index_once() -> impl FnMut() {
    let mut random = fastrand::Rng::with_seed(13);
    let keys: Vec<String> = (0..ENTRIES).map(|_| word(&mut random, 24) + &word(&mut random, 24)).collect();
    move || {
        let mut index: HashMap<String, Box<[u64; 6]>> = HashMap::new();
        for (number, key) in keys.iter().enumerate() {
            index.insert(key.clone(), Box::new([number as u64; 6]));
        }
        for number in 0..ENTRIES / 2 {
            let key = &keys[number * 7919 % ENTRIES];
            index.remove(key);
            index.insert(key.clone(), Box::new([number as u64; 6]));
        }
        black_box(index);
    }
}

/// Lines of a log are taken apart by a regular expression, and their fields are
/// collected; an operation is one line.
pub fn regex() -> f64 {
    let log: String = (0..20_000).map(|line| log_line(line) + "\n").collect();
    let line = regex::Regex::new(r"(?m)^(\S+) \[(\w+)\] (\w+)/(\d+): (.*)$").unwrap();
    passes(20_000, || {
        let fields: Vec<Vec<String>> = line
            .captures_iter(&log)
            .map(|found| found.iter().flatten().map(|field| field.as_str().to_owned()).collect())
            .collect();
        black_box(fields);
    })
}

/// A cache of values of 1 to 64 KiB, of which 2,000 are kept; an operation is
/// one look-up, every other one of which has to make the value.
pub fn lru() -> f64 {
    let source = vec![7_u8; 64 << 10];
    let mut random = fastrand::Rng::with_seed(3);
    let mut cache = lru::LruCache::new(NonZeroUsize::new(2_000).unwrap());
    let mut look_up = move || {
        let key = random.u32(..4_000);
        let size = (1 << 10) + (key.wrapping_mul(2_654_435_761) >> 16) as usize % (63 << 10);
        let value = cache.get_or_insert(key, || source[..size].to_vec());
        black_box(value[size / 2]);
    };
    (0..20_000).for_each(|_| look_up());
    passes(20_000, || (0..20_000).for_each(|_| look_up()))
}

/// Requests on a tokio runtime with two threads, each a task and a service of
/// its own: a body is parsed, handled in steps with awaits between them, and
/// answered. An operation is one request.
pub fn requests(services: impl Services) -> f64 {
    const REQUESTS: u64 = 4_000;
    const AT_ONCE: u64 = 1_000;

    let body = serde_json::to_vec(&order(&mut fastrand::Rng::with_seed(5), 16)).unwrap();
    let body: &'static [u8] = body.leak();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    passes(REQUESTS as usize, || {
        runtime.block_on(async {
            for first in (0..REQUESTS).step_by(AT_ONCE as usize) {
                let mut tasks = tokio::task::JoinSet::new();
                for number in first..first + AT_ONCE {
                    tasks.spawn(services.request(number, answer(number, body)));
                }
                while let Some(answer) = tasks.join_next().await {
                    black_box(answer.unwrap());
                }
            }
        });
    })
}

async fn answer(number: u64, body: &[u8]) -> String {
    let request: serde_json::Value = serde_json::from_slice(body).unwrap();
    tokio::task::yield_now().await;
    let mut rows = Vec::new();
    for item in request["items"].as_array().unwrap() {
        rows.push(format!("{} {}", item["sku"], item["price"].as_f64().unwrap_or(0.0) * number as f64));
        if rows.len() % 4 == 0 {
            tokio::task::yield_now().await;
        }
    }
    rows.sort();
    rows.join("\n")
}

/// A million numbers are sorted by two threads that merge vectors into new ones;
/// an operation is one number.
pub fn merge() -> f64 {
    const NUMBERS: usize = 1_000_000;

    fn sorted(numbers: &[u64]) -> Vec<u64> {
        if numbers.len() <= 64 {
            let mut numbers = numbers.to_vec();
            numbers.sort_unstable();
            return numbers;
        }
        let (left, right) = numbers.split_at(numbers.len() / 2);
        let (left, right) = rayon::join(|| sorted(left), || sorted(right));
        let mut merged = Vec::with_capacity(numbers.len());
        let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
        while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
            let least = if a <= b { left.next() } else { right.next() };
            merged.extend(least);
        }
        merged.extend(left.chain(right));
        merged
    }

    let mut random = fastrand::Rng::with_seed(9);
    let numbers: Vec<u64> = (0..NUMBERS).map(|_| random.u64(..)).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    passes(NUMBERS, || drop(black_box(pool.install(|| sorted(&numbers)))))
}

/// One thread reads the lines of a log and hands them over in batches, another
/// one takes them apart, counts, and writes them as JSON, of which it keeps the
/// last 500 batches; an operation is one line.
pub fn log() -> f64 {
    const LINES: usize = 60_000;
    const BATCH: usize = 64;

    let lines: Vec<String> = (0..1_000).map(log_line).collect();
    passes(LINES, || {
        let (send, receive) = sync_channel::<Vec<String>>(16);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for batch in 0..LINES / BATCH {
                    let line = |at: usize| lines[(batch * BATCH + at) % lines.len()].clone();
                    send.send((0..BATCH).map(line).collect()).unwrap();
                }
                drop(send);
            });
            let mut by_service: HashMap<String, u64> = HashMap::new();
            let mut kept: VecDeque<Vec<String>> = VecDeque::new();
            for batch in receive {
                let mut written = Vec::with_capacity(BATCH);
                for line in batch {
                    let mut fields = BTreeMap::new();
                    for (name, field) in ["time", "level", "service"].iter().zip(line.split(' ')) {
                        fields.insert((*name).to_owned(), serde_json::Value::from(field));
                    }
                    *by_service.entry(fields["service"].to_string()).or_default() += 1;
                    fields.insert("line".to_owned(), line.into());
                    written.push(serde_json::to_string(&fields).unwrap());
                }
                kept.push_back(written);
                if kept.len() > 500 {
                    kept.pop_front();
                }
            }
            black_box((by_service, kept));
        });
    })
}

/// Orders with customers, items and notes: objects, arrays, strings of many
/// lengths, and numbers, as services send them to each other.
fn document(size: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut orders = Vec::new();
    let mut length = 0;
    while length < size {
        let order = order(&mut random, orders.len() % 7 + 1);
        length += order.to_string().len();
        orders.push(order);
    }
    serde_json::to_vec(&orders).unwrap()
}

fn order(random: &mut fastrand::Rng, items: usize) -> serde_json::Value {
    let items: Vec<_> = (0..items)
        .map(|i| {
            let tags = [word(random, 6), word(random, 9)];
            serde_json::json!({ "sku": word(random, 12), "count": i, "price": i as f64 * 1.25, "tags": tags })
        })
        .collect();
    serde_json::json!({
        "id": random.u32(..),
        "customer": { "name": word(random, 20), "mail": word(random, 30), "active": true },
        "items": items,
        "note": word(random, 120),
        "parent": null,
    })
}

fn word(random: &mut fastrand::Rng, longest: usize) -> String {
    let length = random.usize(1..=longest);
    (0..length).map(|_| random.lowercase()).collect()
}

/// Words, the frequent ones often and the rare ones seldom.
fn text(words: usize) -> String {
    let mut random = fastrand::Rng::with_seed(11);
    let known: Vec<String> = (0..100_000).map(|_| word(&mut random, 24)).collect();
    let mut text = String::new();
    for _ in 0..words {
        let rank = (known.len() as f64).powf(random.f64()) as usize;
        write!(text, "{} ", known[rank % known.len()]).unwrap();
    }
    text
}

fn log_line(number: usize) -> String {
    let mut random = fastrand::Rng::with_seed(number as u64);
    let level = ["info", "warn", "error"][random.usize(..3)];
    let service = ["auth", "billing", "search", "mail"][random.usize(..4)];
    let (second, worker) = (number % 60, random.u32(..64));
    let message: Vec<_> = (0..random.usize(3..14)).map(|_| word(&mut random, 12)).collect();
    format!("2026-11-21T10:00:{second:02}Z [{level}] {service}/{worker}: {}", message.join(" "))
}
