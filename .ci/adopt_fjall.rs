//! A program with [fjall](https://docs.rs/fjall), for `.ci/adopt`: two threads write 40,000 keys each, two
//! read them all, and one looks through ranges. It takes the database's folder.

use fjall::{Database, KeyspaceCreateOptions, PersistMode};
use std::error::Error;
use std::thread;

const KEYS: u32 = 40_000;

fn key(writer: u32, key: u32) -> String {
    format!("{writer}:{key:08}")
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("the folder of the database is missing")?;
    let database = Database::builder(&folder).open()?;
    let items = database.keyspace("items", KeyspaceCreateOptions::default)?;
    let named = |name: String| thread::Builder::new().name(name);

    thread::scope(|threads| {
        for writer in 0..2 {
            let items = &items;
            let work = move || {
                for number in 0..KEYS {
                    let value = number.to_le_bytes().repeat(100);
                    items.insert(key(writer, number), value).expect("the key is written");
                }
            };
            named(format!("writer-{writer}")).spawn_scoped(threads, work).expect("there is a thread");
        }
    });
    database.persist(PersistMode::SyncAll)?;

    let found = thread::scope(|threads| {
        let readers = [0, 1].map(|reader| {
            let items = &items;
            let work = move || {
                let read = |number| items.get(key(reader, number)).expect("the key is read");
                (0..KEYS).filter_map(read).map(|value| value.len()).sum::<usize>()
            };
            named(format!("reader-{reader}")).spawn_scoped(threads, work).expect("there is a thread")
        });
        let ranges = || {
            let all = (0..2).flat_map(|writer| items.range(key(writer, 1000)..key(writer, 11_000)));
            all.map(|entry| entry.into_inner().expect("the entry is read").1.len()).sum::<usize>()
        };
        let ranges = named("ranges".to_owned()).spawn_scoped(threads, ranges).expect("there is a thread");
        readers.map(|reader| reader.join().expect("it does not panic")).iter().sum::<usize>()
            + ranges.join().expect("it does not panic")
    });
    println!("{found} bytes");
    // The database is open still: whoever reports at the exit sees its memory.
    std::process::exit(0)
}
