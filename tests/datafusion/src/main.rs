//! Eight queries of DataFusion at once, each in a service of its own. One is a join without a condition whose
//! result is sorted: it grows without end, is cancelled by the guard, and seven others finish, with the answers
//! that they have alone.
//!
//! DataFusion spawns tasks for parts of a query. They work for the query's service by way of its own hook,
//! `set_join_set_tracer`. A part that computes may go on for long without waiting, and nobody can drop it
//! meanwhile; but it asks its memory pool before it keeps more, and the pool asks whether the query is cancelled.
#![forbid(unsafe_code)]

use datafusion::arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch};
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::common::runtime::{JoinSetTracer, set_join_set_tracer};
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::{MemoryPool, MemoryReservation, UnboundedMemoryPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use dogtag::guard::{Ceiling, Guard, Policy};
use dogtag::{Dogtag, InServiceExt, Service};
use futures::future::BoxFuture;
use std::any::Any;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

const MIB: u64 = 1 << 20;
const ROWS: i64 = 100_000;
const QUERIES: usize = 7;
const ROUNDS: usize = 5;
/// For what a task does at its next turn, which may be late on a busy machine.
const PATIENCE: Duration = Duration::from_secs(1000);

const ANSWERED: &str = "SELECT c.segment, COUNT(*) AS orders, SUM(o.amount) AS amount FROM orders o \
                        JOIN customers c ON o.customer = c.customer GROUP BY c.segment ORDER BY c.segment";
const ENDLESS: &str = "SELECT a.amount * b.amount AS product, a.customer, b.customer AS other FROM orders a \
                       CROSS JOIN orders b ORDER BY product";

/// Has what DataFusion spawns work for the service of whoever spawns it.
struct InTheQuerysService;

impl JoinSetTracer for InTheQuerysService {
    fn trace_future(
        &self,
        future: BoxFuture<'static, Box<dyn Any + Send>>,
    ) -> BoxFuture<'static, Box<dyn Any + Send>> {
        Box::pin(future.in_current_service())
    }

    fn trace_block(
        &self,
        work: Box<dyn FnOnce() -> Box<dyn Any + Send> + Send>,
    ) -> Box<dyn FnOnce() -> Box<dyn Any + Send> + Send> {
        Box::new(Service::current().wrap(work))
    }
}

/// Lets every query have what it wants, unless it is cancelled.
#[derive(Debug, Default)]
struct UnlessCancelled(UnboundedMemoryPool);

impl MemoryPool for UnlessCancelled {
    fn name(&self) -> &str {
        "unless cancelled"
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.0.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.0.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> datafusion::error::Result<()> {
        dogtag::guard::check().map_err(|cancelled| DataFusionError::External(Box::new(cancelled)))?;
        self.0.try_grow(reservation, additional)
    }

    fn reserved(&self) -> usize {
        self.0.reserved()
    }
}

impl fmt::Display for UnlessCancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn context() -> Result<SessionContext> {
    let runtime =
        RuntimeEnvBuilder::new().with_memory_pool(Arc::new(UnlessCancelled::default())).build_arc()?;
    let settings = SessionConfig::new().with_target_partitions(2);
    let context = SessionContext::new_with_config_rt(settings, runtime);
    let integers =
        |of: &dyn Fn(i64) -> i64, rows| -> ArrayRef { Arc::new((0..rows).map(of).collect::<Int64Array>()) };
    let amounts: ArrayRef =
        Arc::new((0..ROWS).map(|row| (row % 1000) as f64 / 4.0).collect::<Float64Array>());
    let orders = RecordBatch::try_from_iter([
        ("customer", integers(&|row| row * 7919 % 5000, ROWS)),
        ("amount", amounts),
    ])?;
    let customers = RecordBatch::try_from_iter([
        ("customer", integers(&|row| row, 5000)),
        ("segment", integers(&|row| row % 8, 5000)),
    ])?;
    for (name, batch) in [("orders", orders), ("customers", customers)] {
        let batches: Vec<_> = (0..batch.num_rows())
            .step_by(8192)
            .map(|from| batch.slice(from, 8192.min(batch.num_rows() - from)))
            .collect();
        context.register_table(name, Arc::new(MemTable::try_new(batch.schema(), vec![batches])?))?;
    }
    Ok(context)
}

async fn answer(context: &SessionContext, query: &str) -> Result<String> {
    Ok(pretty_format_batches(&context.sql(query).await?.collect().await?)?.to_string())
}

#[tokio::main]
async fn main() -> Result<()> {
    set_join_set_tracer(&InTheQuerysService)?;
    let tables = Service::register("tables")?;
    let context = Arc::new(tables.run(context)?);
    let expected = Arc::new(answer(&context, ANSWERED).await?);
    println!("{expected}");

    let used = dogtag::totals().bytes() + 64 * MIB;
    let guard = Guard::builder().policy(Policy::most_bytes()).grace(PATIENCE);
    let _guard = guard.ceiling(Ceiling::bytes(used + 512 * MIB)).start()?;

    let endless = Service::builder("query-endless").cancellable(0).register()?;
    let runaway = tokio::spawn({
        let (context, endless) = (Arc::clone(&context), endless.clone());
        async move {
            let query = async move { answer(&context, ENDLESS).await.map(|_| ()) };
            query.in_service(&endless).or_cancelled().await
        }
    });
    let others: Vec<_> = (0..QUERIES)
        .map(|number| {
            let (context, expected) = (Arc::clone(&context), Arc::clone(&expected));
            tokio::spawn(async move {
                let mut most = 0;
                for round in 0..ROUNDS {
                    let service =
                        Service::builder(format!("query-{number}-{round}")).cancellable(0).register()?;
                    let context = Arc::clone(&context);
                    let query = async move { answer(&context, ANSWERED).await };
                    let answer = query.in_service(&service).or_cancelled().await??;
                    assert!(answer == *expected, "{answer}");
                    most = most.max(service.usage().peak_bytes);
                }
                Result::Ok(most)
            })
        })
        .collect();

    let cancelled = runaway.await?.expect_err("an endless query has no answer");
    println!("{cancelled}");
    assert_eq!(&*cancelled.service, "query-endless");
    for (number, other) in others.into_iter().enumerate() {
        let most = other.await?? as f64 / MIB as f64;
        println!("query-{number}: {ROUNDS} answers, all right, {most:.1} MiB at most");
    }
    // Its tasks end at their next turn.
    let begin = Instant::now();
    while endless.usage().bytes() > 0 && begin.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    println!("{}", dogtag::snapshot());
    assert_eq!(endless.usage().bytes(), 0);
    let counts = dogtag::snapshot().cancellations.unwrap_or_default();
    assert_eq!((counts.by_guard, counts.by_budget), (1, 0));
    assert!(tables.usage().bytes() >= ROWS as u64 * 16, "{:?}", tables.usage());
    Ok(())
}
