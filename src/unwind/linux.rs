//! Walks the stack of the calling thread, on Linux.

mod loader;
mod memory;
mod modules;
mod needed;
mod registers;
mod rules;
mod tables;
#[cfg(test)]
mod tests;

use memory::Memory;
use modules::List;
use registers::Registers;
use rules::{Kind, Rule};

pub(super) use modules::refresh_if_needed;
#[cfg(feature = "memory-check")]
pub(super) use modules::try_refresh;

#[cfg_attr(not(feature = "profile"), allow(dead_code))]
pub(super) fn prepare() {
    rules::prepare();
    modules::prepare();
}

/// How often the stack may go on at a lower address: from a signal's stack to the thread's own, from
/// a coroutine's to whoever runs it. Bounds circles.
const JUMPS: u32 = 8;

/// A frame pointer that is further up is not believed.
const LARGEST_FRAME: usize = 1 << 20;

#[cfg_attr(not(feature = "profile"), allow(dead_code))]
#[inline(never)]
pub(super) fn capture(frames: &mut [usize]) -> usize {
    let registers = Registers::current();
    modules::with(|list| walk(list, registers, frames)).0
}

/// Tells besides whether all code was of modules that are known.
#[cfg(feature = "memory-check")]
#[inline(never)]
pub(super) fn capture_known(frames: &mut [usize]) -> (usize, bool) {
    let registers = Registers::current();
    modules::with(|list| walk(list, registers, frames))
}

/// # Safety
///
/// `context` must be what a signal handler was given that has not returned.
#[cfg(any(feature = "sampled-guard", feature = "memory-check"))]
pub(super) unsafe fn capture_interrupted(context: *const std::ffi::c_void, frames: &mut [usize]) -> usize {
    // SAFETY: the caller's context, which is one of these on Linux.
    let registers = unsafe { Registers::of_context(&*context.cast::<libc::ucontext_t>()) };
    let Some((first, callers)) = frames.split_first_mut() else { return 0 };
    *first = registers.ip.saturating_add(1);
    1 + modules::with(|list| walk(list, registers, callers)).0
}

/// Returns how many frames there are, and whether all code was of modules that are known.
fn walk(list: &List, mut registers: Registers, frames: &mut [usize]) -> (usize, bool) {
    let mut memory = Memory::of_stack(registers.sp());
    let mut count = 0;
    let mut jumps = 0;
    // Whether the instruction pointer is where the thread is, or was interrupted; else it
    // is a return address, and the call that is before it counts.
    let mut exact = true;
    let mut is_known = true;
    while count < frames.len() {
        let sp = registers.sp();
        let place = if exact { registers.ip } else { registers.ip - 1 };
        let rule = rules::get(list.generation, place).unwrap_or_else(|| find(list, place, &mut is_known));
        let stepped = match rule.kind() {
            Kind::Simple => rule.step(&mut registers, &mut memory, exact).then_some(false),
            Kind::Table => tables::step(list, place, &mut registers, &mut memory, exact),
            Kind::FramePointer => {
                follow_frame_pointer(list, place, &mut registers, &mut memory).then_some(false)
            }
            Kind::End => None,
        };
        let Some(interrupted) = stepped else { break };
        // There is never code in the first page.
        if registers.ip < 4096 {
            break;
        }
        let up = registers.sp() > sp || (exact && registers.sp() == sp);
        if !up {
            jumps += 1;
            if jumps > JUMPS {
                break;
            }
        }
        exact = interrupted;
        frames[count] = registers.ip.saturating_add(usize::from(interrupted));
        count += 1;
    }
    (count, is_known)
}

/// The rule for an address that the cache has not.
#[cold]
#[inline(never)]
fn find(list: &List, place: usize, is_known: &mut bool) -> Rule {
    // A library that is not known yet will be, so this is not remembered.
    let Some(module) = list.module_of(place) else {
        *is_known = false;
        return Rule::FRAME_POINTER;
    };
    let rule = tables::rule(module, place);
    rules::insert(list.generation, place, rule);
    rule
}

/// Goes on with the frame pointer, which may be anything: compilers use the register for other things. So the
/// frame must be above, and near, and the place after it in known code, unless
/// this one is not either.
fn follow_frame_pointer(list: &List, place: usize, registers: &mut Registers, memory: &mut Memory) -> bool {
    let (sp, fp) = (registers.sp(), registers.fp());
    if fp < sp || fp - sp > LARGEST_FRAME || !fp.is_multiple_of(8) {
        return false;
    }
    let Some(next_fp) = memory.read(fp) else { return false };
    let Some(ip) = memory.read(fp.wrapping_add(8)) else { return false };
    let ip = registers::without_signature(ip);
    if ip < 4096 || (list.module_of(ip - 1).is_none() && list.module_of(place).is_some()) {
        return false;
    }
    registers.set_fp(next_fp);
    registers.set_sp(fp.wrapping_add(16));
    registers.ip = ip;
    true
}
