//! Documents, an index of their words, and a cache of what was asked for last.

use serde::Deserialize;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tracing::info_span;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    title: String,
    text: String,
}

/// Why a document is not taken.
pub struct IsFull;

#[derive(Default)]
pub struct Store {
    documents: RwLock<HashMap<Arc<str>, Document>>,
    index: Mutex<Index>,
    cache: Mutex<Cache>,
}

/// How many documents there may be.
const MOST: usize = 10_000;

impl Store {
    /// Takes a document, new or instead of another one; `true` for a new one.
    pub fn put(&self, id: &str, document: Document) -> Result<bool, IsFull> {
        let mut documents = self.documents.write().unwrap_or_else(PoisonError::into_inner);
        if documents.len() >= MOST && !documents.contains_key(id) {
            return Err(IsFull);
        }
        let id: Arc<str> = id.into();
        let former = documents.remove(&id);
        self.index().change(&id, former.as_ref(), Some(&document));
        self.cache().remove(&id);
        documents.insert(id, document);
        Ok(former.is_none())
    }

    /// The document as JSON, from the cache if it is there.
    pub fn get(&self, id: &str) -> Option<Vec<u8>> {
        if let Some(cached) = self.cache().get(id) {
            return Some(cached);
        }
        let documents = self.documents.read().unwrap_or_else(PoisonError::into_inner);
        let Document { title, text } = documents.get(id)?;
        let json = serde_json::json!({ "id": id, "title": title, "text": text }).to_string().into_bytes();
        info_span!("cache", service = "cache").in_scope(|| self.cache().insert(id, &json));
        Some(json)
    }

    pub fn delete(&self, id: &str) -> bool {
        let mut documents = self.documents.write().unwrap_or_else(PoisonError::into_inner);
        let Some(former) = documents.remove(id) else { return false };
        self.index().change(id, Some(&former), None);
        self.cache().remove(id);
        true
    }

    /// Ids and titles of documents that have all of the words, and how many there are.
    pub fn search(&self, query: &str, limit: usize) -> (Vec<(String, String)>, usize) {
        let documents = self.documents.read().unwrap_or_else(PoisonError::into_inner);
        let ids = self.index().find(query);
        let title =
            |id: &Arc<str>| documents.get(id).map(|document| (id.to_string(), document.title.clone()));
        (ids.iter().filter_map(title).take(limit).collect(), ids.len())
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Word to documents.
#[derive(Default)]
struct Index(HashMap<String, BTreeSet<Arc<str>>>);

impl Index {
    /// Whoever puts a document, the index is the search's.
    fn change(&mut self, id: &str, former: Option<&Document>, new: Option<&Document>) {
        let _search = info_span!("index", service = "search").entered();
        for word in former.into_iter().flat_map(words) {
            if let Some(ids) = self.0.get_mut(&word) {
                ids.remove(id);
                if ids.is_empty() {
                    self.0.remove(&word);
                }
            }
        }
        let id: Arc<str> = id.into();
        for word in new.into_iter().flat_map(words) {
            self.0.entry(word).or_default().insert(Arc::clone(&id));
        }
    }

    fn find(&self, query: &str) -> Vec<Arc<str>> {
        let mut lists: Vec<Option<&BTreeSet<Arc<str>>>> =
            split(query).map(|word| self.0.get(&word)).collect();
        lists.sort_by_key(|list| list.map_or(0, BTreeSet::len));
        let Some((Some(fewest), others)) = lists.split_first() else { return Vec::new() };
        let has_all = |id: &&Arc<str>| others.iter().flatten().all(|list| list.contains(*id));
        fewest.iter().filter(has_all).cloned().collect()
    }
}

fn words(document: &Document) -> impl Iterator<Item = String> {
    split(&document.title).chain(split(&document.text))
}

fn split(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

/// The documents that were asked for last, as they are sent.
#[derive(Default)]
struct Cache {
    entries: HashMap<String, Vec<u8>>,
    /// The oldest first.
    order: VecDeque<String>,
    bytes: usize,
}

impl Cache {
    const MOST_BYTES: usize = 4 << 20;

    fn get(&self, id: &str) -> Option<Vec<u8>> {
        self.entries.get(id).cloned()
    }

    fn insert(&mut self, id: &str, json: &[u8]) {
        self.remove(id);
        self.bytes += json.len();
        self.entries.insert(id.to_owned(), json.to_owned());
        self.order.push_back(id.to_owned());
        while self.bytes > Self::MOST_BYTES
            && let Some(oldest) = self.order.front().cloned()
        {
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, id: &str) {
        if let Some(json) = self.entries.remove(id) {
            self.bytes -= json.len();
            self.order.retain(|known| known != id);
        }
    }
}
