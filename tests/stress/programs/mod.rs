//! Random programs of all that users can do, on several threads, against a plain model: each is
//! run in turn, where every figure is known after each step, and at once, where they are
//! known when all have stopped and bounded meanwhile. What fails is made smaller.
//!
//! `DOGTAG_SEED` sets which programs: with the seed of one that failed, that one is the first. `DOGTAG_MODEL_WAY` has them all run `in-turn`,
//! or all `at-once`.

mod futures;
mod homes;
mod memory;
mod pools;
mod program;
#[cfg(target_os = "linux")]
mod regions;
mod run;
mod services;
mod shrink;
mod watch;
mod worker;
mod world;

use program::Program;
use run::Way;
use std::io::Write;
use std::time::Instant;

/// How often a program is run at once to see whether it fails again.
const TRIES: usize = 20;

#[test]
fn programs_do_as_the_model_does() {
    alone!();
    let whole = crate::random::seconds(2.0);
    let first = crate::random::seed();
    // Not by `print`, which waits for an end that there may not be.
    let say = |text: String| _ = writeln!(std::io::stderr(), "{text}");
    say(format!("programs for {whole:?}: DOGTAG_SEED={first}"));
    let ways = match std::env::var("DOGTAG_MODEL_WAY").as_deref() {
        Ok("in-turn") => &[Way::InTurn][..],
        Ok("at-once") => &[Way::AtOnce],
        Ok(other) => panic!("DOGTAG_MODEL_WAY is in-turn or at-once, not {other:?}"),
        Err(_) => &[Way::InTurn, Way::AtOnce],
    };
    run::note_panics();
    let begin = Instant::now();
    let (mut programs, mut steps) = (0_u64, 0);
    while programs == 0 || begin.elapsed() < whole {
        let seed = first.wrapping_add(programs);
        let program = Program::random(seed);
        for &way in ways {
            if let Err(error) = run::run(&program, way) {
                say(format!("DOGTAG_SEED={seed} fails, {way:?}: {error}\nto be made smaller ..."));
                let tries = if way == Way::InTurn { 1 } else { TRIES };
                // In the same place: what a failed run has left behind makes other programs fail.
                let place = |error: &str| error.lines().next().map(str::to_owned);
                let first = place(&error);
                let fails = |program: &Program| {
                    (0..tries)
                        .filter_map(|_| run::run(program, way).err())
                        .find(|error| place(error) == first)
                };
                let (program, error) = shrink::shrink(program, error, fails);
                drop(std::panic::take_hook());
                panic!("DOGTAG_SEED={seed} fails, {way:?}: {error}\n{program}");
            }
        }
        programs += 1;
        steps += ways.len() * program.steps.len();
    }
    drop(std::panic::take_hook());
    say(format!("{programs} programs, run {ways:?}, {steps} steps, in {:?}", begin.elapsed()));
}
