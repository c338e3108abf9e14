//! Reads unwind tables: `.eh_frame_hdr`, which has an entry for each function, sorted, and `.eh_frame`, which
//! has a small program for each that says at which instruction registers are saved where.

use super::memory::Memory;
use super::modules::{List, Module};
use super::registers::{self, COUNT, RETURN_ADDRESS, Registers, SP};
use super::rules::Rule;
use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameOffset, Encoding, Evaluation, EvaluationResult, Expression,
    LittleEndian, Location, Piece, Register, RegisterRule, UnwindContext, UnwindSection, UnwindTableRow,
    Value,
};

type Reader = gimli::EndianSlice<'static, LittleEndian>;
type Row = UnwindTableRow<usize, OnStack>;

/// Rows that gimli needs at once: what a function began with, what it is at, and two that are put aside.
const ROWS: usize = 4;

/// Registers in a row: a signal's frame has the most, with all that there are.
const RULES: usize = if cfg!(target_arch = "x86_64") { 18 } else { 36 };

/// Has gimli allocate nothing: 3 KiB of the stack instead.
struct OnStack;

impl gimli::UnwindContextStorage<usize> for OnStack {
    type Rules = [(Register, RegisterRule<usize>); RULES];
    type Stack = [Row; ROWS];
}

impl gimli::EvaluationStorage<Reader> for OnStack {
    type Stack = [Value; 16];
    type ExpressionStack = [(Reader, Reader); 1];
    type Result = [Piece<Reader>; 1];
}

/// What an address's row was found in.
struct Source {
    section: EhFrame<Reader>,
    encoding: Encoding,
    return_address: Register,
    is_signal: bool,
}

/// The rule for an address in a module.
#[cold]
#[inline(never)]
pub(super) fn rule(module: &Module, place: usize) -> Rule {
    with_row(module, place, rule_of).unwrap_or(Rule::FRAME_POINTER)
}

fn rule_of(row: &Row, source: &Source) -> Rule {
    if usize::from(source.return_address.0) != RETURN_ADDRESS || source.is_signal {
        return Rule::TABLE;
    }
    let return_address = row.register(source.return_address);
    let on_x86 = cfg!(target_arch = "x86_64");
    match return_address {
        Some(RegisterRule::Undefined) => return Rule::END,
        None if on_x86 => return Rule::END,
        Some(RegisterRule::Offset(-8)) if on_x86 => {}
        _ if on_x86 => return Rule::TABLE,
        _ => {}
    }
    let CfaRule::RegisterAndOffset { register, offset } = *row.cfa() else { return Rule::TABLE };
    // Whatever is neither saved in the frame nor unchanged needs more than a word.
    let fits = |(register, rule): &(Register, RegisterRule<usize>)| {
        let number = usize::from(register.0);
        number >= COUNT || (number != SP && matches!(rule, RegisterRule::Offset(_) | RegisterRule::SameValue))
            // Never restored, and never needed.
            || (number != SP && number != registers::FP && matches!(rule, RegisterRule::Undefined))
    };
    if !row.registers().all(fits) {
        return Rule::TABLE;
    }
    let saved = |number: usize| match row.register(Register(number as u16)) {
        Some(RegisterRule::Offset(offset)) => Some(offset),
        _ => None,
    };
    Rule::simple(register.0.into(), offset, saved).unwrap_or(Rule::TABLE)
}

/// Goes from a frame to its caller's, by all that the table says. Tells whether a signal interrupted the caller.
/// `None` where there is none, or it cannot be read.
#[cold]
#[inline(never)]
pub(super) fn step(
    list: &List,
    place: usize,
    registers: &mut Registers,
    memory: &mut Memory,
    exact: bool,
) -> Option<bool> {
    let module = list.module_of(place)?;
    with_row(module, place, |row, source| restore(row, source, registers, memory, exact))?
}

fn restore(
    row: &Row,
    source: &Source,
    registers: &mut Registers,
    memory: &mut Memory,
    exact: bool,
) -> Option<bool> {
    let frame = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            value_of(registers, *register)?.wrapping_add(*offset as usize)
        }
        CfaRule::Expression(expression) => {
            evaluate(expression.get(&source.section).ok()?, source.encoding, None, registers, memory)?
        }
    };
    let mut caller = registers.clone();
    caller.set_sp(frame);
    let mut has_return_address = false;
    let mut return_address = value_of(registers, source.return_address).unwrap_or(0);
    for (register, rule) in row.registers() {
        let mut expression = |expression: &gimli::UnwindExpression<usize>| {
            let expression = expression.get(&source.section).ok()?;
            evaluate(expression, source.encoding, Some(frame), registers, memory)
        };
        let value = match rule {
            RegisterRule::Undefined if *register == source.return_address => return None,
            RegisterRule::Undefined => continue,
            RegisterRule::SameValue => value_of(registers, *register),
            RegisterRule::Offset(offset) => memory.read(frame.wrapping_add(*offset as usize)),
            RegisterRule::ValOffset(offset) => Some(frame.wrapping_add(*offset as usize)),
            RegisterRule::Register(other) => value_of(registers, *other),
            RegisterRule::Expression(at) => expression(at).and_then(|address| memory.read(address)),
            RegisterRule::ValExpression(value) => expression(value),
            _ => None,
        };
        if *register == source.return_address {
            return_address = value?;
            has_return_address = true;
        }
        // What cannot be read, or is no register that matters, is unknown.
        if let (Some(value), Some(place)) = (value, caller.by_number.get_mut(usize::from(register.0))) {
            *place = value;
        }
    }
    // Who has called somebody has saved it, except the first function of all.
    if !has_return_address && (cfg!(target_arch = "x86_64") || !exact) {
        return None;
    }
    caller.ip = registers::without_signature(return_address);
    *registers = caller;
    Some(source.is_signal)
}

fn value_of(registers: &Registers, register: Register) -> Option<usize> {
    registers.by_number.get(usize::from(register.0)).copied()
}

/// The value of a DWARF expression, which begins with `initial`.
fn evaluate(
    expression: Expression<Reader>,
    encoding: Encoding,
    initial: Option<usize>,
    registers: &Registers,
    memory: &mut Memory,
) -> Option<usize> {
    let mut evaluation = Evaluation::<Reader, OnStack>::new_in(expression.0, encoding);
    evaluation.set_max_iterations(64);
    if let Some(initial) = initial {
        evaluation.set_initial_value(initial as u64);
    }
    let mut result = evaluation.evaluate().ok()?;
    loop {
        result = match result {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register, .. } => {
                let value = value_of(registers, register)?;
                evaluation.resume_with_register(Value::Generic(value as u64)).ok()?
            }
            EvaluationResult::RequiresMemory { address, size: 8, space: None, .. } => {
                let value = memory.read(address as usize)?;
                evaluation.resume_with_memory(Value::Generic(value as u64)).ok()?
            }
            _ => return None,
        };
    }
    match evaluation.as_result() {
        [Piece { location: Location::Address { address }, .. }] => Some(*address as usize),
        _ => None,
    }
}

/// Calls `with` with the row of the table for an address. `None` if the table has none.
fn with_row<R>(module: &Module, place: usize, with: impl FnOnce(&Row, &Source) -> R) -> Option<R> {
    let offset = module.function_of(place)?;
    let bases = BaseAddresses::default().set_eh_frame(module.frames_address as u64);
    // SAFETY: the list that the module is in, and what it owns, stay while the stack is taken.
    let frames: &'static [u8] = unsafe { module.frames() };
    let mut section = EhFrame::new(frames, LittleEndian);
    section.set_address_size(size_of::<usize>() as u8);
    let function = section.fde_from_offset(&bases, EhFrameOffset(offset), EhFrame::cie_from_offset).ok()?;
    let mut context = UnwindContext::<usize, OnStack>::new_in();
    let row = function.unwind_info_for_address(&section, &bases, &mut context, place as u64).ok()?;
    let source = Source {
        encoding: function.cie().encoding(),
        return_address: function.cie().return_address_register(),
        is_signal: function.is_signal_trampoline(),
        section,
    };
    Some(with(row, &source))
}
