//! Who holds the memory of a real program?
//!
//! `cargo run --release --example services [PATH ...]`
//!
//! Reads the text files below the given paths (default: this repository's own
//! sources), splits them into words, builds an index of where each word stands,
//! and searches it from asynchronous tasks. Each of the four parts is a
//! service. Blocks change hands between them, and threads come and go.
//!
//! Prints who holds what at the peak, drops the index, prints it again, and
//! checks the books: exit status 1 if they do not balance, 2 if a path cannot
//! be read or holds no text.

use dogtag::{InServiceExt, Service, Usage};
use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fmt, fs};

#[global_allocator]
static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();

fn main() -> ExitCode {
    let mut paths: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    if paths.is_empty() {
        paths.push(env!("CARGO_MANIFEST_DIR").into());
    }
    let Err(problem) = run(&paths) else {
        return ExitCode::SUCCESS;
    };
    eprintln!("services: {problem}");
    ExitCode::from(if problem.is::<Unreadable>() { 2 } else { 1 })
}

fn run(paths: &[PathBuf]) -> Result<(), Box<dyn Error>> {
    let files = find_files(paths)?;
    let reader = Service::register("reader")?;
    let tokenizer = Service::register("tokenizer")?;
    let indexer = Service::register("index")?;
    let search = Service::register("search")?;

    // Reader, tokenizers and index are threads with queues in between.
    let start = Instant::now();
    let (texts_in, texts) = sync_channel(16);
    let (words_in, words) = sync_channel(16);
    let total = files.len();
    // Clones, so that the services outlive the threads, and are in both tables.
    let (reads, tokenizes) = (reader.clone(), tokenizer.clone());
    let reading = thread::spawn(move || read(&reads, files, &texts_in));
    let tokenizing = thread::spawn(move || tokenize(&tokenizes, &texts, &words_in));
    let index = build_index(&indexer, words, total)?;
    reading.join().expect("the reader does not panic")?;
    tokenizing.join().expect("the tokenizer does not panic");
    if index.files.is_empty() {
        return Err(Unreadable("none of the files is text".to_owned()).into());
    }
    println!(
        "{} files with {} different words, indexed in {:.2} s",
        index.files.len(),
        index.places.len(),
        start.elapsed().as_secs_f64(),
    );

    // The search is asynchronous: tasks that move between two threads.
    let index = Arc::new(index);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    let results = runtime.block_on(search_all(&search, &index));
    let matches: usize = results.iter().map(|result| result.matches.len()).sum();
    let best = results.iter().max_by_key(|result| result.matches.len()).ok_or("no word to search for")?;
    println!("{} searches found {matches} lines with a pair of common words", results.len());
    if let Some(first) = best.matches.first() {
        println!("most have {:?} and {:?}, as {}", best.words.0, best.words.1, index.show(*first));
    }
    println!("\nAt the peak:\n\n{}", dogtag::snapshot());

    println!("\nThe index is dropped:\n");
    drop(runtime);
    drop(index);
    println!("{}", dogtag::snapshot());
    drop(results);
    let all = [Service::unattributed(), reader, tokenizer, indexer.clone(), search];
    check_the_books(all, &indexer)
}

/// Reads one file after the other. The texts are the reader's memory, whoever
/// keeps them, until somebody frees them.
fn read(
    service: &Service,
    files: Vec<PathBuf>,
    texts: &SyncSender<(String, String)>,
) -> Result<(), Unreadable> {
    for path in files {
        let bytes = service.run(|| fs::read(&path)).map_err(|error| Unreadable::at(&path, &error))?;
        // What is not text is passed over, to be freed here.
        let Ok(text) = String::from_utf8(bytes) else { continue };
        let name = service.run(|| path.display().to_string());
        if texts.send((name, text)).is_err() {
            break;
        }
    }
    Ok(())
}

/// A text with the words in it, each with its line.
struct Words {
    name: String,
    text: String,
    words: Vec<(String, u32)>,
}

/// Splits texts into words, on a new thread for every few files.
fn tokenize(service: &Service, texts: &Receiver<(String, String)>, words: &SyncSender<Words>) {
    loop {
        let batch: Vec<_> = texts.iter().take(8).collect();
        if batch.is_empty() {
            return;
        }
        let words = words.clone();
        let service = service.clone();
        let work = move || {
            for (name, text) in batch {
                let found = service.run(|| split(&text));
                // The other end is gone only if building the index failed.
                let _ = words.send(Words { name, text, words: found });
            }
        };
        thread::spawn(work).join().expect("splitting a text does not panic");
    }
}

fn split(text: &str) -> Vec<(String, u32)> {
    let mut words = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let found = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        words.extend(found.filter(|word| !word.is_empty()).map(|word| (word.to_lowercase(), number)));
    }
    words
}

/// Where each word stands.
#[derive(Default)]
struct Index {
    /// The names and texts.
    files: Vec<(String, String)>,
    /// The file and the line of each word, in order.
    places: HashMap<String, Vec<(u32, u32)>>,
}

impl Index {
    fn show(&self, (file, line): (u32, u32)) -> String {
        let (name, text) = &self.files[file as usize];
        let found = text.lines().nth(line as usize - 1).unwrap_or_default().trim();
        format!("{name}, line {line}:\n    {found:.90}")
    }
}

fn build_index(service: &Service, words: Receiver<Words>, total: usize) -> Result<Index, String> {
    let mut index = Index::default();
    let show_progress = |index: &Index| {
        eprintln!(
            "indexed {} of {total} files; the index holds {} KiB",
            index.files.len(),
            service.usage().bytes() / 1024
        );
    };
    let mut shown = Instant::now();
    for Words { name, text, words } in words {
        // The words are copied and freed, which is refunded to the tokenizer;
        // name and text are kept, and stay the reader's.
        service.run(|| {
            let number = u32::try_from(index.files.len()).map_err(|_| "too many files")?;
            index.files.push((name, text));
            for (word, line) in &words {
                if let Some(places) = index.places.get_mut(word) {
                    places.push((number, *line));
                } else {
                    index.places.insert(word.clone(), vec![(number, *line)]);
                }
            }
            drop(words);
            Ok::<_, String>(())
        })?;
        if shown.elapsed() > Duration::from_millis(200) {
            shown = Instant::now();
            show_progress(&index);
        }
    }
    // Files that hold no text are not among them.
    show_progress(&index);
    Ok(index)
}

struct Found {
    words: (String, String),
    /// The file and line of each line that has both words.
    matches: Vec<(u32, u32)>,
}

/// Looks for pairs of the commonest words that stand on one line, each pair in
/// a task of its own.
async fn search_all(service: &Service, index: &Arc<Index>) -> Vec<Found> {
    let mut common: Vec<_> = index.places.iter().map(|(word, places)| (places.len(), word)).collect();
    common.sort_unstable_by(|a, b| b.cmp(a));
    common.truncate(30);
    let mut tasks = Vec::new();
    for (i, (_, first)) in common.iter().enumerate() {
        for (_, second) in &common[i + 1..] {
            let (index, words) = (Arc::clone(index), ((*first).clone(), (*second).clone()));
            let task = async move {
                let mut matches = Vec::new();
                let lines = &index.places[&words.1];
                for place in &index.places[&words.0] {
                    if lines.binary_search(place).is_ok() {
                        matches.push(*place);
                    }
                    if matches.len() % 64 == 63 {
                        tokio::task::yield_now().await;
                    }
                }
                Found { words, matches }
            };
            tasks.push(tokio::spawn(task.in_service(service)));
        }
    }
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.expect("a search does not panic"));
    }
    results
}

/// Every byte has an owner: service by service, the figures add up to the
/// totals, and a service whose work is dropped holds nothing.
fn check_the_books(services: [Service; 5], dropped: &Service) -> Result<(), Box<dyn Error>> {
    // Nothing allocates in between, so both sums are of the same moment.
    let mut sum: Usage = services.iter().map(Service::usage).sum();
    let mut totals = dogtag::totals();
    // Services have their peaks when they will.
    (sum.peak_bytes, totals.peak_bytes) = (0, 0);
    if sum != totals {
        return Err(format!("the services add up to {sum:?}, but the totals are {totals:?}").into());
    }
    let left = dropped.usage();
    if left.bytes() != 0 || left.blocks() != 0 {
        return Err(format!("{:?} was dropped but still holds {} bytes", dropped.name(), left.bytes()).into());
    }
    println!("\nThe books balance: all services add up to the totals, and nothing of the index is left.");
    Ok(())
}

/// All files below the paths, but for hidden ones, build results and drawings.
fn find_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Unreadable> {
    let mut files = Vec::new();
    let mut open: Vec<PathBuf> = paths.to_vec();
    while let Some(path) = open.pop() {
        let kind = fs::metadata(&path).map_err(|error| Unreadable::at(&path, &error))?;
        if kind.is_file() {
            files.push(path);
        } else if kind.is_dir() {
            for entry in fs::read_dir(&path).map_err(|error| Unreadable::at(&path, &error))? {
                let entry = entry.map_err(|error| Unreadable::at(&path, &error))?;
                let name = entry.file_name();
                let name = name.to_string_lossy();
                let skipped = name.starts_with('.') || name == "target" || name.ends_with(".svg");
                // Links are not followed: they may lead round in circles.
                if !skipped && !entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                    open.push(entry.path());
                }
            }
        }
    }
    if files.is_empty() {
        return Err(Unreadable("there are no files to read below the given paths".to_owned()));
    }
    files.sort();
    Ok(files)
}

/// There is nothing to work on, and why.
#[derive(Debug)]
struct Unreadable(String);

impl Unreadable {
    fn at(path: &Path, error: &std::io::Error) -> Self {
        Self(format!("cannot read {}: {error}", path.display()))
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Unreadable {}
