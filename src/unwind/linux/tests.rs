//! Registers and stacks that no program has.

use super::*;
use std::ops::Range;

/// Numbers that look random; each run has the same.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 ^ (self.0 >> 29)) as usize
    }

    fn one_of<T: Clone>(&mut self, values: &[T]) -> T {
        values[self.next() % values.len()].clone()
    }

    fn within(&mut self, range: &Range<usize>) -> usize {
        range.start + self.next() % range.len()
    }
}

fn code() -> Vec<Range<usize>> {
    let mut code = Vec::new();
    loader::each_module(loader::Wait::Yes, |found, _| {
        let segments = found.segments.iter().filter(|segment| segment.p_flags & libc::PF_X != 0);
        code.extend(segments.map(|segment| {
            let start = found.address_of(segment);
            start..start + segment.p_memsz as usize
        }));
        true
    });
    code.retain(|code| !code.is_empty());
    code
}

/// From any instruction, with anything in the registers and on the stack.
#[test]
fn nothing_that_is_in_registers_or_on_the_stack_faults() {
    prepare();
    let code = code();
    let mut stack = vec![0_usize; 4096];
    let own = stack.as_ptr().addr()..stack.as_ptr().addr() + stack.len() * 8;
    let mut numbers = Numbers(20_140_605);
    let value = |numbers: &mut Numbers| match numbers.next() % 8 {
        0 | 1 => numbers.one_of(&code).start.wrapping_add(numbers.next() % 100_000),
        2 | 3 => {
            let code = numbers.one_of(&code);
            numbers.within(&code)
        }
        4 | 5 => numbers.within(&own) / 8 * 8,
        6 => numbers.next() % 64,
        _ => numbers.next(),
    };
    let mut taken = 0;
    for round in 0..100_000 {
        if round % 100 == 0 {
            stack.fill_with(|| value(&mut numbers));
            std::hint::black_box(&mut stack);
        }
        let mut registers = Registers::current();
        registers.by_number = std::array::from_fn(|_| value(&mut numbers));
        let code = numbers.one_of(&code);
        registers.ip = numbers.within(&code);
        // Where the thread is can be read.
        registers.set_sp(numbers.within(&own) / 8 * 8);
        let mut frames = [0; 32];
        taken += modules::with(|list| walk(list, registers, &mut frames).0);
    }
    assert!(taken > 100_000, "{taken} frames");
}

/// Each instruction's rule says what the table says.
#[test]
fn rules_and_tables_agree() {
    prepare();
    let mut stack: Vec<usize> = (0..8192).map(|word| word * 0x1_0001 + 4096).collect();
    std::hint::black_box(&mut stack);
    let middle = stack[4096..].as_ptr().addr();
    let mut numbers = Numbers(1);
    let mut compared = 0;
    for code in code() {
        for _ in 0..20_000 {
            let place = numbers.within(&code);
            modules::with(|list| {
                let Some(module) = list.module_of(place) else { return };
                let rule = tables::rule(module, place);
                if rule.kind() != Kind::Simple {
                    return;
                }
                let mut by_rule = Registers::current();
                by_rule.by_number = std::array::from_fn(|number| number * 1000);
                by_rule.set_sp(middle);
                by_rule.set_fp(middle + 800);
                let mut by_table = by_rule.clone();
                let mut memory = Memory::of_stack(middle);
                let is_read = rule.step(&mut by_rule, &mut memory, true);
                // Whose frame is larger than this stack is.
                if !is_read || !stack.as_ptr_range().contains(&(by_rule.sp() as *const usize)) {
                    return;
                }
                assert_eq!(tables::step(list, place, &mut by_table, &mut memory, true), Some(false));
                // What a call need not preserve is not in rules.
                let of = |registers: &Registers| {
                    let saved = rules::SAVED.map(|(number, _)| registers.by_number[number]);
                    (registers.ip, registers.sp(), saved)
                };
                assert_eq!(of(&by_rule), of(&by_table), "at {place:#x}: {rule:?}");
                compared += 1;
            });
        }
    }
    assert!(compared > 10_000, "{compared} compared");
}

#[test]
fn memory_that_is_not_there_is_not_read() {
    let local = 0x1234_5678_usize;
    let here = std::ptr::from_ref(&local).addr();
    let mut memory = Memory::of_stack(here);
    assert_eq!(memory.read(std::hint::black_box(here)), Some(local));
    for address in [0, 8, 4096, usize::MAX - 7, 1 << 47, 1 << 63, here + 1] {
        assert_eq!(memory.read(address), None, "{address:#x}");
    }
    assert!(!memory.has(usize::MAX - 100, 8));
    // Another page, and back.
    let boxed = Box::new(77_usize);
    assert_eq!(memory.read(std::ptr::from_ref(&*boxed).addr()), Some(77));
    assert_eq!(memory.read(here), Some(local));
}
