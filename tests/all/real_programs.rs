//! Real work on top of dogtag: right results, balanced books, and with
//! memory-check not one report.

use dogtag::{InServiceExt, Service};
use serde_json::Value;

/// Nothing was done to any block, and what the work left is all that is live.
fn assert_clean(service: &Service) {
    #[cfg(feature = "memory-check")]
    assert_eq!(dogtag::check::verify().violations, 0);
    assert_eq!(dogtag::snapshot().lost, dogtag::Lost::default());
    #[cfg(feature = "memory-check")]
    dogtag::check::assert_no_leaks(service);
    assert_eq!((service.usage().bytes(), service.usage().blocks()), (0, 0), "{service:?}");
}

#[test]
fn parsing_json() {
    let service = Service::register("json").unwrap();
    service.run(|| {
        let record = |i: usize| {
            serde_json::json!({
                "id": i,
                "name": format!("user {i}"),
                "tags": (0..i % 7).map(|tag| format!("tag-{tag}")).collect::<Vec<_>>(),
                "nested": { "depth": { "score": i as f64 / 2.0, "text": "é\n\"quoted\"".repeat(i % 5) } },
            })
        };
        let document = Value::Array((0..20_000).map(record).collect());
        let text = serde_json::to_string(&document).unwrap();
        assert!(text.len() > 2_000_000);
        for _ in 0..3 {
            let parsed: Value = serde_json::from_str(&text).unwrap();
            assert!(parsed == document);
            assert!(serde_json::to_string(&parsed).unwrap() == text);
        }
        // Cut short, it is refused, and what was built is dropped.
        assert!(serde_json::from_str::<Value>(&text[..text.len() / 2]).is_err());
    });
    assert_clean(&service);
}

#[test]
fn searching_a_text() {
    let service = Service::register("regex").unwrap();
    // The first one makes a static variable that the process keeps.
    drop(regex::Regex::new("first").unwrap());
    service.run(|| {
        let words = ["alpha", "beta42", "gamma", "2026-11-21", "delta@example.org", "ε", "zeta"];
        let text: String = (0..200_000_usize).map(|i| format!("{} ", words[i * 31 % 7])).collect();
        for (pattern, expected) in [
            (r"\d{4}-\d{2}-\d{2}", 28_571),
            (r"(?i)[a-z]+@[a-z]+\.org", 28_571),
            (r"\p{Greek}", 28_572),
            (r"(beta)(\d+) (\w+)", 28_571),
        ] {
            let regex = regex::Regex::new(pattern).unwrap();
            let found = regex.captures_iter(&text).count();
            assert!(found.abs_diff(expected) <= 2, "{pattern}: {found}");
        }
        let replaced = regex::Regex::new("a").unwrap().replace_all(&text, "aa");
        assert!(replaced.len() > text.len());
    });
    assert_clean(&service);
}

#[test]
fn a_program_of_many_tasks() {
    let service = Service::register("tasks").unwrap();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
    let sum = runtime.block_on(async {
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<Vec<u64>>(64);
        let tasks: Vec<_> = (0..5_000_u64)
            .map(|i| {
                let sender = sender.clone();
                let work = async move {
                    let mut numbers: Vec<u64> = Vec::new();
                    for n in 0..i % 50 {
                        numbers.push(n);
                        if n % 8 == 0 {
                            tokio::task::yield_now().await;
                        }
                    }
                    if i % 100 == 0 {
                        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                    }
                    sender.send(numbers).await.unwrap();
                };
                tokio::spawn(work.in_service(&service))
            })
            .collect();
        drop(sender);
        let mut sum = 0;
        while let Some(numbers) = receiver.recv().await {
            sum += numbers.iter().sum::<u64>();
        }
        for task in tasks {
            task.await.unwrap();
        }
        sum
    });
    assert_eq!(sum, 100 * (0..50_u64).map(|i| i * i.saturating_sub(1) / 2).sum::<u64>());
    drop(runtime);
    assert_clean(&service);
}
