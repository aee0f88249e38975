//! Tasks in the guest's memory, and what a switch must leave: a state that a CPU enters (SDM "Checks on Guest Segment
//! Registers", "Checks on Guest RIP, RFLAGS, and SSP", "Checks on Guest Page-Directory-Pointer-Table Entries").

use arch::Gva;
use arch::register::{Cr0, Cr4, Efer, Rflags};
use arch::segment::{AccessRights, DescriptorTable, Segment, SegmentRegister};
use arch::vcpu::Vcpu;

use super::step::Exit;
use super::world::{CODE, World};

const GDT: u64 = 0x9000;
const GDT_LIMIT: u16 = 0x6f;
const OLD_TSS: u64 = 0xa000;
const NEW_TSS: u64 = 0xb000;
const LDT: u64 = 0xc000;
const STACK: u64 = 0xd000;
/// Of 32-bit paging: the first 4 MiB onto themselves. And of PAE paging: the four pointers.
const DIRECTORY_32: u64 = 0xe000;
const POINTERS: u64 = 0xf000;
const DIRECTORY_PAE: u64 = 0x5000;
/// Bits of a physical address, as the machine's CPUID says.
const WIDTH: u32 = 39;

const OLD: u16 = 0x18;
pub(super) const NEW: u16 = 0x20;

/// A descriptor: base, limit in its units, access byte, flags.
type Entry = (u64, u64, u64, u64);

/// The GDT: code and data, the two tasks, a local table, what cannot be loaded, a 16-bit task, code and data of ring 3,
/// conforming code, a stack that grows down, and 16-bit code.
const ENTRIES: [Entry; 13] = [
    (0, 0xf_ffff, 0x9a, 0xc),
    (0, 0xf_ffff, 0x92, 0xc),
    (OLD_TSS, 0x67, 0x8b, 0),
    (NEW_TSS, 0x67, 0x89, 0),
    (LDT, 0xf, 0x82, 0),
    (0, 0xf_ffff, 0x90, 0xc),
    (0, 0xf_ffff, 0x12, 0xc),
    (NEW_TSS, 0x2b, 0x81, 0),
    (0, 0xf_ffff, 0xfa, 0xc),
    (0, 0xf_ffff, 0xf2, 0xc),
    (0, 0xf_ffff, 0x9e, 0xc),
    (0, 0, 0x96, 0xc),
    (0, 0xffff, 0x9a, 0),
];

/// What an input's registers change of a task, in place of registers: words of descriptors, and fields of the new TSS.
const FIELDS: [u64; 16] = [
    GDT + 0x18,
    GDT + 0x1c,
    GDT + 0x20,
    GDT + 0x24,
    GDT + 0x0c,
    NEW_TSS + 0x1c,
    NEW_TSS + 0x20,
    NEW_TSS + 0x24,
    NEW_TSS + 0x38,
    NEW_TSS + 0x48,
    NEW_TSS + 0x4c,
    NEW_TSS + 0x50,
    NEW_TSS + 0x54,
    NEW_TSS + 0x60,
    NEW_TSS + 0x64,
    POINTERS + 4,
];

fn descriptor((base, limit, access, flags): Entry) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 15) << 48
        | flags << 52
        | (base >> 24) << 56
}

impl World {
    /// Whether a CPU can switch tasks at all.
    pub(super) fn has_tasks(&self, cpu: usize) -> bool {
        let vcpu = &self.cpus[cpu].1;
        vcpu.cr0() & Cr0::PE.bits() != 0 && vcpu.efer() & Efer::LMA.bits() == 0
    }

    pub(super) fn runs_program(&self, cpu: usize) -> bool {
        self.cpus[cpu].1.cpl() == 3
    }

    /// The CPU is in a task of 32-bit protected mode, at CPL 0 or 3 or in virtual-8086 mode, with no paging, that of 32
    /// bits or PAE's; another one waits in memory.
    pub(super) fn begin_tasks(&mut self, cpu: usize, exit: &Exit<'_>) {
        let pages = [GDT, OLD_TSS, NEW_TSS, LDT, DIRECTORY_32, POINTERS, DIRECTORY_PAE];
        let shown = |at: u64| self.machine.shadow_at.contains(&Some(arch::Gpa::new(at)));
        if pages.into_iter().any(shown) {
            return;
        }
        for (index, entry) in (1..).zip(ENTRIES) {
            self.put(GDT + 8 * index, &descriptor(entry).to_le_bytes());
        }
        self.put(LDT + 8, &descriptor((0x4000, 0xf_ffff, 0xf2, 0xc)).to_le_bytes());
        let paging = exit.limit & 3;
        let tables = if paging == 3 { POINTERS } else { DIRECTORY_32 };
        self.put(DIRECTORY_32, &0x87_u32.to_le_bytes());
        for pointer in 0..4 {
            self.put(POINTERS + 8 * pointer, &(DIRECTORY_PAE | 1).to_le_bytes());
        }
        self.put(DIRECTORY_PAE, &0x87_u64.to_le_bytes());
        let new = [
            (0x00, u64::from(OLD)),
            (0x1c, tables),
            (0x20, CODE),
            (0x24, 2),
            (0x38, STACK + 0x100),
            (0x48, 0x10),
            (0x4c, 8),
            (0x50, 0x10),
            (0x54, 0x10),
            (0x58, 0x10),
            (0x5c, 0x10),
            (0x60, 0x28),
            (0x64, 0),
        ];
        for (at, value) in new {
            self.put(NEW_TSS + at, &(value as u32).to_le_bytes());
        }
        self.put(OLD_TSS, &NEW.to_le_bytes());
        for (field, value) in &exit.registers {
            self.put(FIELDS[usize::from(*field)], &(*value as u32).to_le_bytes());
        }
        self.enter_old_task(cpu, exit, tables, paging);
    }

    fn enter_old_task(&mut self, cpu: usize, exit: &Exit<'_>, tables: u64, paging: u16) {
        let (program, virtual_8086) = (exit.state % 32 >= 14, exit.state % 32 == 15);
        let vcpu = &mut self.cpus[cpu].1;
        let dpl = if program { 3 << 5 } else { 0 };
        let flat = |selector, access: AccessRights| Segment {
            selector,
            base: 0,
            limit: u32::MAX,
            access: AccessRights(access.0 | dpl),
        };
        let state = &mut vcpu.state;
        state.segments = [flat(0x10, AccessRights::DATA32); 8];
        state.segments[SegmentRegister::Cs as usize] = flat(8, AccessRights::CODE32);
        state.segments[SegmentRegister::Ldtr as usize] = Segment::NULL;
        state.segments[SegmentRegister::Tr as usize] =
            Segment { selector: OLD, base: OLD_TSS, limit: 0x67, access: AccessRights::TSS_BUSY };
        state.gdtr = DescriptorTable { base: Gva::new(GDT), limit: GDT_LIMIT };
        state.cr0 = 0x11 | if paging >= 2 { Cr0::PG.bits() } else { 0 };
        state.cr3 = tables;
        state.cr4 = if paging == 3 { Cr4::PAE.bits() } else { 1 << 4 };
        state.efer = 0;
        state.rflags = 0x202 | if virtual_8086 { Rflags::VM.bits() } else { 0 };
        state.rip = CODE;
    }

    /// Where a switch has come to the new task, its state is one that a CPU enters.
    pub(super) fn check_task(&mut self, cpu: usize) {
        let vcpu = &mut self.cpus[cpu].1;
        let switched = vcpu.state.cr0;
        vcpu.state.cr0 = switched & !Cr0::TS.bits();
        if switched & Cr0::TS.bits() == 0 {
            return;
        }
        let flags = vcpu.rflags();
        assert!(flags & 2 != 0 && flags & !0x3f_7fd7 == 0, "RFLAGS {flags:#x}");
        assert!(vcpu.rip() <= u64::from(u32::MAX) && vcpu.cr3() <= u64::from(u32::MAX));
        let virtual_8086 = flags & Rflags::VM.bits() != 0;
        let segment = |register| vcpu.segment(register);
        let stack = segment(SegmentRegister::Ss);
        for register in SELECTORS {
            let held = segment(register);
            if virtual_8086 {
                let right = held.base == u64::from(held.selector) << 4 && held.limit == 0xffff;
                assert!(right && held.access.0 == 0xf3, "{register:?} {held:x?}");
            } else {
                check_segment(register, held, stack);
            }
        }
        let (task, local) = (segment(SegmentRegister::Tr), segment(SegmentRegister::Ldtr));
        check_system(task, &[3, 11]);
        if !local.access.unusable() {
            check_system(local, &[2]);
        }
        for pointer in vcpu.pointers.take().into_iter().flatten() {
            let reserved = u64::MAX << WIDTH | 0x1e6;
            assert!(pointer & 1 == 0 || pointer & reserved == 0, "pointer {pointer:#x}");
        }
    }
}

const SELECTORS: [SegmentRegister; 6] = [
    SegmentRegister::Cs,
    SegmentRegister::Ss,
    SegmentRegister::Ds,
    SegmentRegister::Es,
    SegmentRegister::Fs,
    SegmentRegister::Gs,
];

/// Present, with no reserved bit, and a limit that its granularity can say.
fn check_form(held: Segment) {
    const GRANULARITY: u32 = 1 << 15;
    let access = held.access.0;
    assert!(access & 0x80 != 0 && access & 0xf00 == 0, "{held:x?}");
    let pages = access & GRANULARITY != 0;
    assert!(pages || held.limit >> 20 == 0, "{held:x?}");
    assert!(!pages || held.limit & 0xfff == 0xfff, "{held:x?}");
    assert!(held.base >> 32 == 0, "{held:x?}");
}

fn check_segment(register: SegmentRegister, held: Segment, stack: Segment) {
    if held.access.unusable() {
        assert!(register != SegmentRegister::Cs, "CS is always there");
        return;
    }
    check_form(held);
    let (access, dpl) = (held.access.0, held.access.dpl());
    let kind = access & 0xf;
    let suits = if register == SegmentRegister::Cs {
        match kind {
            9 | 11 => dpl == stack.access.dpl(),
            13 | 15 => dpl <= stack.access.dpl(),
            _ => false,
        }
    } else if register == SegmentRegister::Ss {
        matches!(kind, 3 | 7)
    } else {
        kind & 1 != 0 && (kind & 8 == 0 || kind & 2 != 0)
    };
    assert!(access & 0x10 != 0 && suits, "{register:?} {held:x?}, SS {stack:x?}");
}

fn check_system(held: Segment, kinds: &[u32]) {
    check_form(held);
    assert!(held.access.0 & 0x10 == 0 && kinds.contains(&(held.access.0 & 0xf)), "{held:x?}");
    assert!(held.selector & 4 == 0, "{held:x?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::ExitReason;
    use arch::exit::{TaskSwitch, TaskSwitchSource};
    use guest::vm::Next;

    /// Else the target would look at nothing but what is refused.
    #[test]
    fn by_each_way_and_in_each_mode_the_other_task_is_reached() {
        use TaskSwitchSource::{Call, IdtGate, Iret, Jump};
        const NEW_IS_BUSY: (u8, u64) = (3, 0x8b00);
        for (source, state, limit) in [Call, Iret, Jump, IdtGate]
            .into_iter()
            .flat_map(|source| [13, 14, 15].map(|state| (source, state)))
            .flat_map(|(source, state)| [0, 2, 3].map(|limit| (source, state, limit)))
        {
            let mut world = World::new(1, &[]);
            let exit = Exit {
                reason: ExitReason::TaskSwitch(TaskSwitch { selector: Some(NEW), source }),
                vectoring: None,
                registers: if source == Iret { vec![NEW_IS_BUSY] } else { Vec::new() },
                code: &[],
                state,
                limit,
                store: None,
            };
            world.before(0, &exit);
            assert_eq!(world.runs_program(0), state != 13);
            assert_eq!(world.exit(0, exit.reason), Next::Resume);
            let vcpu = &world.cpus[0].1;
            let at = (vcpu.segment(SegmentRegister::Tr).selector, vcpu.rip(), vcpu.injected);
            assert_eq!(at, (NEW, CODE, None), "{source:?} {state} {limit}");
            world.check_task(0);
        }
    }
}
