//! The registers that unwinding is about, by their numbers in the unwind tables.

#[cfg(target_arch = "x86_64")]
mod numbers {
    pub(crate) const FP: usize = 6;
    pub(crate) const SP: usize = 7;
    pub(crate) const RETURN_ADDRESS: usize = 16;
    pub(crate) const COUNT: usize = 17;
}

#[cfg(target_arch = "aarch64")]
mod numbers {
    pub(crate) const FP: usize = 29;
    pub(crate) const SP: usize = 31;
    pub(crate) const RETURN_ADDRESS: usize = 30;
    pub(crate) const COUNT: usize = 32;
}

pub(super) use numbers::*;

/// Registers of a frame. Those that a call need not preserve are unknown, except where a signal interrupted
/// the thread; they have whatever they had last.
#[derive(Clone)]
pub(super) struct Registers {
    pub(super) ip: usize,
    pub(super) by_number: [usize; COUNT],
}

impl Registers {
    pub(super) fn sp(&self) -> usize {
        self.by_number[SP]
    }

    pub(super) fn set_sp(&mut self, sp: usize) {
        self.by_number[SP] = sp;
    }

    pub(super) fn fp(&self) -> usize {
        self.by_number[FP]
    }

    pub(super) fn set_fp(&mut self, fp: usize) {
        self.by_number[FP] = fp;
    }

    /// The registers of a thread that a signal has interrupted.
    #[cfg(all(any(feature = "sampled-guard", feature = "memory-check"), target_arch = "x86_64"))]
    pub(super) fn of_context(context: &libc::ucontext_t) -> Self {
        use libc::{
            REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15, REG_RAX, REG_RBP, REG_RBX,
            REG_RCX, REG_RDI, REG_RDX, REG_RIP, REG_RSI, REG_RSP,
        };
        const ORDER: [i32; COUNT - 1] = [
            REG_RAX, REG_RDX, REG_RCX, REG_RBX, REG_RSI, REG_RDI, REG_RBP, REG_RSP, REG_R8, REG_R9, REG_R10,
            REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
        ];
        let get = |register: i32| context.uc_mcontext.gregs[register as usize] as usize;
        let mut by_number = [0; COUNT];
        for (place, register) in by_number.iter_mut().zip(ORDER) {
            *place = get(register);
        }
        Self { ip: get(REG_RIP), by_number }
    }

    /// The registers of a thread that a signal has interrupted.
    #[cfg(all(any(feature = "sampled-guard", feature = "memory-check"), target_arch = "aarch64"))]
    pub(super) fn of_context(context: &libc::ucontext_t) -> Self {
        let mut by_number = [0; COUNT];
        for (place, value) in by_number.iter_mut().zip(context.uc_mcontext.regs) {
            *place = value as usize;
        }
        by_number[SP] = context.uc_mcontext.sp as usize;
        Self { ip: context.uc_mcontext.pc as usize, by_number }
    }

    /// The registers of the function that this is inlined into, at some place in it.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn current() -> Self {
        let mut by_number = [0; COUNT];
        let ip;
        // SAFETY: writes into the array alone. What the unwind tables say of the place that `ip` is
        // fits the registers at each instruction here, since none changes one that
        // a call preserves, unless the function has saved it before.
        unsafe {
            std::arch::asm!(
                "lea {ip}, [rip]",
                "mov [{to} + 24], rbx",
                "mov [{to} + 48], rbp",
                "mov [{to} + 56], rsp",
                "mov [{to} + 96], r12",
                "mov [{to} + 104], r13",
                "mov [{to} + 112], r14",
                "mov [{to} + 120], r15",
                to = in(reg) by_number.as_mut_ptr(),
                ip = out(reg) ip,
                options(nostack, preserves_flags),
            );
        }
        Self { ip, by_number }
    }

    /// The registers of the function that this is inlined into, at some place in it.
    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    pub(super) fn current() -> Self {
        let mut by_number = [0; COUNT];
        let ip;
        // SAFETY: as above.
        unsafe {
            std::arch::asm!(
                "adr {ip}, .",
                "stp x19, x20, [{to}, #152]",
                "stp x21, x22, [{to}, #168]",
                "stp x23, x24, [{to}, #184]",
                "stp x25, x26, [{to}, #200]",
                "stp x27, x28, [{to}, #216]",
                "stp x29, x30, [{to}, #232]",
                "mov {sp}, sp",
                "str {sp}, [{to}, #248]",
                to = in(reg) by_number.as_mut_ptr(),
                ip = out(reg) ip,
                sp = out(reg) _,
                options(nostack, preserves_flags),
            );
        }
        Self { ip, by_number }
    }
}

/// A return address without what AArch64's pointer authentication puts into its upper bits.
pub(super) fn without_signature(address: usize) -> usize {
    if cfg!(target_arch = "aarch64") { address & ((1 << 48) - 1) } else { address }
}
