//! Makes a program that fails smaller.

use super::program::Program;
use std::time::{Duration, Instant};

/// How long a smaller program is looked for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The smallest program found that fails, too, and how. `fails` runs one.
pub fn shrink(
    mut program: Program,
    mut error: String,
    mut fails: impl FnMut(&Program) -> Option<String>,
) -> (Program, String) {
    let begin = Instant::now();
    let mut is_smaller = |smaller: Program, program: &mut Program, error: &mut String| {
        let Some(again) = (begin.elapsed() < PATIENCE).then(|| fails(&smaller)).flatten() else {
            return false;
        };
        (*program, *error) = (smaller, again);
        true
    };
    // Longer and longer runs of steps are taken out until none can be missed.
    loop {
        let before = program.steps.len();
        let mut run = before.div_ceil(2);
        while run > 0 {
            let mut at = 0;
            while at < program.steps.len() {
                let mut smaller = program.clone();
                smaller.steps.drain(at..(at + run).min(program.steps.len()));
                if !is_smaller(smaller, &mut program, &mut error) {
                    at += run;
                }
            }
            run /= 2;
        }
        if program.steps.len() == before || begin.elapsed() >= PATIENCE {
            break;
        }
    }
    for step in 0..program.steps.len() {
        for size in 0..program.steps[step].act.sizes().len() {
            loop {
                let mut smaller = program.clone();
                let number = &mut *smaller.steps[step].act.sizes()[size];
                if *number == 1 {
                    break;
                }
                *number /= 2;
                if !is_smaller(smaller, &mut program, &mut error) {
                    break;
                }
            }
        }
    }
    (program, error)
}
