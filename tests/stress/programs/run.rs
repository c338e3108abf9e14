//! Runs a program: its threads in turn, or all at once.

use super::program::{Act, Program, Step, THREADS};
use super::watch::Watch;
use super::worker::{Baggage, Worker};
use super::world::World;
use crate::engine::get_out;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Barrier, Condvar, Mutex};

/// How the threads of a program take their steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// One at a time, in the order of the program: every figure is known.
    InTurn,
    /// Each as fast as it can: figures are known when all have stopped.
    AtOnce,
}

/// What was wrong first.
static FIRST_PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Has panics noted rather than printed; programs are meant to be run again.
pub fn note_panics() {
    std::panic::set_hook(Box::new(|panic| {
        get_out();
        FIRST_PANIC
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
            .get_or_insert_with(|| panic.to_string());
    }));
}

/// Runs a program; an error says what was wrong. All that it had is left lying around then.
pub fn run(program: &Program, way: Way) -> Result<(), String> {
    *FIRST_PANIC.lock().unwrap_or_else(|poison| poison.into_inner()) = None;
    let world = &*Box::leak(Box::new(World::new(way == Way::InTurn)));
    let stage = Stage {
        program,
        world,
        next: Mutex::new(0),
        changed: Condvar::new(),
        begin: Barrier::new(THREADS),
        is_over: AtomicBool::new(false),
    };
    let result = catch_unwind(AssertUnwindSafe(|| {
        let baggage = stage.play();
        world.check();
        clear_up(world, baggage);
    }));
    if result.is_err() {
        let first = FIRST_PANIC.lock().unwrap_or_else(|poison| poison.into_inner()).take();
        return Err(first.unwrap_or_else(|| "a panic without a message".to_owned()));
    }
    // SAFETY: it was leaked above, and all threads that knew it have ended.
    drop(unsafe { Box::from_raw(std::ptr::from_ref(world).cast_mut()) });
    Ok(())
}

/// Gives back all that is left, and holds what is left then against the model.
fn clear_up(world: &World, baggage: Vec<Baggage>) {
    for (line, baggage) in baggage.into_iter().enumerate() {
        let mut worker = Worker::new(world, line, 0, baggage);
        worker.give_back();
        for task in std::mem::take(&mut *world.tasks.lock().unwrap()) {
            worker.drop_task(task);
        }
    }
    world.board.lock().unwrap().clear();
    #[cfg(target_os = "linux")]
    world.regions.lock().unwrap().clear();
    world.check();
    world.check_all_ended();
}

/// Where a program is played.
struct Stage<'a> {
    program: &'a Program,
    world: &'a World,
    /// In turn: the number of the next step. When all are done each thread ends, in turn, too.
    next: Mutex<usize>,
    changed: Condvar,
    /// All begin at once.
    begin: Barrier,
    /// Whether nobody should go on.
    is_over: AtomicBool,
}

impl Stage<'_> {
    fn play(&self) -> Vec<Baggage> {
        std::thread::scope(|threads| {
            let lines: Vec<_> = (0..THREADS).map(|line| threads.spawn(move || self.line(line))).collect();
            let watch = (!self.world.in_turn).then(|| threads.spawn(|| self.watch()));
            let baggage: Vec<_> = lines.into_iter().map(|line| line.join()).collect();
            self.is_over.store(true, SeqCst);
            let watched = watch.map(|watch| watch.join());
            if let Some(Err(panic)) = watched {
                resume_unwind(panic);
            }
            baggage.into_iter().map(|baggage| baggage.unwrap_or_else(|panic| resume_unwind(panic))).collect()
        })
    }

    /// One thread after the other that does a line's steps.
    fn line(&self, line: usize) -> Baggage {
        let mut steps: Vec<(usize, &Step)> =
            self.program.steps.iter().enumerate().filter(|(_, step)| step.thread == line).collect();
        steps.reverse();
        let (mut baggage, mut thread) = (Baggage::new(), line as u64);
        self.begin.wait();
        loop {
            // Joined, so that its thread-local variables are gone, too.
            let part = std::thread::scope(|threads| {
                let (steps, baggage) = (&mut steps, &mut baggage);
                threads.spawn(move || self.part(line, thread, steps, baggage)).join()
            });
            let turn = part.unwrap_or_else(|panic| resume_unwind(panic));
            baggage.settle();
            self.done(turn);
            if turn >= self.program.steps.len() {
                return baggage;
            }
            thread += THREADS as u64;
        }
    }

    /// Does steps until the thread ends; returns whose turn it is then.
    fn part(
        &self,
        line: usize,
        thread: u64,
        steps: &mut Vec<(usize, &Step)>,
        baggage: &mut Baggage,
    ) -> usize {
        let worker = Worker::new(self.world, line, thread, std::mem::replace(baggage, Baggage::new()));
        let mut worker = std::mem::ManuallyDrop::new(worker);
        let played = catch_unwind(AssertUnwindSafe(|| {
            while let Some((turn, step)) = steps.pop() {
                self.wait_for(turn);
                if let Act::Restart = step.act {
                    return turn;
                }
                worker.step(&step.act);
                if self.world.in_turn {
                    self.world.note_retired();
                    if (turn + 1).is_multiple_of(self.program.interval) {
                        self.world.check();
                    }
                }
                self.done(turn);
            }
            let turn = self.program.steps.len() + line;
            self.wait_for(turn);
            turn
        }));
        let packed = played.and_then(|turn| {
            // What a thread has that nothing is known of any more is left where it is.
            let worker = std::mem::ManuallyDrop::into_inner(worker);
            catch_unwind(AssertUnwindSafe(|| worker.pack())).map(|packed| (turn, packed))
        });
        match packed {
            Ok((turn, packed)) => {
                *baggage = packed;
                turn
            }
            Err(panic) => {
                get_out();
                self.is_over.store(true, SeqCst);
                self.changed.notify_all();
                resume_unwind(panic)
            }
        }
    }

    fn wait_for(&self, turn: usize) {
        if self.world.in_turn {
            let is_not_yet = |next: &mut usize| *next != turn && !self.is_over.load(SeqCst);
            drop(self.changed.wait_while(self.next.lock().unwrap(), is_not_yet).unwrap());
        }
        assert!(!self.is_over.load(SeqCst), "another thread has failed");
    }

    fn done(&self, turn: usize) {
        if self.world.in_turn {
            *self.next.lock().unwrap() = turn + 1;
            self.changed.notify_all();
        }
    }

    fn watch(&self) {
        let mut watch = Watch::default();
        let looked = catch_unwind(AssertUnwindSafe(|| {
            while !self.is_over.load(SeqCst) {
                watch.look();
            }
        }));
        if let Err(panic) = looked {
            self.is_over.store(true, SeqCst);
            resume_unwind(panic);
        }
    }
}
